"""A whole job as a recipe writes it."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from retrodistill.core.settings import OneOf, Settings, value_errors
from retrodistill.encoders.contract import EncodingSettings
from retrodistill.encoders.names import parse_model_name
from retrodistill.indexes.registry import IndexOptions
from retrodistill.quantizers.settings import QuantizerSettings
from retrodistill.recipes.student_settings import StudentSettings, check_teachers, comparison_names
from retrodistill.students.registry import kind_of_settings
from retrodistill.training.settings import StageSettings, Teachers, TeacherSettings, TextSettings


class IndexSettings(IndexOptions):
    """How the index is built.

    Attributes:
        learn: Learn the quantizer from a teacher (Distill-VQ): in a recipe without students, whose systems are
            ``exact``, ``opq``, ``distilled`` and ``distilled-queries``. `bytes` or `factory` sets the size of a code.
        texts: What `learn` takes for queries.
        encoder: A stage that trains the query encoder against the learned codes, for ``distilled-queries``; without it,
            a linear map of the queries is learned beside the codes.
    """

    learn: QuantizerSettings | None = None
    """Learn the quantizer from a teacher (Distill-VQ), in a recipe without students. Its systems are `exact`, `opq`,
    `distilled`, and `distilled-queries`."""
    texts: TextSettings = TextSettings()
    """The texts that `learn` uses as queries."""
    encoder: StageSettings | None = None
    """A stage that trains the query encoder against the learned codes, for `distilled-queries`. Without it, a linear
    map of the queries is learned together with the codes."""

    @model_validator(mode="after")
    def _encoder_fits(self) -> IndexSettings:
        if self.encoder is None:
            return self
        if self.learn is None:
            raise ValueError("encoder trains queries for a learned index; set learn")
        if self.encoder.train != "query_encoder" or not self.encoder.needs_lists:
            raise ValueError("encoder is a stage with train: query_encoder and a list objective")
        return self


__all__ = [
    "SYSTEMS",
    "ConversationSettings",
    "EvaluationSettings",
    "IndexSettings",
    "Recipe",
    "SplitSettings",
    "StudentSettings",
    "TeacherSettings",
]

# Names in results.json.
SYSTEMS = ("bm25", "teacher", "exact", "ensemble", "target", "recorded", "control", "opq", "rewrites")


class SplitSettings(Settings):
    """The queries that train and those that test."""

    train: str = "auto"
    """A split. `auto` takes train, else the queries that are in no split, else none (only pseudo-queries)."""
    test: str = "test"
    """The split whose judgments are used. Without any judgments in the collection: a fifth of its queries, at most 300,
    for agreement and cost, not quality."""


class ConversationSettings(Settings):
    """Conversations whose raw queries the students get, while the teacher gets their rewrites (DiSCo, SIGIR 2025)."""

    path: str
    """A JSONL of turns (see `read_turns` of `retrodistill.data.conversations`). `made` chains the collection's own
    queries to conversations, which are not conversations of people."""
    history: int | None = Field(default=None, ge=0)
    """Earlier turns that a query keeps; all by default."""
    responses: bool = True
    """Whether answers are part of the history."""
    teacher: Literal["rewrites", "raw"] = "rewrites"
    """What the teacher gets: `rewrites`; or `raw`, the conversations, which is the control."""


class EvaluationSettings(Settings):
    """How systems are measured."""

    depth: int = Field(default=1000, ge=10)
    """Documents retrieved per query, at most the corpus."""
    measures: list[str] = Field(default_factory=list)
    """Measures besides BEIR's: any strings of ir_measures, e.g. `RR(rel=2)@10` or `Rprec`."""
    latency_queries: int = Field(default=100, ge=0, le=100)
    """Test queries whose answers are timed; 0 measures no cost at all."""
    threads: int = Field(default=1, ge=1)
    """Threads of torch and FAISS while latency and throughput are measured."""
    memory: bool = True
    """Whether the peak memory of each served system is measured, in a process of its own: about ten seconds each."""
    examples: int = Field(default=5, ge=0)
    """Sample searches to show, teacher next to student; with 0, no queries won or lost, either."""
    exhaustive: bool = False
    """Search sparse and multi-vector students by the hidden states that `train: head` stored, without building their
    indexes: the same rankings in a fraction of the time, without latency or bytes."""
    truncations: list[int] = Field(default_factory=list)
    """Leading dimensions at which dense and static students, and the document encoder, are measured, too: systems such
    as `student@128` and `teacher@128`."""
    rerank: int = Field(default=100, ge=1)
    """Documents of BM25 that re-rankers order: cross-encoder, prett, and tk students."""

    @field_validator("measures")
    @classmethod
    def _known_measures(cls, measures: list[str]) -> list[str]:
        from retrodistill.evaluation.measures import parse_measure

        with value_errors():
            return [parse_measure(measure).name for measure in measures]


