"""Evaluations and comparisons as plain text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from retrodistill.report import words
from retrodistill.report.results import System

if TYPE_CHECKING:
    from retrodistill.evaluation.benchmark import Benchmark
    from retrodistill.evaluation.comparing import Comparison
    from retrodistill.evaluation.evaluating import Evaluation

_WIDTH = 100
_NAME = 44


def evaluation_text(made: Evaluation) -> str:
    """A row a system: measures, then agreement and cost where they were measured, then the notes."""
    parts = []
    if made.means:
        measures = list(next(iter(made.means.values())))
        rows = [[name, *(f"{values[one]:.4f}" for one in measures)] for name, values in made.means.items()]
        parts.append(columns(["system", *map(words.title, measures)], rows))
    parts += [text for text in (_agreement(made.rows), _cost(made.rows)) if text]
    return "\n\n".join([*parts, *(f"note: {note}" for note in made.notes)])


def benchmark_text(made: Benchmark) -> str:
    """BEIR's table: a row a data set, a column a system, the first measure; then the mean of every measure."""
    from retrodistill.evaluation.benchmark import row_title

    if len(made.evaluations) == 1:
        return str(made.evaluations[0])
    table, means = made.table, made.means
    notes = [f"note: {note}" for one in made.evaluations for note in one.notes]
    if not table:
        return "\n".join(notes)
    systems = list(means)
    measures = list(means[systems[0]])
    first = measures[0]
    rows = [
        [row_title(row, made), *(f"{values[name][first]:.4f}" for name in systems)] for row, values in table.items()
    ]
    mean = [f"mean of {len(table)}", *(f"{means[name][first]:.4f}" for name in systems)]
    whole = [[name, *(f"{means[name][one]:.4f}" for one in measures)] for name in systems]
    parts = [
        columns([words.title(first), *systems], [*rows, mean]),
        columns([f"mean of {len(table)}", *map(words.title, measures)], whole),
        *(text for one in made.evaluations if (text := _beside(one))),
    ]
    return "\n\n".join([*parts, *notes])


def comparison_text(made: Comparison) -> str:
    """The means, each difference with what can be said of it, and the queries that changed most."""
    title = words.title(made.measure)
    head = f"{title} on {made.queries} queries"
    means = columns(["system", title], [[name, f"{value:.4f}"] for name, value in made.means.items()])
    rows = [
        [
            f"{one['a']} − {one['b']}",
            words.signed(one["difference"]),
            f"{words.signed(one['interval'][0])} to {words.signed(one['interval'][1])}",
            f"{one['p']:.4f}",
            f"{one['p_holm']:.4f}",
            f"{one['wins']}/{one['ties']}/{one['losses']}",
            words.MISSING if one["smallest"] is None else f"{one['smallest']:.3f}",
        ]
        for one in made.comparisons
    ]
    heads = ["difference", "mean", "95% interval", "p", "p (Holm)", "wins/ties/losses", "detectable"]
    told = (
        "p: paired randomization test; Holm: corrected for the number of comparisons; detectable: the smallest "
        "difference that so many queries show with 80% power at p < .05: 2.80 s / √n, s the standard deviation of the "
        "differences."
    )
    parts = [head, means, columns(heads, rows), textwrap.fill(told, _WIDTH)]
    parts += [_changed(one) for one in made.comparisons if one["changed"]]
    if made.agreement:
        parts.append(_agreement_rows(list(made.agreement.items())))
    parts += [textwrap.fill(note, _WIDTH) for note in made.notes]
    return "\n\n".join(parts)


def columns(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, the first to the left and the others to the right."""
    names = [words.shorten_name(row[0], _NAME) for row in rows]
    titles = [heads[0], *(words.shorten_name(head, _NAME) for head in heads[1:])]
    cells = [titles, *([name, *row[1:]] for name, row in zip(names, rows, strict=True))]
    widths = [max(len(row[at]) for row in cells) for at in range(len(heads))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in cells
    )


def _beside(made: Evaluation) -> str:
    parts = [text for text in (_agreement(made.rows), _cost(made.rows)) if text]
    return "\n\n".join([f"{made.collection}:", *parts]) if parts else ""


def _agreement(systems: Sequence[System]) -> str:
    rows = [(system.name, system.agreement) for system in systems if system.agreement is not None]
    return _agreement_rows(rows) if rows else ""


def _agreement_rows(rows: Sequence[tuple[str, object]]) -> str:
    from retrodistill.report.measured import Agreement

    found = [(name, one) for name, one in rows if isinstance(one, Agreement)]
    heads = [
        f"agreement with {found[0][1].teacher}",
        "overlap@10",
        "rank-biased overlap",
        "Kendall's tau",
        "nDCG@10",
        "ceiling nDCG@10",
        "queries",
    ]
    return columns(
        heads,
        [
            [
                name,
                f"{one.overlap10:.3f}",
                f"{one.rank_biased_overlap:.3f}",
                words.measure(one.kendall_tau),
                words.measure(one.reached),
                words.measure(one.ceiling),
                words.MISSING if one.queries is None else f"{one.queries:,}",
            ]
            for name, one in found
        ],
    )


def _cost(systems: Sequence[System]) -> str:
    found = [(system.name, system.cost) for system in systems if system.cost is not None]
    if not found:
        return ""
    heads = [
        f"ms a batch, {found[0][1].threads} thread(s)",
        *("batch", "encode p50", "search p50", "p50", "p95", "p99", "queries/s"),
    ]
    timed = [
        [
            name if at == 0 else "",
            str(one.batch),
            *(words.milliseconds(None if part is None else part["p50"]) for part in (one.encode, one.search)),
            *(words.milliseconds(one.total.get(key)) for key in ("p50", "p95", "p99")),
            f"{one.queries_per_second:,.1f}",
        ]
        for name, cost in found
        for at, one in enumerate(cost.timings)
    ]
    sizes = [
        [
            name,
            words.memory(cost.total_bytes),
            words.memory(cost.peak_bytes),
            words.size(cost.tokens_per_second),
            words.MISSING if cost.matrix_share is None else f"{cost.matrix_share:.1%}",
            words.MISSING if cost.encode_seconds is None else words.duration(cost.encode_seconds),
            words.MISSING if cost.build_seconds is None else words.duration(cost.build_seconds),
        ]
        for name, cost in found
    ]
    more = ["", "index", "peak memory", "tokens/s", "of matrix rate", "to encode", "to build"]
    return f"{columns(heads, timed)}\n\n{columns(more, sizes)}"


def _changed(comparison: dict) -> str:
    lines = [f"queries that changed most: {comparison['a']} − {comparison['b']}"]
    for one in comparison["changed"]:
        text = f": {words.shorten(one['text'], _WIDTH - 40)}" if one["text"] else ""
        lines.append(f"  {words.signed(one['difference'])}  {one['b']:.3f} → {one['a']:.3f}  {one['query_id']}{text}")
    return "\n".join(lines)
