"""A student as recipes write it: its kind, size, variants and training stages, and the order of training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, field_validator, model_validator

from retrodistill.core.errors import UserError, unknown
from retrodistill.core.settings import OneOf, Settings, value_errors
from retrodistill.encoders.length_adaptive import LengthAdaptiveSettings
from retrodistill.students.registry import (
    WHOLE_TRANSFORMER,
    Kind,
    StageDefaults,
    all_kinds,
    get_kind,
    kind_names,
    kind_of_settings,
)
from retrodistill.training.settings import (
    CURRENT_STUDENT,
    StageSettings,
    Teachers,
    TeacherSettings,
    is_student,
    parse_student,
)


class ControlSettings(Settings):
    """A control that is trained by the student's stages with another teacher."""

    teacher: Annotated[Teachers, Field(min_length=1)]
    """The teacher of all its stages, one model or several that are fused."""

    @field_validator("teacher")
    @classmethod
    def _is_no_student(cls, teacher: list[TeacherSettings]) -> list[TeacherSettings]:
        if any(is_student(member.model) for member in teacher):
            raise ValueError("the teacher of a control cannot be a student; name a model, e.g. dense:NAME")
        return teacher


class ClusterSettings(Settings):
    """Clusters of a multi-vector student's token vectors."""

    query: int | float | None = None
    """Vectors of a query: a number, or a share of its tokens between 0 and 1; null keeps its tokens."""
    document: int | float | None = None
    """Vectors of a document: a number, or a share of its tokens between 0 and 1; null keeps its tokens."""
    weighted: bool = False
    """Whether a vector of a query counts by the size of its cluster, since MaxSim adds up tokens. In the paper, it does
    not."""
    method: Literal["k-means", "ward"] = "k-means"
    """How tokens are clustered: by `k-means`, as in the paper, or by hierarchical clusters with `ward`'s linkage of
    cosine distances, as in token pooling, where the first token is a cluster of its own."""

    @model_validator(mode="after")
    def _some_side(self) -> ClusterSettings:
        from retrodistill.students.clustering import check_cluster_size

        if self.sizes == (None, None):
            raise ValueError("clusters need the number of vectors of a query or of a document, e.g. document: 32")
        with value_errors():
            for side in ("query", "document"):
                if getattr(self, side) is not None:
                    check_cluster_size(side, getattr(self, side))
        return self

    @property
    def sizes(self) -> tuple[int | float | None, int | float | None]:
        """Of a query and of a document."""
        return self.query, self.document

    @property
    def options(self) -> dict[str, Any]:
        """The rest, as `TokenClusters` takes it."""
        return self.model_dump(include={"weighted", "method"})


def _named_sizes(given: Any) -> Any:
    """The paper's names as settings."""
    if not isinstance(given, str):
        return given
    from retrodistill.students.clustering import cluster_sizes

    with value_errors():
        query, document = cluster_sizes(given)
    return {"query": query, "document": document}


class TrimSettings(Settings):
    """What a trained student keeps of its vocabulary and, for a static one, of its table."""

    min_count: int = Field(default=1, ge=1)
    """Fewest texts that have a token which is kept for them. Texts are the documents and all queries and other texts
    that a stage trains on. Tokens that other words need, such as single characters, are kept in any case."""
    dimension: Annotated[int, Field(ge=1)] | Annotated[float, Field(gt=0, lt=1)] | None = None
    """Dimensions of a static student's table, which a linear map brings back to the width of its vectors: a number, or
    the share of the texts' squared vectors to keep, such as .98. By default, all."""
    precision: Literal["float32", "int8"] = "float32"
    """Precision of a static student's table on disk. It is float32 in memory."""


class KeepSettings(Settings):
    """What is kept of the inside of each layer of a transformer."""

    heads: int | float | None = None
    """Attention heads that each layer keeps: a number, or a share between 0 and 1; null keeps all. For BERT, RoBERTa,
    XLM-RoBERTa, CamemBERT, ELECTRA, and DistilBERT. A student with fewer heads loads where retrodistill is
    installed."""
    units: int | float | None = None
    """Feed-forward units that each layer keeps: a number, or a share between 0 and 1; null keeps all."""
    texts: int = Field(default=1024, ge=0)
    """Number of texts whose activations decide what is kept and what the output maps of a layer become: training
    queries and titles, and documents if the student encodes them. 0 keeps what has the largest weights."""

    @model_validator(mode="after")
    def _some_part(self) -> KeepSettings:
        if self.heads is None and self.units is None:
            raise ValueError("keep needs a number of heads or of units, e.g. units: 0.5")
        for name in ("heads", "units"):
            kept = getattr(self, name)
            share = isinstance(kept, float) and 0 < kept < 1
            if kept is not None and not share and not (isinstance(kept, int) and kept >= 1):
                raise ValueError(f"keep.{name}={kept}: give a number from 1, or a share between 0 and 1")
        return self


