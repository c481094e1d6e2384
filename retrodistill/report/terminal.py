"""Evaluations, comparisons and checks as plain text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from retrodistill.evaluation.results import System
from retrodistill.report import words

if TYPE_CHECKING:
    from retrodistill.evaluation.benchmark import Benchmark
    from retrodistill.evaluation.check import Check
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
    parts += [text for text in (_agreement(made.results.systems), _cost(made.results.systems)) if text]
    return "\n\n".join([*parts, *(f"note: {note}" for note in made.results.notes)])


def benchmark_text(made: Benchmark) -> str:
    """BEIR's table: a row a data set, a column a system, the first measure; then the mean of every measure."""
    from retrodistill.evaluation.benchmark import row_title

    if len(made.evaluations) == 1:
        return evaluation_text(made.evaluations[0])
    table, means = made.table, made.means
    notes = [f"note: {note}" for one in made.evaluations for note in one.results.notes]
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


def check_text(check: Check) -> str:
    """Why the query encoder is admitted, the shared neighbors, and a row a way to answer."""
    lines = [f"{check.queries_by} is admitted among documents by {check.documents_by}: {check.admitted_as}."]
    if check.shared:
        shares = ", ".join(f"{share:.1%} of the top {depth}" for depth, share in check.shared.items())
        lines.append(f"Neighbors shared with the teacher's own exact search: {shares} ({check.queries} queries).")
    if check.sides:
        heads = ["", *check.sides[0]["quality"], "p50 ms", "p95 ms", "docs/s", "documents by", "queries by"]
        lines.append(columns(heads, [_side_cells(side) for side in check.sides], texts=2))
    return "\n".join([*lines, *check.notes])


def columns(heads: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 0) -> str:
    """Aligned columns: the first and the last `texts` to the left, the others to the right."""
    names = [words.shorten_name(row[0], _NAME) for row in rows]
    titles = [heads[0], *(words.shorten_name(head, _NAME) for head in heads[1:])]
    cells = [titles, *([name, *row[1:]] for name, row in zip(names, rows, strict=True))]
    widths = [max(len(row[at]) for row in cells) for at in range(len(heads))]
    left = {0, *range(len(heads) - texts, len(heads))}
    return "\n".join(
        "  ".join(
            cell.ljust(width) if at in left else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )


def _beside(made: Evaluation) -> str:
    parts = [text for text in (_agreement(made.results.systems), _cost(made.results.systems)) if text]
    return "\n\n".join([f"{made.results.collection}:", *parts]) if parts else ""


def _agreement(systems: Sequence[System]) -> str:
    rows = [(system.name, system.agreement) for system in systems if system.agreement is not None]
    return _agreement_rows(rows) if rows else ""


def _agreement_rows(rows: Sequence[tuple[str, object]]) -> str:
    from retrodistill.evaluation.results import Agreement

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


def _side_cells(side: Mapping[str, Any]) -> list[str]:
    timed = [words.milliseconds((side["query_ms"] or {}).get(part)) for part in ("p50", "p95")]
    rate = words.MISSING if side["documents_per_second"] is None else f"{side['documents_per_second']:,.0f}"
    names = [_without_folders(side["documents_by"]), _without_folders(side["queries_by"])]
    return [side["name"], *(f"{value:.4f}" for value in side["quality"].values()), *timed, rate, *names]


def _without_folders(name: str) -> str:
    """A model's name without the folders above it."""
    kind, _, place = name.partition(":")
    return f"{kind}:{place.rstrip('/').rsplit('/', 1)[-1]}"
