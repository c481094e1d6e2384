"""What serving takes: time by stage and batch, throughput, memory; of the systems where it was measured in full."""

from __future__ import annotations

from collections.abc import Iterator

from retrodistill.evaluation.results import Cost, Results, System, Timing
from retrodistill.report import markup, words

_TIMES = ["system", "queries at once", "encode p50", "search p50", "p50", "p95", "p99", "queries/s"]
_SIZES = ["system", "index", "peak memory", "tokens/s", "of matrix rate", "to encode", "to build"]


def costs(results: Results) -> str:
    """Two tables; empty where no system has its cost in full."""
    found = [(system, system.cost) for system in results.systems if system.cost is not None]
    if not found:
        return ""
    threads = sorted({cost.threads for _, cost in found})
    timed = markup.table(_TIMES, (row for system, cost in found for row in _timings(system, cost)), "Latency")
    sized = markup.table(_SIZES, (_sizes(system, cost) for system, cost in found), "Memory and throughput")
    counted = "1 thread" if threads == [1] else f"{', '.join(map(str, threads))} threads"
    told = (
        f"Milliseconds a batch, on {counted}, after a warm-up. Peak memory: of a process that holds this system alone, "
        "libraries included. Of matrix rate: share of this machine's measured float32 matrix product rate that "
        "encoding uses."
    )
    return f"<h3>What serving takes</h3>{timed}{sized}{markup.about(told)}"


def _timings(system: System, cost: Cost) -> Iterator[str]:
    for timing in cost.timings:
        yield markup.row(markup.named(system), _times(timing), system.role)


def _times(timing: Timing) -> list[str]:
    stages = [words.milliseconds(None if stage is None else stage["p50"]) for stage in (timing.encode, timing.search)]
    whole = [words.milliseconds(timing.total.get(key)) for key in ("p50", "p95", "p99")]
    return [str(timing.batch), *stages, *whole, f"{timing.queries_per_second:,.0f}"]


def _sizes(system: System, cost: Cost) -> str:
    cells = [
        words.memory(cost.total_bytes),
        words.memory(cost.peak_bytes),
        words.size(cost.tokens_per_second),
        words.MISSING if cost.matrix_share is None else f"{cost.matrix_share:.1%}",
        words.MISSING if cost.encode_seconds is None else words.duration(cost.encode_seconds),
        words.MISSING if cost.build_seconds is None else words.duration(cost.build_seconds),
    ]
    return markup.row(markup.named(system), cells, system.role)