class StudentSettings(Settings):
    """One student."""

    model: str
    """`static`, a token table made from the document encoder, or `kind:NAME`, a model to start from: `dense:NAME`;
    `sparse:NAME` or `multi-vector:NAME`, where NAME is a model of that kind or a bi-encoder; `cross-encoder:NAME`;
    `prett:NAME`, where NAME is a cross-encoder or bi-encoder; `tk:NAME`, where NAME is a bi-encoder."""
    initialize: Annotated[str, OneOf("initialization", "retrodistill.students.static:INITIALIZATIONS")] = "teacher"
    """How a token table is initialized; `retrodistill methods` describes the choices. For a dense student with fewer
    layers, `fitted` adds a linear map that brings its query vectors closest to those of the document encoder."""
    tokenizer: str | None = None
    """Another tokenizer than the document encoder's, for a token table with `initialize: fitted`: a `dense:NAME` whose
    tokenizer it uses, such as for a file of vectors, or `trained`: word pieces of the documents and parallel texts."""
    words: int = Field(default=0, ge=0)
    """Most whole words of the corpus that get a row of their own in a token table: those that its tokenizer splits into
    pieces and that the most documents have."""
    layers: int | None = Field(default=None, ge=1)
    """Number of transformer layers to keep, counted from the first, for every kind except `static`. For a tk student,
    the number of layers that contextualize its tokens, 2 by default."""
    keep: KeepSettings | None = Field(default=None, exclude_if=lambda given: given is None)
    """Attention heads and feed-forward units that each of its layers keeps; all by default. The others are removed
    before training, without gradients: by activations on texts of the collection, to which the output maps of the
    layers are fitted. For transformers that encode or score whole texts: dense, sparse, multi-vector, and
    cross-encoder students."""
    join: int | None = Field(default=None, ge=0)
    """Number of layers of a prett student that read the query and the document separately, by default two thirds of
    its layers."""
    dimension: int | Literal["space"] | None = None
    """Width of its vectors, or `space` for the width of the document encoder's vectors. For a multi-vector student, the
    width of a token vector. For a prett or tk student, the width of what is stored per document token."""
    max_length: int | None = Field(default=None, ge=1)
    """Maximum number of tokens that it reads: of a text; of a document, for multi-vector, prett and tk students; of a
    query and document together, for a cross-encoder."""
    lexical_dim: int | None = Field(default=None, ge=1)
    """Width of a lexical vector next to a dense student's vector; it is trained in stages with `train: lexical`. Sparse
    students have `lexical_terms` instead."""
    queries: Literal["model", "inference-free", "separate-model"] = "model"
    """How a sparse student encodes queries: with its `model`, `inference-free`, with one fixed weight per token, or
    with a `separate-model`, a copy of the documents' encoder that `train: query_encoder` trains."""
    expansion: int | None = Field(default=None, ge=1)
    """Number of tokens to which queries of a multi-vector student are padded with the mask token."""
    documents: Literal["frozen", "student"] = "frozen"
    """What encodes the documents of its index: `frozen` for the document encoder, `student` for the student itself,
    which is the default for kinds without a vector in a dense space. Re-rankers order the documents that BM25 finds."""
    clusters: Annotated[
        ClusterSettings | None, BeforeValidator(_named_sizes, json_schema_input_type=str | ClusterSettings | None)
    ] = None
    """Clusters whose means replace the token vectors of a multi-vector student (CRISP, arXiv 2505.11471). The paper's
    names set the sizes alone: `C8x32` for 8 vectors per query and 32 per document, `C25` for 25% of the tokens of both.
    Two more students are then measured: `unclustered`, which gets the same training without clusters, and `pooled`,
    which is that student with its document vectors pooled to the same number after training."""
    clustered_from: int = Field(default=1, ge=1)
    """First stage that trains with clusters, counted from 1. Earlier stages train the plain student and are shared with
    `unclustered`. The objective `lwf` compares with the plain student at the start of the stage."""
    exits: list[int] = Field(default_factory=list)
    """Layers after which a dense student can stop, besides its last. Each is measured as `NAME@exit-LAYER`, such as
    `student@exit-2`."""
    project_exits: bool = False
    """Whether each exit except the deepest gets its own linear map."""
    length_adaptive: LengthAdaptiveSettings | None = Field(default=None, exclude_if=lambda given: given is None)
    """Tokens that a dense student may drop between its layers, to encode long texts faster. It is trained with all
    tokens, with the fewest, and with a random share of them."""
    lexical_terms: bool = False
    """Whether the documents of a sparse student also weight their own tokens as BM25 does, with a learned weight per
    token. For queries that are not encoded as documents are. Dense students have `lexical_dim` instead."""
    activation: Literal["relu", "log1p_relu"] | None = Field(default=None, exclude_if=lambda given: given is None)
    """What becomes of a sparse student's logits: `relu`, SPLADE's logarithm, or `log1p_relu`, the logarithm of that,
    which weighs terms more evenly (OpenSearch's doc-v3 encoders). By default, a sparse encoder's own, or `relu`."""
    head: Literal["splade", "vdr", "segments", "cls"] | None = None
    """Head of a sparse student: `splade`, the default, or `vdr`, which keeps the 768 heaviest terms of a text and the
    text's own tokens. The student is then also measured as `NAME@own-tokens`: with the same documents, and queries
    encoded without a model. Head of a cross-encoder or prett student that starts from a bi-encoder: `segments`, the
    default, the cosine of the mean token states of query and document plus a learned correction, or `cls`, a random
    linear map of the first token's state. A model that scores pairs keeps its own."""
    trim: TrimSettings | None = None
    """Cut the trained student to the tokens that the collection and the training texts use, as `retrodistill trim`
    does; `{}` for its defaults. Stages train the whole student, and are shared with one that is not trimmed."""
    stages: list[StageSettings] = Field(min_length=1)
    """Training stages, in order."""
    control: Literal["untrained", "fitted", "contrastive", "contrastive-labels"] | ControlSettings | None = "untrained"
    """What is measured next to the student to show the effect of distillation. `untrained`: the student before
    training. `fitted`: the same with `initialize: fitted`, for static and dense students. `contrastive`: a student
    trained by the same stages with InfoNCE on pseudo-queries and their source documents instead of the teacher's
    scores. `contrastive-labels`: the same, and on training queries with their labeled documents. `{teacher: MODEL}`: a
    student trained by the same stages with another teacher."""

    @model_validator(mode="before")
    @classmethod
    def _own_documents(cls, given: Any) -> Any:
        """Kinds without a vector in a dense space encode their own documents, whether or not the recipe says so."""
        kind = str(given.get("model")).partition(":")[0] if isinstance(given, dict) else ""
        own = kind in kind_names() and get_kind(kind).has_own_documents
        return {"documents": "student", **given} if own else given

    @model_validator(mode="before")
    @classmethod
    def _own_head(cls, given: Any) -> Any:
        """Recipes and manifests of earlier versions have `head: splade` for every kind; it means the default."""
        kind = str(given.get("model")).partition(":")[0] if isinstance(given, dict) else ""
        if kind not in kind_names() or get_kind(kind).has_terms or given.get("head") != "splade":
            return given
        return {**given, "head": None}

    @field_validator("model")
    @classmethod
    def _parses(cls, model: str) -> str:
        kind, _, name = model.partition(":")
        written = get_kind(kind).written if kind in kind_names() else ""
        if not written or (":" in written) != bool(name):
            forms = ", ".join(repr(kind.written) for kind in all_kinds() if kind.written)
            raise ValueError(f"a student starts from {forms}, not {model!r}")
        return model

    @field_validator("exits")
    @classmethod
    def _layers(cls, exits: list[int]) -> list[int]:
        if len(set(exits)) < len(exits) or min(exits, default=1) < 1:
            raise ValueError("exits must be distinct layers, counted from 1")
        return exits

    @property
    def kind(self) -> Kind:
        """The kind of student that these settings describe."""
        return kind_of_settings(self.model, self.lexical_dim)

    @model_validator(mode="after")
    def _fits_its_kind(self) -> StudentSettings:
        kind = self.kind
        foreign = {option for other in all_kinds() for option in other.options} - kind.options
        if given := self.model_dump(include=foreign, exclude_defaults=True):
            option = min(given)
            having = " and ".join(other.name for other in all_kinds() if other.written and option in other.options)
            raise ValueError(f"{option} is for {having} students; this one is {kind.name}")
        if kind.has_own_documents and self.documents == "frozen":
            raise ValueError(f"a {kind.name} student has no vectors in a dense space; set documents: student")
        table = self.trim is not None and (self.trim.dimension is not None or self.trim.precision != "float32")
        if table and kind.name != "static":
            raise ValueError(
                f"trim.dimension and trim.precision are for the table of a static student; this one is {kind.name}"
            )
        kind.check(self)
        for stage in self.stages:
            self._check_stage(stage, kind)
        return self

    def _check_stage(self, stage: StageSettings, kind: Kind) -> None:
        if stage.train not in kind.parts:
            parts = " or ".join(kind.parts)
            raise ValueError(f"train: {stage.train} does not train {kind.name} students; set train: {parts}")
        if stage.regularizers and not kind.has_terms:
            raise ValueError(
                f"regularizers need term weights, which a {kind.name} student does not have; remove regularizers"
            )
        if not kind.can_search and CURRENT_STUDENT in (stage.candidates.sources or []):
            raise ValueError(
                f"a {kind.name} student cannot search for candidates; set candidates.sources to bm25 or dense:NAME"
            )
        if kind.has_own_documents and stage.aligns:
            raise ValueError(f"a {kind.name} student has no embedding to align; use list objectives")
        if (stage.matryoshka or stage.quantize) and not kind.has_vector:
            changes = "matryoshka truncates" if stage.matryoshka else "quantize codes"
            raise ValueError(f"{changes} one vector per text, which a {kind.name} student does not have")
        if (stage.exit_kl is not None or stage.exit_weights) and not self.exits:
            raise ValueError("exit_kl and exit_weights need a student with exits; set e.g. exits: [2, 4]")
        if self.control == "contrastive" and stage.needs_lists:
            _check_contrastive_control(stage)
        if self.control == "fitted" and "initialize" not in kind.options:
            raise ValueError(f"control: fitted is for static and dense students; this one is {kind.name}")
        if stage.own_tokens and self.head != "vdr":
            raise ValueError("own_tokens is for head: vdr, which always keeps a text's own tokens; remove own_tokens")

    def bought_before(self, number: int) -> dict[int, int | str]:
        """Budgets of the earlier stages, by their number from 1, whose bought pairs count for the budget of a stage."""
        # A round of buying is a stage, with a budget that grows from stage to stage. No other setting is needed, rounds
        # differ in whatever stages differ in, and a stage is what resumes, is planned, and has a curve and a card.
        # A stage with the same candidates has the same pairs, unless the student chooses them.
        stage = self.stages[number - 1]
        return {
            place: earlier.candidates.budget
            for place, earlier in enumerate(self.stages[: number - 1], start=1)
            if stage.candidates.budget is not None
            and earlier.candidates.budget is not None
            and earlier.teacher == stage.teacher
            and (stage.candidates.by_student or earlier.candidates != stage.candidates)
        }

    @model_validator(mode="after")
    def _documents_fit(self) -> StudentSettings:
        moving = [stage.train for stage in self.stages if stage.train != "query_encoder"]
        if self.documents == "frozen" and moving:
            raise ValueError(f"train: {moving[0]} changes the student's document vectors; set documents: student")
        frozen_lists = any(stage.train == "query_encoder" and stage.needs_lists for stage in self.stages)
        aligned = [stage for stage in self.stages if stage.train == "query_encoder" and not stage.needs_lists]
        if self.documents == "student" and any(stage.training.keep_by != "agreement" for stage in aligned):
            raise ValueError(
                "keep_by: ndcg@10 ranks documents, and a stage without lists does not read those that the student "
                "encodes itself; leave keep_by out"
            )
        if self.documents == "student" and frozen_lists and not self.kind.has_own_documents:
            raise ValueError(
                "a list objective with train: query_encoder learns against stored document vectors, which documents: "
                "student changes; set train: both_encoders, or documents: frozen"
            )
        return self


