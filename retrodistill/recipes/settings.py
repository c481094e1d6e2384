"""A whole job as a recipe writes it."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from retrodistill.core.errors import UserError
from retrodistill.core.names import check_file_name
from retrodistill.core.settings import OneOf, Settings, value_errors
from retrodistill.core.spending import SpendingSettings
from retrodistill.data.collection import SameId
from retrodistill.data.conversations import EXPANSION_WORDS
from retrodistill.data.leaks import LeakRule
from retrodistill.data.parents import PassageSettings, passages_option
from retrodistill.encoders.any_encoder import DENSE
from retrodistill.encoders.contract import EncodingSettings
from retrodistill.encoders.names import parse_model_name
from retrodistill.indexes.registry import IndexOptions
from retrodistill.quantizers.settings import QuantizerSettings
from retrodistill.recipes.student_settings import StudentSettings, comparison_names, training_order
from retrodistill.training.settings import StageSettings, Teachers, TextSettings, is_student

# Names in results.json that a student cannot have.
RESERVED_NAMES = ("bm25", "teacher", "exact", "ensemble", "target", "recorded", "control", "opq", "itq", "rewrites")


class IndexSettings(IndexOptions):
    """How the index is built."""

    learn: QuantizerSettings | None = None
    """Learn the quantizer from a teacher (Distill-VQ), in a recipe without students. The systems measured are `exact`,
    `opq` (or `itq`, for bits), `distilled` and `distilled-queries`. `bytes` and `bits`, or `factory`, set the size of a
    code."""
    texts: TextSettings = TextSettings()
    """The texts that `learn` uses as queries."""
    encoder: StageSettings | None = None
    """A stage that trains the query encoder against the learned codes, for `distilled-queries`. Without it, a linear
    map of the queries is learned together with the codes."""

    @model_validator(mode="after")
    def _code_fits(self) -> IndexSettings:
        if self.learn is not None and self.bits is not None:
            if self.factory not in ("Flat", "auto"):
                raise ValueError(f"bits goes with bytes; factory {self.factory} already says how many a code has")
            if self.bits not in (1, 4, 8):
                raise ValueError(f"bits: {self.bits}: codes that are learned have 1, 4, or 8 bits")
        return self

    @model_validator(mode="after")
    def _encoder_fits(self) -> IndexSettings:
        if self.encoder is None:
            return self
        if self.learn is None:
            raise ValueError("encoder trains queries for a learned index; set learn")
        if self.encoder.train != "query_encoder" or not self.encoder.needs_lists:
            raise ValueError("encoder must be a stage with train: query_encoder and a list objective")
        return self


class SplitSettings(Settings):
    """The queries for training and for testing."""

    train: str = "auto"
    """The split for training. `auto` uses the split train; if there is none, the queries that are in no split; if there
    are none, only pseudo-queries."""
    test: str = "test"
    """The split for testing. If the collection has no judgments at all, a fifth of its queries, at most 300, are held
    out to measure agreement and cost, but not quality."""
    held_out: bool = Field(default=False, exclude_if=lambda given: not given)
    """Measure on training queries in the place of the split for testing: a fifth, at most 300, which are held out from
    training. For choosing settings, as `retrodistill tune` does."""
    leaks: LeakRule = "near"
    """What is left out of training and tuning. `near`: queries and texts of documents whose words have a Jaccard
    similarity of at least .6 with those of a test query. `exact`: those that equal one, case and punctuation aside."""


QueryVersion = Literal["rewrites", "expansions", "utterances", "raw"]


class ConversationSettings(Settings):
    """Conversations: students get the raw queries, while the teacher gets their rewrites (DiSCo, SIGIR 2025)."""

    path: str
    """A JSONL file of turns, as `read_turns` of `retrodistill.data.conversations` reads it, or `made`, which chains the
    collection's own queries into artificial conversations."""
    history: int | None = Field(default=None, ge=0)
    """Number of earlier turns that a query includes; all by default."""
    responses: bool = True
    """Whether the history includes the responses."""
    teacher: list[QueryVersion] = Field(default=["rewrites"], min_length=1)
    """What the teacher gets: the `rewrites`; `expansions`, the utterances with the most telling words of the user's
    earlier ones, which need no rewrites; `utterances` alone; or, as a control, the `raw` conversations. The scores of
    several are fused, and the first also finds the candidates."""
    expansion_words: int = Field(default=EXPANSION_WORDS, ge=1)
    """Most words that `expansions` add."""

    @field_validator("teacher", mode="before")
    @classmethod
    def _one_or_several(cls, given: Any) -> Any:
        return [given] if isinstance(given, str) else given

    @field_validator("teacher")
    @classmethod
    def _each_once(cls, given: list[QueryVersion]) -> list[QueryVersion]:
        if len(set(given)) < len(given):
            raise ValueError("names a version of the queries twice; name each once")
        return given


