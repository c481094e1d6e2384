"""The columns of every table, shared by the page, the terminal, and the model card.

To add a column, add its value to the record in evaluation/results.py and a line here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

from retrodistill.evaluation.results import Results, SystemResult
from retrodistill.report import text

PAGE, TERMINAL, CARD = "page", "terminal", "card"
_EVERYWHERE = (PAGE, TERMINAL, CARD)
_ALWAYS = ("nDCG@10", "query p50, ms", "query ms, p50 / p95", "bytes/doc")


@dataclass(frozen=True)
class Column:
    """One column of a table, shown in `places`; numbers are right-aligned and sorted as numbers.

    `value` takes a row and returns None if it was not measured; `show` formats the value, including None.
    """

    head: str
    value: Callable[[Any], Any]
    show: Callable[[Any], str] = str
    is_number: bool = True
    places: Sequence[str] = _EVERYWHERE

    def cell(self, row: Any) -> str:
        """The text of a row's cell."""
        return self.show(self.value(row))


class Row(NamedTuple):
    """A system's name with one of its records: agreement, cost, or a timing."""

    name: str
    record: Any


def _measure(head: str, name: str, places: Sequence[str] = _EVERYWHERE) -> Column:
    return Column(head, attrgetter(name), text.measure, places=places)


_MEASURES = (
    _measure("nDCG@10", "ndcg10"),
    _measure("MRR@10", "mrr10"),
    _measure("MAP", "map1000", [PAGE]),
    _measure("Recall@10", "recall10", [PAGE]),
    _measure("Recall@100", "recall100"),
    _measure("Recall@1000", "recall1000", [PAGE]),
    _measure("holes@10", "hole10", [PAGE]),
)
_SERVING = (
    Column("query p50, ms", lambda system: (system.query_ms or {}).get("p50"), text.milliseconds, places=[PAGE]),
    Column("query p95, ms", lambda system: (system.query_ms or {}).get("p95"), text.milliseconds, places=[PAGE]),
    Column("query ms, p50 / p95", attrgetter("query_ms"), text.latency, places=[TERMINAL, CARD]),
    Column("bytes/doc", attrgetter("bytes_per_document"), text.thousands),
    Column("documents by", attrgetter("documents_by"), lambda name: name or text.MISSING, is_number=False),
    Column("queries by", attrgetter("queries_by"), lambda name: name or text.MISSING, is_number=False),
)
AGREEMENT = (
    Column("overlap@10", attrgetter("record.overlap10"), text.measure),
    Column("rank-biased overlap", attrgetter("record.rank_biased_overlap"), text.measure),
    Column("Kendall’s τ", attrgetter("record.kendall_tau"), text.measure),
    Column("nDCG@10", attrgetter("record.reached"), text.measure),
    Column("ceiling nDCG@10", attrgetter("record.ceiling"), text.measure),
    Column("queries", attrgetter("record.queries"), text.thousands),
)
TIMINGS = (
    Column("batch", attrgetter("record.batch")),
    Column("encode p50", lambda row: (row.record.encode or {}).get("p50"), text.milliseconds),
    Column("search p50", lambda row: (row.record.search or {}).get("p50"), text.milliseconds),
    Column("p50", lambda row: row.record.total.get("p50"), text.milliseconds),
    Column("p95", lambda row: row.record.total.get("p95"), text.milliseconds),
    Column("p99", lambda row: row.record.total.get("p99"), text.milliseconds),
    Column("queries/s", attrgetter("record.queries_per_second"), text.thousands),
)
_COSTS = (
    Column("index", attrgetter("record.total_bytes"), text.memory),
    Column("peak memory", attrgetter("record.peak_bytes"), text.memory),
    Column("tokens/s", attrgetter("record.tokens_per_second"), text.thousands),
    Column("of matrix rate", attrgetter("record.matrix_share"), text.percent),
    Column("to encode", attrgetter("record.encode_seconds"), text.duration),
    Column("to build", attrgetter("record.build_seconds"), text.duration),
)
_GPU_MEMORY = Column("GPU memory", attrgetter("record.gpu_peak_bytes"), text.memory)


def columns_of_systems(results: Results, place: str) -> list[Column]:
    """The columns of systems that have a value, or are always shown."""
    return [*columns_of_quality(results, place), *columns_of_serving(results, place)]


def columns_of_quality(results: Results, place: str) -> list[Column]:
    """The measures and the retention; on the page, every measure has a column."""

    def column(name: str) -> Column:
        return Column(text.measure_title(name), lambda system: system.measures.get(name), text.measure)

    kept = Column("kept", attrgetter("retention"), text.percent)
    others = dict.fromkeys(name for system in results.systems for name in system.measures) if place == PAGE else {}
    return _shown([*_MEASURES, *map(column, others), kept], results, place)


def columns_of_serving(results: Results, place: str) -> list[Column]:
    """Latency, size and encoders."""
    return _shown(_SERVING, results, place)


def _shown(columns: Sequence[Column], results: Results, place: str) -> list[Column]:
    valued = with_values(columns, results.systems)
    return [column for column in columns if place in column.places and (column.head in _ALWAYS or column in valued)]


def columns_of_costs(rows: Sequence[Any]) -> list[Column]:
    """The columns of costs, with GPU memory if a system used one."""
    return [*_COSTS, *with_values([_GPU_MEMORY], rows)]


def columns_of_comparisons(comparisons: Sequence[Mapping[str, Any]]) -> list[Column]:
    """The columns of comparisons; `Column.value` takes a comparison as in results.json."""
    measures = {text.measure_title(str(row["measure"])) for row in comparisons}
    mean = measures.pop() if len(measures) == 1 else "mean"
    return [
        Column(mean, lambda row: row["difference"], text.signed),
        Column("verdict", text.significance, is_number=False),
        Column("95% interval", lambda row: row["interval"], text.interval),
        Column("p", lambda row: row["p"], text.p_value),
        Column("p (Holm)", lambda row: row.get("p_holm"), text.p_value),
        Column("won / tied / lost", _outcomes),
        Column("detectable", lambda row: row.get("smallest"), text.measure),
    ]


def agreement_rows(systems: Sequence[SystemResult]) -> list[Row]:
    """The systems whose agreement was measured. Older results lack `reached`; it is the nDCG@10 of all queries."""
    rows = []
    for system in systems:
        if system.agreement is not None:
            reached = system.ndcg10 if system.agreement.reached is None else system.agreement.reached
            rows.append(Row(system.name, system.agreement.model_copy(update={"reached": reached})))
    return rows


def cost_rows(systems: Sequence[SystemResult]) -> list[Row]:
    """The systems whose cost was measured in full."""
    return [Row(system.name, system.cost) for system in systems if system.cost is not None]


def timing_rows(costs: Sequence[Row]) -> list[Row]:
    """A row for each system and batch size."""
    return [Row(row.name, timing) for row in costs for timing in row.record.timings]


def with_values(columns: Sequence[Column], rows: Sequence[Any]) -> list[Column]:
    """The columns that have a value in some row: for example, no quality without judgments."""
    return [column for column in columns if any(column.value(row) not in (None, "") for row in rows)]


def _outcomes(comparison: Mapping[str, Any]) -> str:
    if not {"wins", "ties", "losses"} <= comparison.keys():
        return text.MISSING
    return " / ".join(f"{comparison[key]:,}" for key in ("wins", "ties", "losses"))