class ComparisonNames(NamedTuple):
    """Names of the systems that a clustered student is compared with."""

    unclustered: str
    pooled: str


def comparison_names(students: Mapping[str, StudentSettings]) -> dict[str, ComparisonNames]:
    """The systems that each clustered student is compared with, prefixed by its name if there are several."""
    clustered = [name for name, student in students.items() if student.clusters]
    prefixes = {name: "" if len(clustered) == 1 else f"{name}-" for name in clustered}
    return {name: ComparisonNames(f"{prefix}unclustered", f"{prefix}pooled") for name, prefix in prefixes.items()}


def without_clusters(student: StudentSettings) -> StudentSettings:
    """The same student and stages without clusters."""
    return student.model_copy(update={"clusters": None, "clustered_from": 1, "control": None})


def control_of(student: StudentSettings) -> StudentSettings | None:
    """The student that a student's control trains or builds; None without a control."""
    if student.control is None:
        return None
    if not isinstance(student.control, str):
        stages = [_taught_by(stage, student.control.teacher) for stage in student.stages]
    elif student.control in ("untrained", "fitted"):
        stages = []
    else:
        stages = [_contrastive(stage, labels=student.control == "contrastive-labels") for stage in student.stages]
    initialize = "fitted" if student.control == "fitted" else student.initialize
    return student.model_copy(update={"stages": stages, "initialize": initialize, "control": None})