def _path(given: Any) -> Any:
    return {"path": given} if isinstance(given, str) else given


class Recipe(Settings):
    """A whole job, from collection to report."""

    name: str
    """Name of the recipe."""
    about: str = ""
    """A sentence or two for people."""
    cost: str = ""
    """What a run costs, as measured: `low`, `medium`, or `high`, then hardware and time."""
    collection: str = "demo"
    """A BEIR folder, `beir/NAME`, `ir_datasets:ID`, `hf:NAME`, or `demo`."""
    split: SplitSettings = SplitSettings()
    """Training and test queries."""
    conversations: Annotated[
        ConversationSettings | None, BeforeValidator(_path, json_schema_input_type=str | ConversationSettings | None)
    ] = None
    """Conversational queries in place of the collection's; the teacher gets their rewrites. A path, or settings."""
    rewrites: str | None = None
    """Better queries for the teacher (expanded, generated, or instructed): a JSONL of {query_id, text}."""
    document_encoder: str = "dense:all-MiniLM-L6-v2"
    """The dense model whose document vectors are indexed, and which static and dense students search."""
    teacher: Teachers = Field(default_factory=list)
    """The teacher of every stage that names none: one model, or several, which are fused. By default, the document
    encoder."""
    ensemble: Teachers = Field(default_factory=list)
    """Members of an ensemble that is measured but does not teach. If the teacher has several members, it is measured as
    the ensemble."""
    fusion: Annotated[str, OneOf("fusion method", "retrodistill.runs.fusion:METHODS")] = "zscore-per-query"
    """How the scores of several models are fused."""
    students: dict[str, StudentSettings] = Field(default_factory=dict)
    """Students by name; the names become systems in results.json. A recipe that learns an index has none."""
    index: IndexSettings = IndexSettings()
    """How the students' indexes are built."""
    encoding: EncodingSettings = EncodingSettings()
    """How models encode texts and score pairs, training apart."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """How systems are measured."""
    seed: int = 0
    """Seed of everything random."""

    @field_validator("document_encoder")
    @classmethod
    def _is_dense(cls, name: str) -> str:
        with value_errors():
            kind = parse_model_name(name).kind
        if kind not in ("dense", "static", "vectors"):
            raise ValueError(f"the document encoder is a 'dense:NAME' or 'vectors:PATH', not {name!r}")
        return name

    @field_validator("students")
    @classmethod
    def _free_names(cls, students: dict[str, StudentSettings]) -> dict[str, StudentSettings]:
        others = {f"{name}-control" for name, student in students.items() if student.control}
        others |= {name for names in comparison_names(students).values() for name in names}
        for name in students:
            if name in SYSTEMS or name in others:
                raise ValueError(f"a student cannot be called {name!r}, the name of another system")
            if not re.fullmatch(r"[\w.+-]*\w[\w.+-]*", name):
                raise ValueError(f"a student cannot be called {name!r}; its name is a folder's: letters, digits, . + -")
        return students

    @model_validator(mode="after")
    def _keys_fit(self) -> Recipe:
        if bool(self.students) == bool(self.index.learn):
            raise ValueError("give students, or index.learn to compress the space's documents: one of the two")
        if self.conversations and self.rewrites:
            raise ValueError("conversations have rewrites of their own; leave rewrites out")
        self._check_measurement()
        check_teachers(self)
        return self

    def _check_measurement(self) -> None:
        cuts = self.evaluation.truncations
        kinds = {name: kind_of_settings(student.model, student.lexical_dim) for name, student in self.students.items()}
        if len(set(cuts)) < len(cuts) or min(cuts, default=1) < 1:
            raise ValueError("evaluation.truncations are numbers of dimensions, from 1, each named once")
        if cuts and all(kind.has_own_documents for kind in kinds.values()):
            raise ValueError("evaluation.truncations cut vectors of dense and static students, and there is none")
        for name, kind in kinds.items():
            stores_states = self.students[name].stages[-1].train == "head"
            if self.evaluation.exhaustive and kind.has_own_documents and kind.can_search and not stores_states:
                raise ValueError(f"evaluation.exhaustive reads what train: head stored, and {name} ends with another")