class EvaluationSettings(Settings):
    """How systems are measured."""

    depth: int = Field(default=1000, ge=10)
    """Number of documents retrieved per query, at most the size of the corpus."""
    measures: list[str] = Field(default_factory=list)
    """Measures besides those of BEIR: any strings of ir_measures, such as `RR(rel=2)@10` or `Rprec`."""
    same_id: SameId = "auto"
    """Whether the document with a query's ID is left out of the query's results. `auto`: where it is the query itself,
    with the same text and not judged for it, as in ArguAna and Quora. `drop`: always, as in beir. `keep`: never."""
    latency_queries: int = Field(default=100, ge=0, le=100)
    """Number of test queries that are timed; 0 turns off all cost measurements."""
    threads: int = Field(default=1, ge=1)
    """Number of threads for torch and FAISS while latency and throughput are measured."""
    memory: bool = True
    """Whether to measure the peak memory of each served system, in a separate process that takes about ten seconds."""
    examples: int = Field(default=5, ge=0)
    """Number of sample searches to show, teacher next to student; with 0, no queries won or lost are shown either."""
    exhaustive: bool = False
    """Search sparse and multi-vector students through the hidden states that `train: head` stored, without building
    indexes: the rankings are the same and take a fraction of the time, but latency and bytes are not measured."""
    truncations: list[int] = Field(default_factory=list)
    """Numbers of leading dimensions at which dense and static students and the document encoder are also measured, as
    systems such as `student@128` and `teacher@128`."""
    rerank: int = Field(default=100, ge=1)
    """Number of BM25 documents that re-rankers order: cross-encoder, prett and tk students."""

    @field_validator("measures")
    @classmethod
    def _known_measures(cls, measures: list[str]) -> list[str]:
        from retrodistill.evaluation.measures import parse_measure

        with value_errors():
            return [parse_measure(measure).name for measure in measures]


def _path(given: Any) -> Any:
    return {"path": given} if isinstance(given, str) else given


def _passages(given: Any) -> Any:
    with value_errors():
        return passages_option(given)


