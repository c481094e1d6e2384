"""A student as recipes write it: its kind, size, variants and training stages, and the order of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

from pydantic import Field, field_validator, model_validator

from retrodistill.core.errors import UserError, unknown
from retrodistill.core.settings import OneOf, Settings, value_errors
from retrodistill.students.registry import (
    WHOLE_TRANSFORMER,
    Kind,
    StageDefaults,
    all_kinds,
    get_kind,
    kind_names,
    kind_of_settings,
)
from retrodistill.training.settings import CURRENT_STUDENT, StageSettings, is_student, parse_student

if TYPE_CHECKING:
    from retrodistill.recipes.settings import Recipe


class StudentSettings(Settings):
    """One student."""

    model: str
    """`static` (a token table made from the document encoder), or `kind:NAME` to start from: `dense`; `sparse` or
    `multi-vector`, where NAME is a model of that kind or a bi-encoder; `cross-encoder`; `prett`, from a cross-encoder
    or bi-encoder; `tk`, from a bi-encoder."""
    initialize: Annotated[str, OneOf("initialization", "retrodistill.students.static:INITIALIZATIONS")] = "teacher"
    """Start of a token table; `retrodistill methods` lists the choices. `fitted` gives a dense student whose layers are
    cut a linear map, solved so that its queries come near those of the document encoder."""
    tokenizer: str | None = None
    """`dense:NAME` whose tokenizer a token table gets, where the document encoder is a file of vectors."""
    layers: int | None = Field(default=None, ge=1)
    """Number of transformer layers to keep, from the first; of every kind but `static`. In a tk student, the layers
    that give tokens their context, 2 by default."""
    join: int | None = Field(default=None, ge=0)
    """Layers of a prett student that read query and document separately; two thirds of its layers by default."""
    dimension: int | Literal["space"] | None = None
    """Width of its vectors, or `space` for the width of the document encoder's. Of a multi-vector student: width of a
    token's vector. Of a prett or tk student: width of what is stored per token of a document."""
    max_length: int | None = Field(default=None, ge=1)
    """Tokens that it reads of a text; of a document (multi-vector, prett, tk); of a pair (cross-encoder)."""
    lexical_dim: int | None = Field(default=None, ge=1)
    """Width of a lexical half next to a dense student's vector, for stages with `train: lexical`. Sparse students have
    `lexical_terms` instead."""
    queries: Literal["model", "inference-free"] = "model"
    """How a sparse student encodes queries: by the `model`, or `inference-free`, with one weight per token."""
    expansion: int | None = Field(default=None, ge=1)
    """Number of tokens to which a multi-vector student's queries are filled up with the mask token."""
    documents: Literal["frozen", "student"] = "frozen"
    """What encodes the documents of its index: `frozen`, the document encoder; `student`, the student itself. The
    latter is the default of kinds that have no vector in a dense space. Re-rankers order BM25's documents."""
    clusters: str | None = None
    """Sizes of clusters whose means replace a multi-vector student's token vectors: `C8x32` for 8 vectors per query and
    32 per document, `C25` for a quarter of the tokens of both. The results then also have the same student
    `unclustered`, with the same training, and that one `pooled` after training to as many vectors."""
    clustered_from: int = Field(default=1, ge=1)
    """First stage with clusters, counted from 1. The stages before train the plain student, which `unclustered` shares.
    `lwf` compares with the plain student of the stage's start."""
    exits: list[int] = Field(default_factory=list)
    """Layers after which a dense student can stop, besides the last one. Each is a system such as `student@exit-2`."""
    project_exits: bool = False
    """Whether each exit but the deepest gets a linear map of its own."""
    lexical_terms: bool = False
    """Whether a sparse student's documents also weight their own tokens as BM25 does, with a learned weight per token;
    for inference-free queries. Dense students have `lexical_dim` instead."""
    head: Literal["splade", "vdr"] = "splade"
    """Head of a sparse student. `vdr` keeps a text's 768 highest terms and its own tokens; the results then also have
    `student@own-tokens`: the same documents, queries without a model."""
    stages: list[StageSettings] = Field(min_length=1)
    """Stages of training, in order."""
    control: Literal["untrained", "contrastive"] | None = "untrained"
    """The control next to it: `untrained`, the student as it starts; `contrastive`, the same stages with InfoNCE on
    pseudo-queries and their source documents in place of the list objectives."""

    @model_validator(mode="before")
    @classmethod
    def _own_documents(cls, given: Any) -> Any:
        """Kinds without a vector in a dense space encode their own documents, whether or not the recipe says so."""
        kind = str(given.get("model")).partition(":")[0] if isinstance(given, dict) else ""
        own = kind in kind_names() and get_kind(kind).has_own_documents
        return {"documents": "student", **given} if own else given

    @field_validator("model")
    @classmethod
    def _parses(cls, model: str) -> str:
        kind, _, name = model.partition(":")
        written = get_kind(kind).written if kind in kind_names() else ""
        if not written or (":" in written) != bool(name):
            forms = ", ".join(repr(kind.written) for kind in all_kinds() if kind.written)
            raise ValueError(f"a student starts from {forms}, not {model!r}")
        return model

    @field_validator("clusters")
    @classmethod
    def _sizes(cls, sizes: str | None) -> str | None:
        from retrodistill.students.clustering import cluster_sizes

        if sizes is not None:
            with value_errors():
                cluster_sizes(sizes)
        return sizes

    @field_validator("exits")
    @classmethod
    def _layers(cls, exits: list[int]) -> list[int]:
        if len(set(exits)) < len(exits) or min(exits, default=1) < 1:
            raise ValueError("exits are layers, counted from 1, each named once")
        return exits

    @property
    def kind(self) -> str:
        """The kind that its model is written with, e.g. ``sparse``; a hybrid is ``dense`` here."""
        return self.model.partition(":")[0]

    @model_validator(mode="after")
    def _fits_its_kind(self) -> StudentSettings:
        kind = kind_of_settings(self.model, self.lexical_dim)
        for option in sorted(frozenset().union(*(other.options for other in all_kinds()))):
            default = type(self).model_fields[option].get_default(call_default_factory=True)
            if option not in kind.options and getattr(self, option) != default:
                having = " and ".join(other.name for other in all_kinds() if other.written and option in other.options)
                raise ValueError(f"{option} is for {having} students; this one is {kind.name}")
        if kind.has_own_documents and self.documents == "frozen":
            raise ValueError(f"a {kind.name} student has no vectors in a dense space; set documents: student")
        kind.check(self)
        for stage in self.stages:
            self._check_stage(stage, kind)
        return self

    def _check_stage(self, stage: StageSettings, kind: Kind) -> None:
        """Refuse a stage that does not fit the kind, or that is about a variant that the student does not have."""
        if stage.train not in kind.parts:
            parts = " or ".join(kind.parts)
            raise ValueError(f"train: {stage.train} does not train {kind.name} students; set train: {parts}")
        if stage.regularizers and not kind.has_terms:
            raise ValueError(f"regularizers see term weights, and a {kind.name} student has none; leave them out")
        if not kind.can_search and CURRENT_STUDENT in (stage.candidates.sources or []):
            raise ValueError(f"a {kind.name} student cannot search for candidates; name bm25 or dense:NAME as sources")
        if kind.has_own_documents and stage.aligns:
            raise ValueError(f"a {kind.name} student has no embedding to align; take list objectives")
        if stage.matryoshka and not kind.has_vector:
            raise ValueError(f"matryoshka cuts one vector per text, and a {kind.name} student has none to cut")
        if (stage.exit_kl is not None or stage.exit_weights) and not self.exits:
            raise ValueError("exit_kl and exit_weights are about exits, and the student has none; set exits: [2, 4]")
        if stage.own_tokens and self.head != "vdr":
            raise ValueError("own_tokens is for head: vdr, whose texts always keep their own tokens; leave it out")

    @model_validator(mode="after")
    def _documents_fit(self) -> StudentSettings:
        moving = [stage.train for stage in self.stages if stage.train != "query_encoder"]
        if self.documents == "frozen" and moving:
            raise ValueError(f"a stage with train: {moving[0]} moves the student's documents; set documents: student")
        frozen_lists = any(stage.train == "query_encoder" and stage.needs_lists for stage in self.stages)
        if self.documents == "student" and frozen_lists:
            raise ValueError(
                "a list objective with train: query_encoder learns against stored documents, and documents: student "
                "moves them; set train: both_encoders, or documents: frozen"
            )
        return self


