"""The content of results.json: typed records, checked when they are made and when they are read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from retrodistill.core.errors import UserError, unknown

Role = Literal["baseline", "teacher", "control", "student"]
ROLES: tuple[str, ...] = get_args(Role)
REWRITES = "rewrites"  # the first student on rewritten test queries, as teachers get them: not a competitor
COMPARISON_KEYS = ("a", "b", "measure", "difference", "interval", "p")
CURVE_KEYS = ("losses", "monitors")
POINT_KEYS = ("step", "loss", "agreement", "mean_cosine")


def _percentiles(value: dict[str, float]) -> dict[str, float]:
    if not {"p50", "p95"} <= value.keys() or min(value.values()) < 0:
        raise ValueError("a timing needs p50 and p95, in milliseconds, none below 0")
    return value


Share = Annotated[float, Field(ge=0, le=1)]
Amount = Annotated[float, Field(ge=0)]
Milliseconds = Annotated[dict[str, float], AfterValidator(_percentiles)]


def _named(key: str, **settings: Any) -> Any:
    """A field whose key in JSON is the name of its measure."""
    return Field(validation_alias=key, serialization_alias=key, **settings)


class Record(BaseModel):
    """Base of the records: frozen, refuses unknown keys, NaN, and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)


class Bin(Record):
    """A point of the calibration plot: a group of pairs with similar scores of the system.

    Attributes:
        pairs: Number of pairs.
        student, teacher: Mean raw scores of the system and of the teacher.
        low, high: Quartiles of the teacher's scores.
    """

    pairs: int = Field(ge=1)
    student: float
    teacher: float
    low: float
    high: float


class Agreement(Record):
    """Agreement of a system's rankings with a teacher's; only `reached` and `ceiling` need relevance judgments.

    Attributes:
        teacher: Its name.
        queries: Number of queries: those of a recorded teacher, all for any other; None if unknown.
        overlap10: Share of the teacher's top 10 among the system's top 10; in JSON ``overlap@10``.
        rank_biased_overlap: Webber et al. 2010, extrapolated, p = .9.
        kendall_tau: Tau-b on the teacher's top 100, mean over the queries where it is defined.
        reached: nDCG@10 of the system on these queries.
        ceiling: nDCG@10 of the system's top 100 in the teacher's order: what a better order of the same candidates
            could reach if the teacher is right.
        calibration: Pairs of the system's top 100, in 20 groups by its score.
    """

    teacher: str
    queries: int | None = Field(default=None, ge=1)
    overlap10: Share = _named("overlap@10")
    rank_biased_overlap: Share
    kendall_tau: float | None = Field(default=None, ge=-1, le=1)
    reached: Share | None = None
    ceiling: Share | None = None
    calibration: list[Bin] = Field(default_factory=list)


class Timing(Record):
    """Milliseconds per batch (p50, p95, p99) of encoding, of search, and in total.

    Attributes:
        batch: Queries per batch.
        encode, search: None if they cannot be separated.
        queries_per_second: Over all answers, one batch after the other.
    """

    batch: int = Field(ge=1)
    encode: Milliseconds | None = None
    search: Milliseconds | None = None
    total: Milliseconds
    queries_per_second: Amount


class Cost(Record):
    """What serving a system takes on the machine that results.json names.

    Attributes:
        threads: Threads of torch and FAISS.
        timings: For each batch size.
        total_bytes: Everything that serving keeps for all documents.
        build_seconds: Wall time of building the index, if its manifest has it.
        encode_seconds: Time to encode all documents, estimated from a sample.
        peak_bytes: Highest resident memory of a process that loads only this system and answers queries: model,
            index, and libraries together.
        encoder: The encoder whose throughput follows.
        tokens_per_second: Tokens of documents that it encodes, in batches of 32.
        matrix_share: Share of the machine's measured float32 matrix product rate that this uses, including padding.
    """

    threads: int = Field(ge=1)
    timings: list[Timing] = Field(min_length=1)
    total_bytes: Amount | None = None
    build_seconds: Amount | None = None
    encode_seconds: Amount | None = None
    peak_bytes: int | None = Field(default=None, ge=0)
    encoder: str | None = None
    tokens_per_second: Amount | None = None
    matrix_share: Amount | None = None