def _taught_by(stage: StageSettings, teacher: list[TeacherSettings]) -> StageSettings:
    """The stage with another teacher, if it has lists, and the student's own weights: others were taught by theirs."""
    return stage.model_copy(update={"start": None, **({"teacher": teacher} if stage.needs_lists else {})})


def _check_contrastive_control(stage: StageSettings) -> None:
    if stage.positives == "source_document" and not stage.texts.has_sources:
        raise ValueError(
            "control: contrastive learns from pseudo-queries and their source documents; set texts.titles, "
            "texts.sentences, texts.phrases or texts.generated, or control: contrastive-labels, or untrained"
        )
    if stage.texts.joined:
        raise ValueError(
            "texts.joined is of two documents, and control: contrastive takes one; set control: untrained or null"
        )


def _contrastive(stage: StageSettings, *, labels: bool) -> StageSettings:
    """The stage without teacher scores: list objectives become InfoNCE, with labeled documents too if `labels`."""
    terms = [
        term.model_copy(update={"name": term.objective.control}) if term.objective.reads_scores else term
        for term in stage.objectives
    ]
    changed: dict[str, Any] = {"objectives": terms, "selection": None, "start": None}
    if labels and any(term.objective.needs_positives for term in terms):
        changed["positives"] = "all" if stage.texts.has_pseudo_queries else "labels"
    return stage.model_copy(update=changed)


