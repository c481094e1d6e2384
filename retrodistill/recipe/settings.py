"""What a recipe says, typed; unknown keys are refused with the nearest known one."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from retrodistill.errors import UserError, unknown
from retrodistill.indexes.building import FaissSettings
from retrodistill.models.names import parse_model_name
from retrodistill.quantisers.settings import QuantiserSettings
from retrodistill.students.static import INITIALISATIONS
from retrodistill.training.settings import Settings, StageSettings, TextSettings

STARTS = ("dense", "sparse", "multi-vector", "cross-encoder")
OWN_DOCUMENTS = ("sparse", "multi-vector", "cross-encoder")
TOWERS = {
    "static": ("query", "both"),
    "dense": ("query", "both", "lexical"),
    "sparse": ("head", "both"),
    "multi-vector": ("head", "both"),
    "cross-encoder": ("both",),
}
SYSTEMS = ("bm25", "teacher", "exact", "ensemble", "target", "recorded", "control", "opq")  # names in results.json


class SplitSettings(Settings):
    """Which queries train and which test.

    Attributes:
        train: A split; ``auto`` takes train, else queries that stand in no split, else none (pseudo-queries only).
        test: The split that is measured, by its judgements.
    """

    train: str = "auto"
    test: str = "test"


class TeacherSettings(Settings):
    """One member of the teacher.

    Attributes:
        model: ``kind:name``.
        weight: In the fusion.
    """

    model: str
    weight: float = Field(default=1.0, ge=0)

    @field_validator("model")
    @classmethod
    def _parses(cls, model: str) -> str:
        return _model_name(model)


class StudentSettings(Settings):
    """One student.

    Attributes:
        model: ``static`` (a token table made from the space's model), or ``kind:NAME`` to start from: ``dense``;
            ``sparse`` or ``multi-vector``, where NAME may be a model of that kind or a bi-encoder; ``cross-encoder``.
        initialise: How a token table starts.
        tokenizer: Whose tokenizer a token table has, a ``dense:NAME``, where the space is a file of vectors.
        layers: First transformer layers to keep; of all kinds but ``static``.
        dimension: Width of its vectors, or ``space`` for that of the documents; of a multi-vector student, a token's.
        max_length: Tokens of a text that it reads, of a multi-vector student those of a document, of a cross-encoder
            those of a pair.
        lexical: Width of a lexical half that is put beside a dense student's vector; for stages with towers: lexical.
        queries: How a sparse student encodes queries: by the ``model``, or ``inference-free``, a weight per token.
        expansion: A multi-vector student's queries are filled up to so many tokens with the mask token.
        documents: Who encodes the documents of its index: ``space``, or the ``student`` itself. Sparse and multi-vector
            students encode their own.
        stages: Its training, in order.
        control: The control beside it: ``untrained`` (as it starts), or ``contrastive`` (the same stages, list
            objectives replaced by InfoNCE on pseudo-queries and their own documents).
    """

    model: str
    initialise: str = "teacher"
    tokenizer: str | None = None
    layers: int | None = Field(default=None, ge=1)
    dimension: int | Literal["space"] | None = None
    max_length: int | None = Field(default=None, ge=1)
    lexical: int | None = Field(default=None, ge=1)
    queries: Literal["model", "inference-free"] = "model"
    expansion: int | None = Field(default=None, ge=1)
    documents: Literal["space", "student"] = "space"
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
        if parse_model_name_or_error(model).kind not in STARTS:
            names = ", ".join(repr(f"{kind}:NAME") for kind in STARTS)
            raise ValueError(f"a student starts from 'static', {names}, not {model!r}")
        return model

    @field_validator("initialise")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in INITIALISATIONS:
            raise ValueError(str(unknown("initialisation", name, INITIALISATIONS)))
        return name

    @property
    def kind(self) -> str:
        """``static``, ``dense``, ``sparse``, ``multi-vector`` or ``cross-encoder``."""
        return self.model.partition(":")[0]

    @model_validator(mode="after")
    def _options_fit(self) -> StudentSettings:
        only: dict[str, tuple[str, ...]] = {
            "queries": ("sparse",),
            "expansion": ("multi-vector",),
            "lexical": ("dense",),
        }
        only["dimension"] = ("dense", "multi-vector", "static")
        for option, kinds in only.items():
            if getattr(self, option) != type(self).model_fields[option].default and self.kind not in kinds:
                if option == "lexical":
                    raise ValueError("a lexical half is for dense students, and all their stages have towers: lexical")
                raise ValueError(f"{option} is for {' and '.join(kinds)} students; this one is {self.kind}")
        if self.kind == "multi-vector" and self.dimension == "space":
            raise ValueError("a multi-vector student's dimension is a number: that of a token's vector")
        if self.kind in OWN_DOCUMENTS and self.documents == "space":
            raise ValueError(f"a {self.kind} student has no vectors in a dense space; set documents: student")
        return self

    @model_validator(mode="after")
    def _stages_fit(self) -> StudentSettings:
        for stage in self.stages:
            wanted = TOWERS[self.kind]
            if stage.towers not in wanted:
                raise ValueError(
                    f"towers: {stage.towers} does not train {self.kind} students; set towers: {' or '.join(wanted)}"
                )
            if stage.regularisers and self.kind != "sparse":
                raise ValueError(f"regularisers see term weights, and a {self.kind} student has none; leave them out")
            if stage.towers == "head" and self.kind == "sparse" and self.queries != "inference-free":
                raise ValueError(
                    "towers: head trains sparse students with queries: inference-free; or set towers: both"
                )
            if self.kind in OWN_DOCUMENTS and stage.aligns:
                raise ValueError(f"a {self.kind} student has no embedding to align; take list objectives")
        return self

    @model_validator(mode="after")
    def _documents_fit(self) -> StudentSettings:
        moving = [stage.towers for stage in self.stages if stage.towers != "query"]
        if self.documents == "space" and (moving or self.lexical):
            what = f"a stage with towers: {moving[0]}" if moving else "a lexical half"
            raise ValueError(f"{what} moves the student's documents; set documents: student")
        if self.lexical is None and "lexical" in moving:
            raise ValueError(
                "a stage with towers: lexical needs a lexical half; set the student's lexical to its width"
            )
        if self.lexical is not None and (set(moving) != {"lexical"} or len(moving) < len(self.stages)):
            raise ValueError("a lexical half is for dense students, and all their stages have towers: lexical")
        if self.documents == "student" and any(one.towers == "query" and one.needs_lists for one in self.stages):
            raise ValueError(
                "a list objective with towers: query learns against stored documents, which documents: student moves "
                "away; set towers: both, or documents: space"
            )
        return self


class IndexSettings(Settings):
    """How the index is built.

    Attributes:
        factory: A FAISS factory string, or ``auto``: chosen from the number of documents, `bytes` and `recall`.
        parameters: FAISS search parameters, e.g. ``nprobe=16``.
        truncate: Leading dimensions of the vectors to keep (Matryoshka).
        bytes: Of a document's code, for ``auto`` and for `learn`, where it chooses the factory.
        recall: Share of the exact ten neighbours that ``auto`` should find.
        learn: Learn the quantiser from a teacher (Distill-VQ): in a recipe without students, whose systems are
            ``exact``, ``opq``, ``distilled`` and ``distilled-queries``.
        texts: What `learn` takes for queries.
        encoder: A stage that trains the query encoder against the learned codes, for ``distilled-queries``; without it,
            a linear map of the queries is learned beside the codes.
    """

    factory: str = "Flat"
    parameters: str | None = None
    truncate: int | None = Field(default=None, ge=1)
    bytes: int | None = Field(default=None, ge=1)
    recall: float | None = Field(default=None, gt=0, le=1)
    learn: QuantiserSettings | None = None
    texts: TextSettings = TextSettings()
    encoder: StageSettings | None = None

    @model_validator(mode="after")
    def _encoder_fits(self) -> IndexSettings:
        if self.encoder is None:
            return self
        if self.learn is None:
            raise ValueError("encoder trains queries for a learned index; set learn")
        if self.encoder.towers != "query" or not self.encoder.needs_lists:
            raise ValueError("encoder is a stage with towers: query and a list objective")
        return self

    @property
    def faiss(self) -> FaissSettings:
        """How vectors are indexed where no quantiser is learned; bytes or recall alone mean ``auto``."""
        auto = self.factory == "Flat" and (self.bytes or self.recall)
        return FaissSettings(
            factory="auto" if auto else self.factory,
            parameters=self.parameters,
            truncate=self.truncate,
            bytes=self.bytes,
            recall=self.recall,
        )


class EvaluationSettings(Settings):
    """How systems are measured.

    Attributes:
        depth: Documents retrieved per query; cut to the corpus.
        latency_queries: Test queries whose answering is timed; 0 for none.
        examples: Searches shown, teacher beside student.
    """

    depth: int = Field(default=1000, ge=10)
    latency_queries: int = Field(default=100, ge=0)
    examples: int = Field(default=5, ge=0)


class Recipe(Settings):
    """A whole job, from collection to report.

    Attributes:
        name: Of the recipe.
        about: A sentence or two for people.
        collection: What `load_collection` takes.
        split: Training and test queries.
        space: The dense model whose documents are indexed and whose space static students search.
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
    collection: str = "demo"
    split: SplitSettings = SplitSettings()
    space: str = "dense:all-MiniLM-L6-v2"
    teacher: list[TeacherSettings] = Field(default_factory=list)
    ensemble: list[TeacherSettings] = Field(default_factory=list)
    fusion: str = "zscore-per-query"
    students: dict[str, StudentSettings] = Field(default_factory=dict)
    index: IndexSettings = IndexSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    seed: int = 0

    @field_validator("space")
    @classmethod
    def _is_dense(cls, space: str) -> str:
        if parse_model_name_or_error(space).kind not in ("dense", "static", "vectors"):
            raise ValueError(f"the space is a 'dense:NAME' or 'vectors:PATH', not {space!r}")
        return space

    @field_validator("teacher", "ensemble", mode="before")
    @classmethod
    def _members(cls, given: Any) -> Any:
        members = [given] if isinstance(given, (str, dict)) else given or []
        if not isinstance(members, (list, tuple)):
            return members  # pydantic says what is wanted
        return [{"model": member} if isinstance(member, str) else member for member in members]

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

    @field_validator("students")
    @classmethod
    def _free_names(cls, students: dict[str, StudentSettings]) -> dict[str, StudentSettings]:
        controls = {f"{name}-control" for name, student in students.items() if student.control}
        for name in students:
            if name in SYSTEMS or name in controls:
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


def _model_name(text: str) -> str:
    return str(parse_model_name_or_error(text))