class SystemResult(Record):
    """One measured system: a row of the table.

    Attributes:
        name: The user's name for it.
        role: baseline, teacher, control, or student.
        ndcg10, mrr10, map1000, recall10, recall100, recall1000, hole10: Means over the queries, 0 to 1; None if there
            are no relevance judgments, or it was not measured. In JSON ``ndcg@10``, ``map@1000``...
        measures: Means of any other measures, by name.
        retention: Share of the teaching system's nDCG@10; None for the teacher, or if undefined.
        bytes_per_document: Size of the index divided by the number of documents.
        query_ms: Milliseconds per query: at least ``p50`` and ``p95``.
        documents_by, queries_by: What encodes each side.
        agreement: With a teacher, if requested.
        cost: What serving takes beyond `query_ms`, if measured.
    """

    name: str = Field(min_length=1)
    role: Role
    ndcg10: Share | None = _named("ndcg@10")
    mrr10: Share | None = _named("mrr@10", default=None)
    map1000: Share | None = _named("map@1000", default=None)
    recall10: Share | None = _named("recall@10", default=None)
    recall100: Share | None = _named("recall@100", default=None)
    recall1000: Share | None = _named("recall@1000", default=None)
    hole10: Share | None = _named("hole@10", default=None)
    measures: dict[str, float] = Field(default_factory=dict)
    retention: Amount | None = None
    bytes_per_document: Amount | None = None
    query_ms: Milliseconds | None = None
    documents_by: str = ""
    queries_by: str = ""
    agreement: Agreement | None = None
    cost: Cost | None = None


def of_measures(values: Mapping[str, float]) -> dict[str, Any]:
    """Means as `SystemResult` takes them: those with their own field, and the others under ``measures``."""
    own = {str(field.serialization_alias) for field in SystemResult.model_fields.values() if field.serialization_alias}
    named = {measure: value for measure, value in values.items() if measure in own}
    return {"ndcg@10": None, **named, "measures": {key: value for key, value in values.items() if key not in own}}


class Hit(Record):
    """A document in a ranking; title and text are shortened, the score is raw, higher is better."""

    document_id: str
    text: str
    relevant: bool
    score: float
    title: str = ""


class Missed(Record):
    """A relevant document that neither ranking shows, with its rank in each, from 1; None if it was not found."""

    document_id: str
    text: str
    title: str = ""
    teacher_rank: int | None = Field(default=None, ge=1)
    student_rank: int | None = Field(default=None, ge=1)


class Example(Record):
    """A query with the rankings of the reference (the teaching system, if there is one) and of the student.

    Attributes:
        query, query_id: Its text and its id.
        relevant: Ids of the documents that were judged relevant.
        teacher, student: Rankings of the reference and of the student, best first; `Results.sides` has the names.
        missed: Relevant documents that neither ranking shows, the best placed first.
        teacher_value, student_value: nDCG@10 of this query; None without judgments.
    """

    query: str
    relevant: list[str]
    teacher: list[Hit]
    student: list[Hit]
    missed: list[Missed] = Field(default_factory=list)
    query_id: str = ""
    teacher_value: Share | None = None
    student_value: Share | None = None