StudentState = tuple[str, int]  # a student's name, and how many of its stages are done


def student_state(written: str, students: Mapping[str, StudentSettings]) -> StudentState:
    """The state that ``student:NAME@2`` names; an unknown name and a stage that it does not have are a ValueError."""
    name, done = parse_student(written)
    if name not in students:
        raise ValueError(f"{written!r}: {unknown('student', name, students)}")
    stages = len(students[name].stages)
    if done is not None and done > stages:
        raise ValueError(f"{written!r}: {name} has {stages} stages")
    return name, stages if done is None else done


def teaching_students(stage: StageSettings, students: Mapping[str, StudentSettings]) -> list[StudentState]:
    """The students that teach a stage; a kind that cannot teach is a ValueError, and see `student_state`."""
    teachers = []
    for member in stage.teacher:
        if not is_student(member.model):
            continue
        state = student_state(member.model, students)
        kind = students[state[0]].kind
        if not kind.can_teach:
            teaching = ", ".join(other.name for other in all_kinds() if other.can_teach and other.written)
            raise ValueError(f"teacher {member.model!r} is a {kind.name} student; kinds that can teach: {teaching}")
        if not kind.can_search and stage.any_document:
            raise ValueError(
                f"teacher {member.model!r} scores pairs and not a whole corpus; set candidates.depth to a number, "
                "without candidates.shared or groups.random"
            )
        teachers.append(state)
    return teachers


def _starting_students(name: str, stage: StageSettings, students: Mapping[str, StudentSettings]) -> list[StudentState]:
    """The student whose weights a stage of another begins with, if it names one; both need a transformer."""
    if stage.start is None:
        return []
    state = student_state(stage.start, students)
    for each in (name, state[0]):
        if (kind := students[each].kind).transformer is None:
            raise ValueError(f"{name}: start {stage.start!r}: {each} is a {kind.name} student, without a transformer")
    if students[state[0]].trim is not None and state[1] == len(students[state[0]].stages):
        raise ValueError(
            f"{name}: start {stage.start!r}: {state[0]} is trimmed after its last stage; name an earlier one"
        )
    return [state]