class VariantNames(NamedTuple):
    """Names of the systems that are measured with a clustered student."""

    unclustered: str
    pooled: str


def comparison_names(students: Mapping[str, StudentSettings]) -> dict[str, VariantNames]:
    """By clustered student; its name is a prefix where there are several."""
    clustered = [name for name, student in students.items() if student.clusters]
    prefixes = {name: "" if len(clustered) == 1 else f"{name}-" for name in clustered}
    return {name: VariantNames(f"{prefix}unclustered", f"{prefix}pooled") for name, prefix in prefixes.items()}


def without_clusters(student: StudentSettings) -> StudentSettings:
    """The same student and stages without clusters."""
    return student.model_copy(update={"clusters": None, "clustered_from": 1, "control": None})


def check_truncations(recipe: Recipe, space: int) -> None:
    """Refuse truncations longer than the vectors, as far as their width is known before any work.

    Args:
        recipe: The recipe.
        space: Width of the document encoder's vectors.

    Raises:
        UserError: Names the first.
    """
    given = [("evaluation.truncations", cut) for cut in recipe.evaluation.truncations]
    for name, student in recipe.students.items():
        if student.documents == "frozen":
            given += [(f"{name}: matryoshka", cut) for stage in student.stages for cut in stage.matryoshka]
    for key, cut in given:
        if not 1 <= cut <= space:
            raise UserError(
                f"{key}: {cut} dimensions, and vectors by {recipe.document_encoder} have {space}; take 1 to {space}."
            )


