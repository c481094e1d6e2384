"""What a recipe says, typed; unknown keys are refused with the nearest known one."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from retrodistill.core.errors import UserError, unknown
from retrodistill.encoders.names import parse_model_name
from retrodistill.recipes.conversation_settings import ConversationSettings
from retrodistill.recipes.index_settings import IndexSettings
from retrodistill.recipes.order import check_teachers
from retrodistill.recipes.variant_settings import VariantSettings, beside_names, check_variants
from retrodistill.training.list_settings import CURRENT_STUDENT
from retrodistill.training.settings import (
    Settings,
    StageSettings,
    TeacherSettings,
    teacher_members,
)

RERANKERS = ("cross-encoder", "prett", "tk")
STARTS = ("dense", "sparse", "multi-vector", *RERANKERS)
OWN_DOCUMENTS = ("sparse", "multi-vector", *RERANKERS)
TRAINABLE_PARTS = {
    "static": ("query_encoder", "both_encoders"),
    "dense": ("query_encoder", "both_encoders", "lexical"),
    "sparse": ("head", "both_encoders"),
    "multi-vector": ("head", "both_encoders"),
    "cross-encoder": ("both_encoders",),
    "prett": ("head", "both_encoders"),
    "tk": ("head", "both_encoders"),
}
# Names in results.json.
SYSTEMS = ("bm25", "teacher", "exact", "ensemble", "target", "recorded", "control", "opq", "rewrites")


class SplitSettings(Settings):
    """Which queries train and which test.

    Attributes:
        train: A split; ``auto`` takes train, else queries that stand in no split, else none (pseudo-queries only).
        test: The split that is measured, by its judgments. Of a collection without any, a fifth of its queries (300 at
            most) is: agreement and cost, not quality.
    """

    train: str = "auto"
    test: str = "test"


class StudentSettings(VariantSettings):
    """One student; its forms are those of `VariantSettings`.

    Attributes:
        model: ``static`` (a token table made from the space's model), or ``kind:NAME`` to start from: ``dense``;
            ``sparse`` or ``multi-vector``, where NAME may be a model of that kind or a bi-encoder; ``cross-encoder``;
            ``prett`` from a cross-encoder or bi-encoder, ``tk`` from a bi-encoder.
        initialize: How a token table starts. ``fitted`` gives a dense student a linear map behind its layers, solved so
            that its queries come near the space's: for one that ``layers`` cuts.
        tokenizer: Whose tokenizer a token table has, a ``dense:NAME``, where the space is a file of vectors.
        layers: First transformer layers to keep; of all kinds but ``static``. Of a tk student those that give tokens
            their context, 2 by default.
        join: Layers of a prett student that read query and document apart; two thirds of them by default.
        dimension: Width of its vectors, or ``space`` for that of the documents; of a multi-vector student, a token's;
            of a prett or tk student, what is stored of a document's token.
        max_length: Tokens of a text that it reads, of a multi-vector, prett or tk student those of a document, of a
            cross-encoder those of a pair.
        lexical_dim: Width of the lexical half beside a dense student's vector; for stages with train: lexical.
            Sparse students have `lexical_terms` for that.
        queries: How a sparse student encodes queries: by the ``model``, or ``inference-free``, a weight per token.
        expansion: A multi-vector student's queries are filled up to so many tokens with the mask token.
        documents: Who encodes the documents of its index: ``space``, or the ``student`` itself. Sparse and multi-vector
            students encode their own; those that score pairs re-rank BM25's (see `EvaluationSettings.rerank`).
        stages: Its training, in order.
        control: The control beside it: ``untrained`` (as it starts), or ``contrastive`` (the same stages, list
            objectives replaced by InfoNCE on pseudo-queries and their own documents).
    """

    model: str
    initialize: str = "teacher"
    tokenizer: str | None = None
    layers: int | None = Field(default=None, ge=1)
    join: int | None = Field(default=None, ge=0)
    dimension: int | Literal["space"] | None = None
    max_length: int | None = Field(default=None, ge=1)
    lexical_dim: int | None = Field(default=None, ge=1)
    queries: Literal["model", "inference-free"] = "model"
    expansion: int | None = Field(default=None, ge=1)
    documents: Literal["frozen", "student"] = "frozen"
    stages: list[StageSettings] = Field(min_length=1)
    control: Literal["untrained", "contrastive"] | None = "untrained"

    @model_validator(mode="before")
    @classmethod
    def _own_documents(cls, given: Any) -> Any:
        """Students without a dense vector search documents of their own, whether or not the recipe says so."""
        if not isinstance(given, dict) or str(given.get("model")).partition(":")[0] not in OWN_DOCUMENTS:
            return given
        return {"documents": "student", **given}

    @field_validator("model")
    @classmethod
    def _parses(cls, model: str) -> str:
        if model == "static":
            return model
        kind, _, name = model.partition(":")
        if kind not in STARTS or not name:
            names = ", ".join(repr(f"{kind}:NAME") for kind in STARTS)
            raise ValueError(f"a student starts from 'static', {names}, not {model!r}")
        return model

    @field_validator("initialize")
    @classmethod
    def _known(cls, name: str) -> str:
        from retrodistill.students.static import INITIALIZATIONS

        if name not in INITIALIZATIONS:
            raise ValueError(str(unknown("initialization", name, INITIALIZATIONS)))
        return name

    @property
    def kind(self) -> str:
        """``static``, ``dense``, ``sparse``, ``multi-vector``, ``cross-encoder``, ``prett`` or ``tk``."""
        return self.model.partition(":")[0]

    @model_validator(mode="after")
    def _options_fit(self) -> StudentSettings:
        only: dict[str, tuple[str, ...]] = {
            "queries": ("sparse",),
            "expansion": ("multi-vector",),
            "lexical_dim": ("dense",),
        }
        only["dimension"] = ("dense", "multi-vector", "static", "prett", "tk")
        only["join"] = ("prett",)
        for option, kinds in only.items():
            if getattr(self, option) != type(self).model_fields[option].default and self.kind not in kinds:
                if option == "lexical_dim":
                    raise ValueError("a lexical half is for dense students, and all their stages have train: lexical")
                raise ValueError(f"{option} is for {' and '.join(kinds)} students; this one is {self.kind}")
        if self.kind in ("multi-vector", "prett", "tk") and self.dimension == "space":
            raise ValueError(f"a {self.kind} student's dimension is a number: that of a token's vector")
        if self.kind in OWN_DOCUMENTS and self.documents == "frozen":
            raise ValueError(f"a {self.kind} student has no vectors in a dense space; set documents: student")
        return self

    @model_validator(mode="after")
    def _start_fits(self) -> StudentSettings:
        if self.kind == "static" or self.initialize == "teacher":
            return self
        if (self.kind, self.initialize) != ("dense", "fitted") or self.lexical_dim:
            raise ValueError(
                f"initialize: {self.initialize} is not for this student: static ones take any, dense ones without a "
                "lexical half fitted; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _stages_fit(self) -> StudentSettings:
        for stage in self.stages:
            wanted = TRAINABLE_PARTS[self.kind]
            if stage.train not in wanted:
                raise ValueError(
                    f"train: {stage.train} does not train {self.kind} students; set train: {' or '.join(wanted)}"
                )
            if stage.regularizers and self.kind != "sparse":
                raise ValueError(f"regularizers see term weights, and a {self.kind} student has none; leave them out")
            if stage.train == "head" and self.kind == "sparse" and self.queries != "inference-free":
                raise ValueError(
                    "train: head trains sparse students with queries: inference-free; or set train: both_encoders"
                )
            if self.kind in RERANKERS and CURRENT_STUDENT in (stage.candidates.sources or []):
                raise ValueError(f"a {self.kind} student cannot search and proposes no candidates; take bm25, or dense")
            if self.kind in OWN_DOCUMENTS and stage.aligns:
                raise ValueError(f"a {self.kind} student has no embedding to align; take list objectives")
        return self

    @model_validator(mode="after")
    def _forms_fit(self) -> StudentSettings:
        check_variants(self)
        return self

    @model_validator(mode="after")
    def _documents_fit(self) -> StudentSettings:
        moving = [stage.train for stage in self.stages if stage.train != "query_encoder"]
        if self.documents == "frozen" and (moving or self.lexical_dim):
            what = f"a stage with train: {moving[0]}" if moving else "a lexical half"
            raise ValueError(f"{what} moves the student's documents; set documents: student")
        if self.lexical_dim is None and "lexical" in moving:
            raise ValueError(
                "a stage with train: lexical needs a lexical half; set the student's lexical_dim to its width"
            )
        if self.lexical_dim is not None and (set(moving) != {"lexical"} or len(moving) < len(self.stages)):
            raise ValueError("a lexical half is for dense students, and all their stages have train: lexical")
        if self.documents == "student" and any(one.train == "query_encoder" and one.needs_lists for one in self.stages):
            raise ValueError(
                "a list objective with train: query_encoder learns against stored documents, and documents: student "
                "moves them; set train: both_encoders, or documents: frozen"
            )
        return self


class EvaluationSettings(Settings):
    """How systems are measured.

    Attributes:
        depth: Documents retrieved per query; cut to the corpus.
        measures: Measures beside BEIR's, any strings of ir_measures, such as ``RR(rel=2)@10`` or ``Rprec``.
        latency_queries: Test queries whose answering is timed, at most 100; 0 for no cost at all.
        threads: Of torch and FAISS while latency and throughput are measured.
        memory: Measure the highest memory of each system that is served, in a process of its own: some ten seconds
            each.
        examples: Searches shown, teacher beside student, evenly drawn; with 0, none that were won or lost either.
        exhaustive: Search sparse and multi-vector students by the hidden states that train: head stored, without
            building their indexes: the same rankings in a part of the time, with neither latency nor bytes.
        truncations: Dense and static students are measured by so many leading dimensions of their vectors besides, and
            so is the space's own model: systems such as ``student@128`` and ``teacher@128``.
        rerank: Documents of BM25 that a student which scores pairs orders: cross-encoder, prett, tk.
    """

    depth: int = Field(default=1000, ge=10)
    measures: list[str] = Field(default_factory=list)
    latency_queries: int = Field(default=100, ge=0, le=100)
    threads: int = Field(default=1, ge=1)
    memory: bool = True
    examples: int = Field(default=5, ge=0)
    exhaustive: bool = False
    truncations: list[int] = Field(default_factory=list)
    rerank: int = Field(default=100, ge=1)

    @field_validator("measures")
    @classmethod
    def _known_measures(cls, measures: list[str]) -> list[str]:
        from retrodistill.evaluation.measures import parse_measure

        try:
            return [parse_measure(measure).name for measure in measures]
        except UserError as error:
            raise ValueError(str(error)) from error


class Recipe(Settings):
    """A whole job, from collection to report.

    Attributes:
        name: Of the recipe.
        about: A sentence or two for people.
        cost: What a run costs, measured: ``low``, ``medium`` or ``high``, then hardware and time.
        collection: A BEIR folder, ``beir/NAME``, ``ir_datasets:ID``, ``hf:NAME``, or ``demo``.
        split: Training and test queries.
        conversations: Queries that lean on what was said before, in place of the collection's; their rewrites are what
            the teacher is asked. A path, or settings.
        rewrites: Better queries for the teacher, a JSONL of {query_id, text}: expanded, generated, instructed ones.
        document_encoder: The dense model whose documents are indexed and whose space static students search.
        teacher: Who scores lists; one model or several, fused. By default the space's model.
        ensemble: Members of an ensemble that is measured beside the students without teaching them; where the teacher
            has several members, it is that ensemble.
        fusion: How several are fused.
        students: By name; the names become systems in results.json. None in a recipe that learns an index.
        index: How the students' indexes are built.
        evaluation: How systems are measured.
        seed: Of everything that draws.
    """

    name: str
    about: str = ""
    cost: str = ""
    collection: str = "demo"
    split: SplitSettings = SplitSettings()
    conversations: ConversationSettings | None = None
    rewrites: str | None = None
    document_encoder: str = "dense:all-MiniLM-L6-v2"
    teacher: list[TeacherSettings] = Field(default_factory=list)
    ensemble: list[TeacherSettings] = Field(default_factory=list)
    fusion: str = "zscore-per-query"
    students: dict[str, StudentSettings] = Field(default_factory=dict)
    index: IndexSettings = IndexSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    seed: int = 0

    @field_validator("document_encoder")
    @classmethod
    def _is_dense(cls, space: str) -> str:
        if parse_model_name_or_error(space).kind not in ("dense", "static", "vectors"):
            raise ValueError(f"the document encoder is a 'dense:NAME' or 'vectors:PATH', not {space!r}")
        return space

    @field_validator("teacher", "ensemble", mode="before")
    @classmethod
    def _members(cls, given: Any) -> Any:
        return teacher_members(given)

    @field_validator("conversations", mode="before")
    @classmethod
    def _path(cls, given: Any) -> Any:
        return {"path": given} if isinstance(given, str) else given

    @field_validator("fusion")
    @classmethod
    def _fusion(cls, method: str) -> str:
        from retrodistill.runs.fusion import METHODS

        if method not in METHODS:
            raise ValueError(str(unknown("fusion method", method, METHODS)))
        return method

    @model_validator(mode="after")
    def _makes_something(self) -> Recipe:
        if bool(self.students) == bool(self.index.learn):
            raise ValueError("give students, or index.learn to compress the space's documents: one of the two")
        return self

    @model_validator(mode="after")
    def _states_are_stored(self) -> Recipe:
        for name, student in self.students.items():
            lacking = student.kind in ("sparse", "multi-vector") and student.stages[-1].train != "head"
            if self.evaluation.exhaustive and lacking:
                raise ValueError(f"evaluation.exhaustive reads what train: head stored, and {name} ends with another")
        return self

    @model_validator(mode="after")
    def _truncations_fit(self) -> Recipe:
        cuts = self.evaluation.truncations
        if len(set(cuts)) < len(cuts) or min(cuts, default=1) < 1:
            raise ValueError("evaluation.truncations are numbers of dimensions, from 1, each named once")
        if cuts and not any(student.kind in ("static", "dense") for student in self.students.values()):
            raise ValueError("evaluation.truncations cut vectors of dense and static students, and there is none")
        return self

    @model_validator(mode="after")
    def _queries_fit(self) -> Recipe:
        if self.conversations and self.rewrites:
            raise ValueError("conversations bring rewrites of their own; leave rewrites out")
        return self

    @model_validator(mode="after")
    def _teachers_fit(self) -> Recipe:
        check_teachers(self)
        return self

    @field_validator("students")
    @classmethod
    def _free_names(cls, students: dict[str, StudentSettings]) -> dict[str, StudentSettings]:
        others = {f"{name}-control" for name, student in students.items() if student.control}
        others |= {name for names in beside_names(students).values() for name in names}
        for name in students:
            if name in SYSTEMS or name in others:
                raise ValueError(f"a student cannot be called {name!r}, the name of another system")
            if not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", name):
                raise ValueError(f"a student cannot be called {name!r}; its name is a folder's: letters, digits, . + -")
        return students


def parse_model_name_or_error(text: str) -> Any:
    """As `parse_model_name`, raising ValueError, which pydantic collects."""
    try:
        return parse_model_name(text)
    except UserError as error:
        raise ValueError(str(error)) from error
