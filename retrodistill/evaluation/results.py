"""The content of results.json: typed records, checked when they are made and when they are read."""

from __future__ import annotations

import math
from collections import Counter
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from retrodistill.core.errors import UserError, unknown
from retrodistill.core.formats import check_stamp, stamp, without_stamp
from retrodistill.core.json_files import CHECKSUM

Role = Literal["baseline", "teacher", "control", "student"]
ROLES: tuple[str, ...] = get_args(Role)
WARNING = "warning: "  # begins notes that belong into the headline
REWRITES = "rewrites"  # the first student on rewritten test queries, as teachers get them: not a competitor
COMPARISON_KEYS = ("a", "b", "measure", "difference", "interval", "p")
CURVE_KEYS = ("losses", "monitors")
POINT_KEYS = ("step", "loss", "agreement", "ndcg@10", "mean_cosine")


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

    @model_validator(mode="before")
    @classmethod
    def _keys_known(cls, content: Any) -> Any:
        keys = [str(field.serialization_alias or name) for name, field in cls.model_fields.items()]
        for key in content if isinstance(content, dict) else ():
            if key not in keys and key not in cls.model_fields:
                raise ValueError(unknown("key", key, keys))
        return content


class Bin(Record):
    """A point of the calibration plot: a group of pairs with similar scores of the system."""

    pairs: int = Field(ge=1)
    student: float  # mean raw scores, of the system and of the teacher
    teacher: float
    low: float  # quartiles of the teacher's scores
    high: float


class Agreement(Record):
    """Agreement of a system's rankings with a teacher's; only `reached` and `ceiling` need relevance judgments."""

    teacher: str
    queries: int | None = Field(default=None, ge=1)  # those of a recorded teacher, all for any other; None if unknown
    overlap10: Share = _named("overlap@10")  # of the teacher's top 10 among the system's top 10
    rank_biased_overlap: Share  # Webber et al. 2010, extrapolated, p = .9
    kendall_tau: float | None = Field(default=None, ge=-1, le=1)  # tau-b on the teacher's top 100, mean where defined
    reached: Share | None = None  # nDCG@10 of the system on these queries
    # nDCG@10 of the system's top 100 in the teacher's order: what a better order of the same candidates could reach if
    # the teacher is right.
    ceiling: Share | None = None
    calibration: list[Bin] = Field(default_factory=list)  # pairs of the system's top 100, in 20 groups by its score


class Timing(Record):
    """Milliseconds per batch (p50, p95, p99) of encoding, of search (None if not separated), and in total."""

    batch: int = Field(ge=1)  # queries per batch
    encode: Milliseconds | None = None
    search: Milliseconds | None = None
    total: Milliseconds
    queries_per_second: Amount  # over all answers, one batch after the other