StageOfStudent = tuple[str, int]  # a student's name, and after how many of its stages


def students_of(stage: StageSettings, students: Mapping[str, StudentSettings]) -> list[StageOfStudent]:
    """The students that teach a stage.

    Raises:
        ValueError: There is no such student, its kind cannot teach, or it has fewer stages.
    """
    teachers = []
    for member in stage.teacher:
        if not is_student(member.model):
            continue
        name, after = parse_student(member.model)
        if name not in students:
            raise ValueError(f"teacher {member.model!r}: {unknown('student', name, students)}")
        kind, stages = kind_of_settings(students[name].model, students[name].lexical_dim), len(students[name].stages)
        if not kind.can_teach:
            teaching = ", ".join(other.name for other in all_kinds() if other.can_teach and other.written)
            raise ValueError(f"teacher {member.model!r} is a {kind.name} student; students that can teach: {teaching}")
        if after is not None and after > stages:
            raise ValueError(f"teacher {member.model!r}: {name} has {stages} stages")
        if not kind.can_search and stage.candidates.depth == "all":
            raise ValueError(
                f"teacher {member.model!r} scores pairs and not a whole corpus; set candidates.depth to a number"
            )
        teachers.append((name, stages if after is None else after))
    return teachers


def check_teachers(recipe: Recipe) -> None:
    """Refuse teachers that cannot teach in their place.

    Raises:
        ValueError: As `training_order`; a student is the recipe's teacher; or a selection takes as right what the
            stage's own teacher ranks first.
    """
    if any(is_student(one.model) for one in (*recipe.teacher, *recipe.ensemble)):
        raise ValueError("a student cannot be the recipe's teacher; name it in a stage's teacher")
    training_order(recipe.students)
    for stage in (stage for student in recipe.students.values() for stage in student.stages):
        by_ensemble = stage.selection is not None and stage.selection.positives == "ensemble"
        if by_ensemble and not stage.teacher and not recipe.ensemble:
            raise ValueError(
                "selection.positives: ensemble needs a judge besides the stage's own teacher; give the stage another "
                "teacher, or the recipe an ensemble"
            )


