"""What a results.json may say of a system besides its measures: agreement with the teacher, and cost."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, field_validator


class Record(BaseModel):
    """Base of the records: frozen, refuses unknown keys, NaN and infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)


class Bin(Record):
    """A point of the calibration plot: pairs that the system scores alike, and what the teacher says of them.

    Attributes:
        pairs: How many.
        student, teacher: Mean scores, raw.
        low, high: The teacher's quartiles.
    """

    pairs: int = Field(ge=1)
    student: float
    teacher: float
    low: float
    high: float


class Agreement(Record):
    """How far a system ranks as a teacher does; no relevance judgment is needed but for the ceiling.

    Attributes:
        teacher: Its name.
        queries: On how many: those that a recorded teacher has, all of any other; None where it is not known.
        overlap10: Share of the teacher's top 10 among the system's top 10; in JSON ``overlap@10``.
        rank_biased_overlap: Webber et al. 2010, extrapolated, p = .9.
        kendall_tau: Tau-b on the teacher's top 100, mean over the queries where it is defined; None for none.
        reached: nDCG@10 of the system on these queries; None where there are no judgments.
        ceiling: nDCG@10 of the teacher's ranking of this system's own top 100: what a better order of the same
            candidates could reach, if the teacher is right; None where there are no judgments.
        calibration: Pairs of the system's top 100, in 20 groups by its score.
    """

    teacher: str
    queries: int | None = Field(default=None, ge=1)
    overlap10: float = Field(validation_alias="overlap@10", serialization_alias="overlap@10", ge=0, le=1)
    rank_biased_overlap: float = Field(ge=0, le=1)
    kendall_tau: float | None = Field(default=None, ge=-1, le=1)
    reached: float | None = Field(default=None, ge=0, le=1)
    ceiling: float | None = Field(default=None, ge=0, le=1)
    calibration: list[Bin] = Field(default_factory=list)


class Timing(Record):
    """Milliseconds a batch (p50, p95, p99): of encoding and search apart where they can be told apart, and together.

    Attributes:
        batch: Queries at once.
        queries_per_second: Over all answers, one batch after the other.
    """

    batch: int = Field(ge=1)
    encode: dict[str, float] | None = None
    search: dict[str, float] | None = None
    total: dict[str, float]
    queries_per_second: float = Field(ge=0)

    @field_validator("encode", "search", "total")
    @classmethod
    def _percentiles(cls, value: dict[str, float] | None) -> dict[str, float] | None:
        if value is not None and (not {"p50", "p95"} <= value.keys() or min(value.values()) < 0):
            raise ValueError("a timing needs p50 and p95, in milliseconds, none below 0")
        return value


class Cost(Record):
    """What serving a system takes on the machine that results.json names.

    Attributes:
        threads: Threads of torch and FAISS.
        timings: For each size of batch.
        total_bytes: What serving keeps for all documents.
        build_seconds: Wall time of building the index, where its manifest says.
        encode_seconds: Encoding all documents, at the rate of a sample of them.
        peak_bytes: Highest resident memory of a process that loads this system alone and answers queries: model,
            index and libraries together.
        encoder: Whose throughput follows.
        tokens_per_second: Tokens of documents that it encodes, in batches of 32.
        matrix_share: Share of the machine's measured float32 matrix product rate that this uses, padding included.
    """

    threads: int = Field(ge=1)
    timings: list[Timing] = Field(min_length=1)
    total_bytes: float | None = Field(default=None, ge=0)
    build_seconds: float | None = Field(default=None, ge=0)
    encode_seconds: float | None = Field(default=None, ge=0)
    peak_bytes: int | None = Field(default=None, ge=0)
    encoder: str | None = None
    tokens_per_second: float | None = Field(default=None, ge=0)
    matrix_share: float | None = Field(default=None, ge=0)
