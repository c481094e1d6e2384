"""Every table of the command line as plain text, formatted by rich."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table
from rich.text import Text

from retrodistill.evaluation.results import Example, Hit, Results, SystemResult
from retrodistill.report import columns, text
from retrodistill.report.columns import TERMINAL, Column, Row

if TYPE_CHECKING:
    from retrodistill.evaluation.benchmark import Benchmark
    from retrodistill.evaluation.check import Check
    from retrodistill.evaluation.comparing import Comparison
    from retrodistill.evaluation.evaluating import Evaluation

WIDTH = 100
NARROW = 80  # of the tables that a recipe prints where the terminal's width is unknown
_NAME = 44  # characters of a name in tables that may be wider than the terminal
_ABOUT_TESTS = (
    "p: paired randomization test. Holm: corrected for the number of comparisons. Detectable: the smallest difference "
    "that a test on these queries finds with 80% power at p < .05: 2.80 s / √n, s the standard deviation of the "
    "differences."
)


def results_text(results: Results, width: int = NARROW) -> str:
    """A row per system of a recipe, and the encoders in columns if they fit into `width` terminal columns, else below.

    Long names are folded, but not numbers.
    """
    shown = columns.columns_of_systems(results, TERMINAL)
    numbers = [column for column in shown if column.is_number]
    sides = [column for column in shown if not column.is_number]

    def table(texts: list[Column], width: int) -> str:
        heads = ["system", *(_two_lines(column.head) for column in numbers), *(column.head for column in texts)]
        cells = [[text.plain(column.cell(system)) for column in (*numbers, *texts)] for system in results.systems]
        rows = [[text.plain(system.name), *row] for system, row in zip(results.systems, cells, strict=True)]
        return _table(heads, rows, len(texts), width=width)

    wide = table(sides, 10_000)
    if max(map(cell_len, wide.splitlines())) <= width:
        return wide
    names = [[f"{column.head} {text.plain(column.cell(system))}" for column in sides] for system in results.systems]
    encoders = [f"{text.plain(one.name)}: {', '.join(by)}" for one, by in zip(results.systems, names, strict=True)]
    # Unlike textwrap, rich counts the columns of wide characters.
    console = Console(file=io.StringIO(), width=width)
    below = [piece.plain.rstrip() for line in encoders if sides for piece in Text(line).wrap(console, width)]
    return "\n".join([table([], width), *(["", *below] if below else [])])


def examples_text(results: Results, shown: int = 3, width: int = NARROW) -> str:
    """The top 3 of both systems side by side for the queries with the largest gains and losses; ✓ marks relevant ones.

    `shown` queries of each; of results without judgments, evenly spaced queries.
    """
    names = results.sides or ["teacher", "student"]
    parts = []
    for title, chosen in (("better", results.won), ("worse", results.lost)):
        if chosen:
            parts.append(f"{names[1]} is {title} than {names[0]}:")
            parts += [_example(example, names, width) for example in chosen[:shown]]
    return "\n\n".join(parts or [_example(example, names, width) for example in results.examples[:shown]])


def _example(example: Example, names: Sequence[str], width: int) -> str:
    half = (width - 3) // 2
    depth = min(3, max(len(example.teacher), len(example.student), 1))
    values = (example.teacher_value, example.student_value)
    heads = [
        f"  {text.shorten_name(name, half - 8)}{'' if value is None else f' {value:.3f}'}"
        for name, value in zip(names, values, strict=True)
    ]
    hits = [[_hit(side, rank, half) for side in (example.teacher, example.student)] for rank in range(depth)]
    lines = [f"{set_cell_size(left, half)} │ {right}".rstrip() for left, right in [heads, *hits]]
    return "\n".join([f"› {text.shorten(example.query, width - 2)}", *lines])


def evaluation_text(evaluation: Evaluation) -> str:
    """A row per system: measures, then agreement and cost if they were measured, then the notes."""
    parts = [_means("system", evaluation.means)] if evaluation.means else []
    parts += _agreement_and_cost(evaluation.results.systems)
    return "\n\n".join([*parts, *(f"note: {note}" for note in evaluation.results.notes)])


def benchmark_text(benchmark: Benchmark) -> str:
    """BEIR's table: a row per data set, a column per system, the first measure; then the mean of every measure."""
    from retrodistill.evaluation.benchmark import row_title

    if len(benchmark.evaluations) == 1:
        return evaluation_text(benchmark.evaluations[0])
    table, means = benchmark.table, benchmark.means
    parts = []
    if table:
        first = next(iter(next(iter(means.values()))))
        mean = f"mean of {len(table)}"
        rows = {row_title(row, benchmark): values for row, values in table.items()} | {mean: means}
        cells = [[row, *(f"{values[name][first]:.4f}" for name in means)] for row, values in rows.items()]
        parts = [_table([text.measure_title(first), *means], cells), _means(mean, means)]
        for evaluation in benchmark.evaluations:
            more = _agreement_and_cost(evaluation.results.systems)
            parts += ["\n\n".join([f"{evaluation.results.collection}:", *more])] if more else []
    notes = [f"note: {note}" for evaluation in benchmark.evaluations for note in evaluation.results.notes]
    return "\n\n".join([*parts, *notes])