def training_order(students: Mapping[str, StudentSettings]) -> list[StageOfStudent]:
    """Every student before its first stage and after each, in an order in which whatever a stage needs precedes it.

    A stage needs the student after its stage before, and the students that teach it.

    Raises:
        ValueError: As `students_of`, or a stage needs a student that needs this stage.
    """
    order: list[StageOfStudent] = []
    placed: set[StageOfStudent] = set()

    def visit(state: StageOfStudent, above: tuple[StageOfStudent, ...]) -> None:
        if state in above:
            circle = " -> ".join(f"{name}@{behind}" for name, behind in (*above[above.index(state) :], state))
            raise ValueError(f"students wait for each other: {circle}; name earlier stages, e.g. student:NAME@1")
        if state in placed:
            return
        for needed in needed_by(state, students):
            visit(needed, (*above, state))
        placed.add(state)
        order.append(state)

    for name, student in students.items():
        visit((name, len(student.stages)), ())
    return order


def needed_by(state: StageOfStudent, students: Mapping[str, StudentSettings]) -> list[StageOfStudent]:
    """What the last stage of a state starts from: the student before that stage, and the students that teach it."""
    name, behind = state
    return [(name, behind - 1), *students_of(students[name].stages[behind - 1], students)] if behind else []


def one_student(
    given: str | Mapping[str, Any], objectives: Sequence[Any], training: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings of a student, for `StudentSettings`; what is not given is chosen by its kind.

    Args:
        given: Its model, or a mapping of `StudentSettings` without ``control``.
        objectives: Of its one stage; a bare name gets the temperature that the scores of this kind need. Not read where
            `given` has stages.
        training: `TrainingSettings` of its one stage, and ``train``, the part that it trains.

    Raises:
        UserError: No model is named, or the settings contradict each other.
    """
    settings = {"model": given} if isinstance(given, str) else dict(given)
    if not isinstance(settings.get("model"), str):
        raise UserError("distill: a student needs a model, e.g. student={'model': 'dense:all-MiniLM-L6-v2'}.")
    if "control" in settings:
        raise UserError("distill: control is not a setting of student here; a recipe has controls: see run_recipe.")
    name, _, base = settings["model"].partition(":")
    if name not in kind_names():
        return {**settings, "stages": [{"objectives": objectives}]}  # for `StudentSettings` to refuse
    if base:
        settings = {**get_kind(name).complete(settings, base), **settings}
    kind = kind_of_settings(settings["model"], settings.get("lexical_dim"))  # type: ignore[arg-type]
    if "stages" in settings:
        stages = _curriculum(settings["stages"], training)
    else:
        stages = [_stage(kind.defaults(settings), objectives, training)]
    own = kind.has_own_documents or any(_moves_documents(stage) for stage in stages)
    return {"documents": "student" if own else "frozen", **settings, "stages": stages, "control": None}


def _curriculum(stages: Any, training: Mapping[str, Any]) -> list[Any]:
    """Stages as mappings, for `StudentSettings` to check.

    Raises:
        UserError: There is none, or `training` has what belongs to a stage.
    """
    if not isinstance(stages, (list, tuple)) or not stages:
        raise UserError("distill: student.stages: wanted a list of at least one stage; without the key there is one.")
    if training:
        raise UserError(
            f"distill: training.{next(iter(training))}: each of the student's stages has its own; set it there."
        )
    return [stage.model_dump() if isinstance(stage, StageSettings) else stage for stage in stages]


def _moves_documents(stage: Any) -> bool:
    return isinstance(stage, Mapping) and stage.get("train", "query_encoder") != "query_encoder"


def _stage(defaults: StageDefaults, objectives: Sequence[Any], training: Mapping[str, Any]) -> dict[str, Any]:
    given = dict(training)
    part = given.pop("train", None) or defaults.train
    if defaults.temperature is not None:
        objectives = [
            {"name": term, "student_temperature": defaults.temperature} if isinstance(term, str) else term
            for term in objectives
        ]
    chosen = WHOLE_TRANSFORMER if part == "both_encoders" and defaults.train == "head" else defaults.training
    return {
        "objectives": list(objectives),
        "train": part,
        "training": {**chosen, **given},
        "regularizers": defaults.regularizers,
    }