class Results(Record):
    """Everything that a report says.

    Attributes:
        collection, split: Data that was measured on.
        queries: Number of queries in the means.
        systems: Every system, in the order of the table.
        name: The recipe's name; empty without a recipe.
        command: The command that reproduces these numbers.
        hardware, versions: As in a manifest.
        seconds: Wall time of each stage, by its name.
        seed: The recipe's seed.
        taught_by: Name of the system that the student learned from; None if nothing was distilled.
        kept_of: Name of the system that `SystemResult.retention` is a share of; None for the teaching one.
        comparisons: ``{"a", "b", "measure", "difference", "interval", "p"}``; difference is a minus b. Optional:
            ``p_holm`` (corrected for all comparisons here), ``smallest`` (detectable difference, or None), and
            ``wins``, ``ties``, ``losses`` of a.
        curves: By student, ``{"losses": [{"step", "loss"}], "monitors": [{"step", "agreement", "mean_cosine"}]}``.
        sides: Names of the two systems whose rankings the queries show, the reference first; empty if unknown.
        examples: Evenly spaced queries with both rankings.
        won, lost: Queries that the second of `sides` answers better, or worse, than the first, from the largest
            difference on.
        notes: What a reader must know.
        provenance: Fingerprints and other inputs, by name; values may be nested.
    """

    collection: str
    split: str
    queries: int = Field(ge=0)
    systems: list[SystemResult] = Field(min_length=1)
    name: str = ""
    command: str = ""
    hardware: dict[str, Any] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=dict)
    seconds: dict[str, float] = Field(default_factory=dict)
    seed: int | None = None
    taught_by: str | None = None
    kept_of: str | None = None
    comparisons: list[dict[str, Any]] = Field(default_factory=list)
    curves: dict[str, dict[str, list[dict[str, Any]]]] = Field(default_factory=dict)
    sides: list[str] = Field(default_factory=list)
    examples: list[Example] = Field(default_factory=list)
    won: list[Example] = Field(default_factory=list)
    lost: list[Example] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    provenance: dict[str, Any] = Field(default_factory=dict)

    @property
    def teacher(self) -> SystemResult | None:
        """The system that taught; None if nothing was distilled."""
        return self.system(self.taught_by) if self.taught_by is not None else None

    @property
    def yardstick(self) -> SystemResult | None:
        """The system that `SystemResult.retention` is a share of."""
        return self.teacher if self.kept_of is None else self.system(self.kept_of)

    def system(self, name: str) -> SystemResult:
        """The system with this name.

        Raises:
            UserError: There is none.
        """
        for system in self.systems:
            if system.name == name:
                return system
        raise unknown("system", name, [system.name for system in self.systems])

    def with_role(self, role: Role) -> list[SystemResult]:
        """The systems with this role, in order."""
        return [system for system in self.systems if system.role == role]

    def to_json(self) -> dict[str, Any]:
        """The dictionary to write as results.json."""
        return self.model_dump(mode="json", by_alias=True)

    @classmethod
    def from_json(cls, content: Any) -> Results:
        """Read the dictionary of a results.json.

        Raises:
            UserError: A key is missing, unknown, or has an invalid value; says which and why.
        """
        if not isinstance(content, dict):
            raise UserError(f"results.json should hold one object, not {type(content).__name__}; is it another file?")
        try:
            return cls.model_validate(content, strict=True)
        except ValidationError as error:
            raise _user_error(error) from error

    @field_validator("comparisons")
    @classmethod
    def _whole_comparisons(cls, comparisons: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for number, comparison in enumerate(comparisons):
            lacking = [key for key in COMPARISON_KEYS if key not in comparison]
            if lacking:
                raise ValueError(f"comparison {number} lacks {', '.join(lacking)}")
            interval = comparison["interval"]
            if not isinstance(interval, list | tuple) or len(interval) != 2 or not all(map(_is_number, interval)):
                raise ValueError(f"comparison {number}: interval is {interval!r}, not two numbers [low, high]")
            if interval[0] > interval[1]:
                raise ValueError(f"comparison {number}: the interval {list(interval)} is upside down")
            if not _is_number(comparison["difference"]):
                raise ValueError(f"comparison {number}: difference is {comparison['difference']!r}, not a number")
            for key in ("p", "p_holm"):
                value = comparison.get(key, 0.0)
                if not (_is_number(value) and 0 <= value <= 1):
                    raise ValueError(f"comparison {number}: {key} is {value!r}, not between 0 and 1")
        return comparisons

    @field_validator("curves")
    @classmethod
    def _steps(cls, curves: dict[str, Any]) -> dict[str, Any]:
        for name, curve in curves.items():
            for key in curve:
                if key not in CURVE_KEYS:
                    raise ValueError(f"curve of {name!r}: {unknown('key', key, CURVE_KEYS)}")
            points = [point for key in CURVE_KEYS for point in curve.get(key, [])]
            if any(point.get("step") is None for point in points):
                raise ValueError(f"curve of {name!r}: a point lacks its step")
            for key, value in ((key, point.get(key)) for point in points for key in POINT_KEYS):
                if value is not None and not _is_number(value):
                    raise ValueError(f"curve of {name!r}: {key} is {value!r}, not a number")
        return curves

    @model_validator(mode="after")
    def _names_known(self) -> Results:
        names = [system.name for system in self.systems]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ValueError(f"two systems are named {twice[0]!r}; give each its own name")
        named = [("taught_by", self.taught_by), ("kept_of", self.kept_of), *(("sides", name) for name in self.sides)]
        if len(self.sides) not in (0, 2):
            raise ValueError(f"sides names {len(self.sides)} systems; the rankings shown are of two")
        named += [("comparison", comparison[side]) for comparison in self.comparisons for side in ("a", "b")]
        for what, name in named:
            if name is not None and name not in names:
                raise ValueError(f"{what}: {unknown('system', name, names)}")
        return self


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _user_error(error: ValidationError) -> UserError:
    """The first error, with its place."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return unknown(f"key {place} in results.json:", first["loc"][-1], _keys_at(first["loc"][:-1]))
    if first["type"] == "missing":
        return UserError(f"results.json lacks {place}.")
    reason = first["msg"].removeprefix("Value error, ")
    came = f", not {first['input']!r:.60}" if isinstance(first["input"], str | int | float | None) else ""
    return UserError(f"results.json, {place or 'as a whole'}: {reason[:1].lower() + reason[1:]}{came}.")


def _keys_at(place: tuple[int | str, ...]) -> list[str]:
    """The keys of the record at a place."""
    models: dict[str, type[Record]] = {
        "systems": SystemResult, "examples": Example, "won": Example, "lost": Example, "teacher": Hit, "student": Hit,
        "missed": Missed, "agreement": Agreement, "calibration": Bin, "cost": Cost, "timings": Timing,
    }  # fmt: skip
    names = [part for part in place if isinstance(part, str)]
    model = models[names[-1]] if names else Results
    return [str(field.serialization_alias or name) for name, field in model.model_fields.items()]