def training_order(students: Mapping[str, StudentSettings]) -> list[StudentState]:
    """Every student before its first stage and after each stage, with prerequisites first.

    A stage needs the states that `prerequisites` lists. Stages that need each other are a ValueError, as are students
    that cannot teach or lend their weights.
    """
    order: list[StudentState] = []

    def visit(state: StudentState, above: tuple[StudentState, ...]) -> None:
        if state in above:
            cycle = " -> ".join(f"{name}@{done}" for name, done in (*above[above.index(state) :], state))
            raise ValueError(f"students wait for each other: {cycle}; name earlier stages, e.g. student:NAME@1")
        if state not in order:
            for needed in prerequisites(state, students):
                visit(needed, (*above, state))
            order.append(state)

    for name, student in students.items():
        visit((name, len(student.stages)), ())
    return order


def prerequisites(state: StudentState, students: Mapping[str, StudentSettings]) -> list[StudentState]:
    """What the last stage of a state needs: the student before it, its teachers, and whose weights it starts from."""
    name, done = state
    if not done:
        return []
    stage = students[name].stages[done - 1]
    return [(name, done - 1), *teaching_students(stage, students), *_starting_students(name, stage, students)]


def complete_student(
    given: str | Mapping[str, Any], objectives: Sequence[Any], training: Mapping[str, Any]
) -> dict[str, Any]:
    """Settings of a student from its model name or partial settings, filled in with the defaults of its kind.

    A mapping is of `StudentSettings` without ``control``. Without stages, it gets one with these objectives, where a
    bare name gets the temperature that suits the kind, and this training, with ``train`` for the part to train and
    ``texts`` for the texts.

    Raises:
        UserError: No model is named, or the settings contradict each other.
    """
    settings = {"model": given} if isinstance(given, str) else dict(given)
    if not isinstance(settings.get("model"), str):
        raise UserError("distill: a student needs a model, e.g. student={'model': 'dense:all-MiniLM-L6-v2'}.")
    if "control" in settings:
        raise UserError("distill: student.control is only for recipes; remove it, or use run_recipe.")
    name, _, base = settings["model"].partition(":")
    if name not in kind_names():
        return {**settings, "stages": [{"objectives": objectives}]}  # `StudentSettings` rejects the name
    if base:
        settings = {**get_kind(name).complete(settings, base), **settings}
    kind = kind_of_settings(settings["model"], settings.get("lexical_dim"))  # type: ignore[arg-type]
    if "stages" in settings:
        stages = _given_stages(settings["stages"], training)
    else:
        stages = [_default_stage(kind.defaults(settings), objectives, training)]
    own = kind.has_own_documents or any(
        isinstance(stage, Mapping) and stage.get("train", "query_encoder") != "query_encoder" for stage in stages
    )
    return {"documents": "student" if own else "frozen", **settings, "stages": stages, "control": None}


def _given_stages(stages: Any, training: Mapping[str, Any]) -> list[Any]:
    if not isinstance(stages, (list, tuple)) or not stages:
        raise UserError("distill: student.stages must be a list of at least one stage; omit it for the default stage.")
    if training:
        raise UserError(f"distill: training.{next(iter(training))}: set it in each of student.stages instead.")
    return [stage.model_dump() if isinstance(stage, StageSettings) else stage for stage in stages]


def _default_stage(defaults: StageDefaults, objectives: Sequence[Any], training: Mapping[str, Any]) -> dict[str, Any]:
    given = dict(training)
    part, texts = given.pop("train", None) or defaults.train, given.pop("texts", {})
    if defaults.temperature is not None:
        objectives = [
            {"name": term, "student_temperature": defaults.temperature} if isinstance(term, str) else term
            for term in objectives
        ]
    # Defaults for a head are far too fast for a whole transformer.
    chosen = WHOLE_TRANSFORMER if part == "both_encoders" and defaults.train == "head" else defaults.training
    return {
        "objectives": list(objectives),
        "train": part,
        "texts": texts,
        "training": {**chosen, **given},
        "regularizers": defaults.regularizers,
    }