class Recipe(Settings):
    """A whole job, from collection to report."""

    name: str
    """Name of the recipe."""
    about: str = ""
    """One or two sentences that describe the recipe."""
    cost: str = ""
    """Measured cost of a run: `low`, `medium` or `high`, followed by hardware and time."""
    collection: str = "demo"
    """A BEIR folder, `beir/NAME`, `ir_datasets:ID`, `hf:NAME`, or `demo`."""
    passages: Annotated[
        PassageSettings | None, BeforeValidator(_passages, json_schema_input_type=str | PassageSettings | None)
    ] = None
    """Long documents are cut into passages, which are taught, scored, and indexed; results are of documents. Settings,
    or `WORDS,OVERLAP`. Without it, encoders read the beginning of a long document."""
    split: SplitSettings = SplitSettings()
    """The queries for training and for testing."""
    conversations: Annotated[
        ConversationSettings | None, BeforeValidator(_path, json_schema_input_type=str | ConversationSettings | None)
    ] = None
    """Conversational queries that replace the collection's; the teacher gets their rewrites. A path, or settings."""
    rewrites: str | None = None
    """Better queries for the teacher (expanded, generated or with instructions): a JSONL file of {query_id, text}."""
    parallel: str | None = None
    """Texts with translations, for students in other languages: JSONL of {source, translation}, TSV, CSV, or Parquet.
    Every stage learns both, and the teacher reads the source, so that `leaf` brings the student's vectors of both to
    the teacher's vector of the source."""
    document_encoder: str = "dense:all-MiniLM-L6-v2"
    """The dense model whose document vectors are indexed and searched by static and dense students."""
    teacher: Teachers = Field(default_factory=list)
    """The teacher of every stage that does not name its own: one model, or several that are fused. By default, the
    document encoder."""
    ensemble: Teachers = Field(default_factory=list)
    """Members of an ensemble that is measured but does not teach. A teacher with several members is always measured as
    the ensemble."""
    fusion: Annotated[str, OneOf("fusion method", "retrodistill.runs.fusion:METHODS")] = "zscore-per-query"
    """How the scores of several models are fused."""
    bm25: str | None = None
    """The setting of BM25 wherever the recipe says `bm25` and where it is used by default (the baseline, candidates,
    what re-rankers order): a language such as `german`, `auto`, `characters`, or a model whose tokenizer makes the
    terms, as in the name `bm25:german`. By default, English."""
    students: dict[str, StudentSettings] = Field(default_factory=dict)
    """Students by name; the names are those of the systems in results.json. A recipe that learns an index has none."""
    index: IndexSettings = IndexSettings()
    """How the students' indexes are built."""
    encoding: EncodingSettings = EncodingSettings()
    """How models encode texts and score pairs, except in training."""
    spending: SpendingSettings = SpendingSettings()
    """Limits on what models behind an API cost."""
    evaluation: EvaluationSettings = EvaluationSettings()
    """How systems are measured."""
    tracking: list[Annotated[str, OneOf("tracker", "retrodistill.training.tracking:TRACKERS")]] = Field(
        default_factory=list
    )
    """Where losses, monitors, and results are logged: `tensorboard`, `wandb`, `mlflow`, `trackio`; install what you
    name. What is trained does not depend on it, so that a finished job can be run again with it."""
    trust_remote_code: list[str] = Field(default_factory=list)
    """Models that bring their own code, which the recipe needs. This is a statement: whoever runs the recipe has to
    allow each of them by name, with the option `--trust-remote-code NAME`, in Python, or by an environment variable."""
    seed: int = 0
    """Seed of all random draws."""

    @field_validator("document_encoder")
    @classmethod
    def _is_dense(cls, name: str) -> str:
        with value_errors():
            kind = parse_model_name(name).kind
        if kind not in DENSE:
            raise ValueError(
                "the document encoder must be a 'dense:NAME', 'vectors:PATH', 'embeddings-api:FILE' or "
                f"'concat:dense:A+dense:B', not {name!r}"
            )
        return name

    @field_validator("students")
    @classmethod
    def _free_names(cls, students: dict[str, StudentSettings]) -> dict[str, StudentSettings]:
        others = {f"{name}-control" for name, student in students.items() if student.control}
        others |= {name for names in comparison_names(students).values() for name in names}
        for name in students:
            if name in RESERVED_NAMES or name in others:
                raise ValueError(f"a student cannot be called {name!r}, the name of another system")
            with value_errors():
                check_file_name(name, "a student")
            if not re.fullmatch(r"[\w.+-]+", name):
                raise ValueError(f"a student cannot be called {name!r}; use letters, digits, . + - _")
        folded = [name.casefold() for name in students]
        if twice := next((name for name in students if folded.count(name.casefold()) > 1), None):
            raise ValueError(
                f"another student is called {twice!r} but for capitals, and some systems take them for one"
            )
        return students

    @model_validator(mode="after")
    def _keys_fit(self) -> Recipe:
        if bool(self.students) == bool(self.index.learn):
            raise ValueError("give either students, or index.learn to compress the documents' vectors")
        if self.conversations and self.rewrites:
            raise ValueError("conversations come with their own rewrites; remove rewrites")
        self._check_measurement()
        self._check_teachers()
        return self

    def _check_measurement(self) -> None:
        cuts = self.evaluation.truncations
        if len(set(cuts)) < len(cuts) or min(cuts, default=1) < 1:
            raise ValueError("evaluation.truncations must be distinct numbers of dimensions, from 1")
        if cuts and all(student.kind.has_own_documents for student in self.students.values()):
            raise ValueError("evaluation.truncations needs a dense or static student, and there is none")
        for name, student in self.students.items():
            needs_states = student.kind.has_own_documents and student.kind.can_search
            if self.evaluation.exhaustive and needs_states and student.stages[-1].train != "head":
                raise ValueError(f"evaluation.exhaustive reads what train: head stored; {name} must end with that")

    def _check_teachers(self) -> None:
        if any(is_student(member.model) for member in (*self.teacher, *self.ensemble)):
            raise ValueError("a student cannot be the recipe's teacher; name it in a stage's teacher")
        training_order(self.students)
        for stage in (stage for student in self.students.values() for stage in student.stages):
            self._check_filter(stage)
            if stage.needs("teacher_widths") and not self.document_encoder.startswith("concat:"):
                raise ValueError(
                    "teacher-dropping needs several teachers; set document_encoder to concat:KIND:NAME+KIND:NAME, not "
                    f"{self.document_encoder}"
                )
            if stage.judges_by_ensemble and not stage.teacher and not self.ensemble:
                raise ValueError(
                    "selection.positives: ensemble needs a judge besides the stage's own teacher; give the stage "
                    "another teacher, or the recipe an ensemble"
                )

    def _check_filter(self, stage: StageSettings) -> None:
        given = stage.candidates.filter
        if given is None or stage.labels != "scores":
            return
        versions = len(self.conversations.teacher) if self.conversations else 1
        models = [member.model for member in stage.teacher or self.teacher]
        kind = given.without_meaning(models * versions, self.fusion)
        if kind is not None:
            raise ValueError(
                f"candidates.filter.relative is a share, which has no meaning for {kind}; set candidates.filter to a "
                "margin, or labels: sigmoid, or fusion: minmax"
            )


def check_truncations(recipe: Recipe, width: int) -> None:
    """Refuse truncations beyond the `width` dimensions of the document encoder's vectors; the error names the first."""
    given = [("evaluation.truncations", cut) for cut in recipe.evaluation.truncations]
    for name, student in recipe.students.items():
        if student.documents == "frozen":
            given += [(f"{name}: matryoshka", cut) for stage in student.stages for cut in stage.matryoshka]
    if given and parse_model_name(recipe.document_encoder).kind == "concat":
        raise UserError(
            f"{given[0][0]}: leading dimensions of {recipe.document_encoder} are those of its first member; leave that "
            "out, and make vectors smaller by index.factory, such as PCA384,Flat."
        )
    for key, cut in given:
        if not 1 <= cut <= width:
            raise UserError(
                f"{key}: {cut} dimensions, but vectors by {recipe.document_encoder} have {width}; use 1 to {width}."
            )
