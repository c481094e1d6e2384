"""The results in a terminal: the table of systems, and rankings side by side."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.cells import set_cell_size

from retrodistill.evaluation.results import Example, Hit, Results, System
from retrodistill.report import words

if TYPE_CHECKING:
    from rich.table import Table

WIDTH = 100
_DEPTH = 3
# Column heads and what stands below; a head may take two lines so that nine columns fit into 100.
_NUMBERS: dict[str, Callable[[System], str]] = {
    "\nnDCG@10": lambda system: words.measure(system.ndcg10),
    "\nMRR@10": lambda system: words.measure(system.mrr10),
    "Recall\n@100": lambda system: words.measure(system.recall100),
    "\nkept": words.kept,
    "query ms\np50 / p95": words.latency,
    "bytes\n/doc": lambda system: words.size(system.bytes_per_document),
}
_NAMES: dict[str, Callable[[System], str]] = {
    "system": lambda system: system.name,
    "documents by": lambda system: system.documents_by or words.MISSING,
    "queries by": lambda system: system.queries_by or words.MISSING,
}


def results_table(results: Results, width: int = WIDTH) -> Table:
    """The table of systems, students in bold.

    Args:
        results: What was measured.
        width: Columns that it may take; names are shortened to fit, numbers never.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    numbers = [[cell(system) for cell in _NUMBERS.values()] for system in results.systems]
    names = _fit_names(results.systems, width - _width_of(numbers))
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, pad_edge=False)
    table.add_column("\nsystem", no_wrap=True)
    for head in _NUMBERS:
        table.add_column(head, justify="right", no_wrap=True)
    table.add_column("\ndocuments by", no_wrap=True)
    table.add_column("\nqueries by", no_wrap=True)
    for system, (name, *sides), row in zip(results.systems, names, numbers, strict=True):
        cells = [Text(cell) for cell in (name, *row, *sides)]  # Text, so that brackets in a name are no markup
        table.add_row(*cells, style="bold" if system.role == "student" else None)
    return table


def table_text(results: Results, width: int = WIDTH) -> str:
    """The table as plain text, at most `width` columns wide (where the numbers alone need no more)."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=max(width, 200), color_system=None, legacy_windows=False)
    with console.capture() as capture:
        console.print(results_table(results, width))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).strip("\n")


def examples_text(results: Results, shown: int = 5, width: int = WIDTH) -> str:
    """The first queries with the top 3 of the reference, and beside them the student’s; ✓ marks the relevant ones."""
    return "\n\n".join(
        _example_text(example, results.sides or ["teacher", "student"], width) for example in results.examples[:shown]
    )


def _example_text(example: Example, sides: list[str], width: int) -> str:
    half = (width - 3) // 2
    heads = [f"  {words.shorten_name(name, half - 2)}" for name in sides]
    lines = [f"› {words.shorten(example.query, width - 2)}", _side_by_side(heads[0], heads[1], half)]
    for rank in range(min(_DEPTH, max(len(example.teacher), len(example.student), 1))):
        teacher, student = (_hit_text(hits, rank, half) for hits in (example.teacher, example.student))
        lines.append(_side_by_side(teacher, student, half))
    return "\n".join(lines)


def _hit_text(hits: list[Hit], rank: int, width: int) -> str:
    if rank >= len(hits):
        return f"  {words.MISSING}" if rank == 0 else ""
    hit = hits[rank]
    mark = "✓" if hit.relevant else " "
    name = words.shorten_name(hit.document_id, 14)
    return f"{mark} {rank + 1} {words.shorten(f'{name}: {hit.title} {hit.text}', width - 4)}"


def _side_by_side(left: str, right: str, half: int) -> str:
    return f"{set_cell_size(left, half)} │ {right}".rstrip()


def _width_of(numbers: list[list[str]]) -> int:
    heads = [max(len(line) for line in head.split("\n")) for head in _NUMBERS]
    columns = zip(heads, *([len(cell) for cell in row] for row in numbers), strict=True)
    return sum(max(column) + 2 for column in columns)


def _fit_names(systems: list[System], room: int) -> list[list[str]]:
    """Cells of the name columns, within the room left by the numbers.

    Whole where they fit; else models on two lines, the short columns whole and the long ones sharing the rest.
    """
    whole = [[words.plain(cell(system)) for cell in _NAMES.values()] for system in systems]
    left = room - 2 * (len(_NAMES) - 1)
    if sum(_widths([[[cell] for cell in row] for row in whole])) <= left:
        return whole
    folded = [[[row[0]], *(_fold(cell) for cell in row[1:])] for row in whole]
    limits = _share(_widths(folded), left)
    return [
        ["\n".join(words.shorten_name(line, limit) for line in cell) for cell, limit in zip(row, limits, strict=True)]
        for row in folded
    ]


def _widths(rows: list[list[list[str]]]) -> list[int]:
    """Width that each name column wants, from cells of lines."""
    from rich.cells import cell_len

    return [max(len(head), *(cell_len(line) for row in rows for line in row[at])) for at, head in enumerate(_NAMES)]


def _share(wanted: list[int], left: int) -> list[int]:
    """Columns for each: the narrowest first, none more than it wants nor more than an even share of what is left."""
    limits = [0] * len(wanted)
    heads = [len(head) for head in _NAMES]
    for others, at in zip(range(len(wanted), 0, -1), sorted(range(len(wanted)), key=wanted.__getitem__), strict=True):
        limits[at] = max(heads[at], min(wanted[at], left // others))
        left -= limits[at]
    return limits


def _fold(name: str) -> list[str]:
    """A model's name on two lines, its kind above, the organization left out: the part that differs stays readable."""
    kind, colon, rest = name.partition(":")
    return [kind + colon, rest.rsplit("/", 1)[-1]] if rest else [name]