def comparison_text(comparison: Comparison) -> str:
    """The means, each difference with its test, and the queries with the largest changes."""
    title, rows = text.measure_title(comparison.measure), comparison.comparisons
    means = _table(["system", title], [[name, f"{value:.4f}"] for name, value in comparison.means.items()])
    names = [f"{row['a']} − {row['b']}" for row in rows]
    differences = _of_columns("difference", columns.columns_of_comparisons(rows), names, rows)
    parts = [f"{title} on {comparison.queries} queries", means, differences, textwrap.fill(_ABOUT_TESTS, WIDTH)]
    parts += [_changed(row) for row in rows if row["changed"]]
    parts += _agreement([Row(name, agreement) for name, agreement in comparison.agreement.items()])
    return "\n\n".join([*parts, *(textwrap.fill(note, WIDTH) for note in comparison.notes)])


def check_text(check: Check) -> str:
    """Why the query encoder is admitted, the neighbors shared with the teacher, and a row per side."""
    lines = [f"{check.queries_by} is admitted among documents by {check.documents_by}: {check.admitted_as}."]
    if check.shared:
        shares = ", ".join(f"{share:.1%} of the top {depth}" for depth, share in check.shared.items())
        lines.append(f"Neighbors shared with the teacher's own exact search: {shares} ({check.queries} queries).")
    if check.sides:
        measures = list(check.sides[0]["quality"])
        heads = ["", *map(text.measure_title, measures), "p50 ms", "p95 ms", "docs/s", "documents by", "queries by"]
        lines.append(_table(heads, [_side(side, measures) for side in check.sides], texts=2))
    return "\n".join([*lines, *check.notes])


def _side(side: Mapping[str, Any], measures: Sequence[str]) -> list[str]:
    quality = [f"{side['quality'][measure]:.4f}" for measure in measures]
    times = [text.milliseconds((side["query_ms"] or {}).get(key)) for key in ("p50", "p95")]
    names = [text.short_name(side["documents_by"]), text.short_name(side["queries_by"])]
    return [side["name"], *quality, *times, text.thousands(side["documents_per_second"]), *names]


def _means(head: str, means: Mapping[str, Mapping[str, float]]) -> str:
    measures = list(next(iter(means.values())))
    rows = [[name, *(f"{values[measure]:.4f}" for measure in measures)] for name, values in means.items()]
    return _table([head, *map(text.measure_title, measures)], rows)


def _agreement(rows: Sequence[Row]) -> list[str]:
    if not rows:
        return []
    shown = columns.with_values(columns.AGREEMENT, rows)
    return [_of_columns(f"agreement with {rows[0].record.teacher}", shown, [row.name for row in rows], rows)]


def _agreement_and_cost(systems: Sequence[SystemResult]) -> list[str]:
    parts, costs = _agreement(columns.agreement_rows(systems)), columns.cost_rows(systems)
    if costs:
        head, timings = f"ms per batch, {costs[0].record.threads} thread(s)", columns.timing_rows(costs)
        parts.append(_of_columns(head, columns.TIMINGS, [row.name for row in timings], timings))
        parts.append(_of_columns("", columns.columns_of_costs(costs), [row.name for row in costs], costs))
    return parts


def _of_columns(head: str, shown: Sequence[Column], names: Sequence[str], rows: Sequence[Any]) -> str:
    cells = [[name, *(column.cell(row) for column in shown)] for name, row in zip(names, rows, strict=True)]
    return _table([head, *(column.head for column in shown)], cells)


def _changed(comparison: Mapping[str, Any]) -> str:
    lines = [f"queries that changed most: {comparison['a']} − {comparison['b']}"]
    for query in comparison["changed"]:
        words = f": {text.shorten(query['text'], WIDTH - 40)}" if query["text"] else ""
        change = f"{text.signed(query['difference'])}  {query['b']:.3f} → {query['a']:.3f}"
        lines.append(f"  {change}  {query['query_id']}{words}")
    return "\n".join(lines)


def _hit(hits: Sequence[Hit], rank: int, width: int) -> str:
    if rank >= len(hits):
        return f"  {text.MISSING}" if rank == 0 else ""
    hit = hits[rank]
    name = text.shorten_name(hit.document_id, 14)
    return f"{'✓' if hit.relevant else ' '} {rank + 1} {text.shorten(f'{name}: {hit.title} {hit.text}', width - 4)}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 0, width: int | None = None) -> str:
    """A table as text, with the first and the last `texts` columns aligned to the left."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    height = max(head.count("\n") for head in heads)
    for at, head in enumerate(heads):
        is_name = at == 0 or at >= len(heads) - texts
        title = Text("\n" * (height - head.count("\n")) + head)
        table.add_column(title, justify="left" if is_name else "right", overflow="fold", no_wrap=not is_name)
    for name, *cells in rows:
        first = name if width else text.shorten_name(name, _NAME)
        table.add_row(Text(first), *map(Text, cells))  # Text: brackets in a name are not markup
    # Without a width, it is as wide as its numbers need: a cropped number would be wrong, but a long line only wraps.
    console = Console(file=io.StringIO(), width=width or 10_000, color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(table)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).strip("\n")


def _two_lines(head: str) -> str:
    """A title, broken before its unit if it is long, so that the columns fit into a terminal."""
    for mark in (", ", "@", "/"):
        before, separator, after = head.partition(mark)
        if separator and len(head) > 7:
            return f"{before}\n{after if mark == ', ' else mark + after}"
    return head