class Cost(Record):
    """What serving a system takes on the machine that results.json names."""

    threads: int = Field(ge=1)  # of torch and FAISS
    timings: list[Timing] = Field(min_length=1)  # for each batch size
    total_bytes: Amount | None = None  # everything that serving keeps for all documents
    build_seconds: Amount | None = None  # wall time of building the index, if its manifest has it
    encode_seconds: Amount | None = None  # time to encode all documents, estimated from a sample
    # Highest resident memory of a process that loads only this system: model, index, and libraries together.
    peak_bytes: int | None = Field(default=None, ge=0)
    gpu_peak_bytes: int | None = Field(default=None, ge=0)  # highest memory of torch's tensors on a GPU, if it has one
    encoder: str | None = None  # whose throughput follows
    tokens_per_second: Amount | None = None  # of documents, in batches of 32
    matrix_share: Amount | None = None  # of the machine's measured float32 matrix product rate, including padding


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
    """A query with the rankings of the reference (the teaching system, if there is one) and of the student."""

    query: str  # its text
    relevant: list[str]  # ids of the documents that were judged relevant
    teacher: list[Hit]  # the reference's ranking, best first; `Results.sides` has the names
    student: list[Hit]
    missed: list[Missed] = Field(default_factory=list)  # relevant, but in neither ranking; the best placed first
    query_id: str = ""
    teacher_value: Share | None = None  # nDCG@10 of this query; None without judgments
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
        curves: By student, ``{"losses": [{"step", "loss"}], "monitors": [{"step", "agreement", "ndcg@10",
            "mean_cosine"}]}``. Monitors look at held-out training queries; ``ndcg@10`` is there if these have labels.
        sides: Names of the two systems whose rankings the queries show, the reference first; empty if unknown.
        examples: Evenly spaced queries with both rankings.
        won, lost: Queries that the second of `sides` answers better, or worse, than the first, from the largest
            difference on.
        notes: What a reader must know. Those that begin with ``warning:`` say what to do.
        spending: Requests, failed and unreadable ones, tokens, and cost in dollars, by the model behind an API.
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
    spending: dict[str, dict[str, float]] = Field(default_factory=dict)

    @property
    def teacher(self) -> SystemResult | None:
        """The system that taught; None if nothing was distilled."""
        return self.system(self.taught_by) if self.taught_by is not None else None

    @property
    def yardstick(self) -> SystemResult | None:
        """The system that `SystemResult.retention` is a share of."""
        return self.teacher if self.kept_of is None else self.system(self.kept_of)

    def system(self, name: str) -> SystemResult:
        """The system with this name, or a UserError."""
        for system in self.systems:
            if system.name == name:
                return system
        raise unknown("system", name, [system.name for system in self.systems])

    @property
    def warnings(self) -> list[str]:
        """The notes that are warnings."""
        return [note for note in self.notes if note.startswith(WARNING)]

    def with_role(self, role: Role) -> list[SystemResult]:
        """The systems with this role, in order."""
        return [system for system in self.systems if system.role == role]

    def to_json(self) -> dict[str, Any]:
        """The dictionary to write as results.json."""
        return {**stamp("results"), **self.model_dump(mode="json", by_alias=True)}

    @classmethod
    def from_json(cls, content: Any) -> Results:
        """Read the dictionary of a results.json; a UserError names the key that is missing, unknown, or invalid."""
        if not isinstance(content, dict):
            raise UserError(f"results.json should hold one object, not {type(content).__name__}; is it another file?")
        content = {key: value for key, value in content.items() if key != CHECKSUM}  # read by others than `read_json`
        try:
            check_stamp(content, "results", "results.json")
            return cls.model_validate(without_stamp(content), strict=True)
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
            for key, points in curve.items():
                if key not in CURVE_KEYS:
                    raise ValueError(f"curve of {name!r}: {unknown('key', key, CURVE_KEYS)}")
                if any(point.get("step") is None for point in points):
                    raise ValueError(f"curve of {name!r}: a point lacks its step")
                for part, value in ((part, point.get(part)) for point in points for part in POINT_KEYS):
                    if value is not None and not _is_number(value):
                        raise ValueError(f"curve of {name!r}: {part} is {value!r}, not a number")
        return curves

    @model_validator(mode="after")
    def _names_known(self) -> Results:
        names = [system.name for system in self.systems]
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise ValueError(f"two systems are named {twice[0]!r}; give each its own name")
        if len(self.sides) not in (0, 2):
            raise ValueError(f"sides names {len(self.sides)} systems; the rankings shown are of two")
        named = [("taught_by", self.taught_by), ("kept_of", self.kept_of), *(("sides", name) for name in self.sides)]
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
    if first["type"] == "missing":
        return UserError(f"results.json lacks {place}.")
    reason = first["msg"].removeprefix("Value error, ").removesuffix(".")
    came = f", not {first['input']!r:.60}" if isinstance(first["input"], str | int | float | None) else ""
    return UserError(f"results.json, {place or 'as a whole'}: {reason[:1].lower() + reason[1:]}{came}.")
