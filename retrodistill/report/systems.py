"""The table of systems: sortable by every head, searchable."""

from __future__ import annotations

from html import escape

from retrodistill.evaluation.results import Results, System
from retrodistill.report import markup, words


def systems(results: Results) -> str:
    """Every system with what was measured of it; columns that nobody has a value for are left out."""
    columns = _columns(results)
    heads = [_head("system"), *(_head(head, number=True) for head in columns)]
    row = "".join([*heads, _head("documents by"), _head("queries by")])
    body = "".join(_row(system, columns) for system in results.systems)
    table = f'<table class="sortable"><thead><tr>{row}</tr></thead><tbody id="rows">{body}</tbody></table>'
    search = markup.search("rows", "Search systems", len(results.systems), "systems")
    content = search + markup.legend(results.systems) + markup.scrolled(table, "Systems") + _about(results)
    return markup.section("systems", "Systems", content)


def _about(results: Results) -> str:
    told = []
    if all(system.ndcg10 is None for system in results.systems):
        told.append(
            f"<b>No quality:</b> {escape(results.collection)} has no relevance judgments for these queries, so "
            "nothing says which documents are right. Agreement with the teacher and cost need none."
        )
    if results.yardstick is not None and any(system.retention is not None for system in results.systems):
        told.append(f"Kept: share of the nDCG@10 of {escape(results.yardstick.name)}.")
    if any(system.query_ms is not None for system in results.systems):
        told.append("Times: one query at a time, encoding and search.")
    return markup.about(" ".join(told)) if told else ""


def _numbers(system: System) -> dict[str, markup.Cell]:
    time = system.query_ms or {}
    named = {
        "nDCG@10": system.ndcg10,
        "MRR@10": system.mrr10,
        "MAP": system.map1000,
        "Recall@10": system.recall10,
        "Recall@100": system.recall100,
        "Recall@1000": system.recall1000,
        "holes@10": system.hole10,
        **{words.title(name): value for name, value in system.measures.items()},
    }
    return {
        **{name: (words.measure(value), value) for name, value in named.items()},
        "kept": (words.kept(system), system.retention),
        "query p50, ms": (words.milliseconds(time.get("p50")), time.get("p50")),
        "query p95, ms": (words.milliseconds(time.get("p95")), time.get("p95")),
        "bytes/doc": (words.size(system.bytes_per_document), system.bytes_per_document),
    }


def _columns(results: Results) -> list[str]:
    """Heads of number columns, in order; what is always there first."""
    every = [_numbers(system) for system in results.systems]
    names = dict.fromkeys(name for one in every for name in one)
    always = ("nDCG@10", "query p50, ms", "bytes/doc")
    return [name for name in names if name in always or any(one.get(name, ("", None))[1] is not None for one in every)]


def _head(head: str, number: bool = False) -> str:
    kind = ' class="number"' if number else ""
    return f'<th scope="col" aria-sort="none"{kind}><button type="button">{escape(head)}</button></th>'


def _row(system: System, columns: list[str]) -> str:
    cells = _numbers(system)
    numbers = "".join(_cell(cells.get(name, (words.MISSING, None))) for name in columns)
    sides = "".join(
        f"<td><bdi>{escape(side or words.MISSING)}</bdi></td>" for side in (system.documents_by, system.queries_by)
    )
    name = f'<th scope="row">{markup.named(system)}</th>'
    return f'<tr class="{system.role}" data-item>{name}{numbers}{sides}</tr>'


def _cell(cell: markup.Cell) -> str:
    shown, value = cell
    return f'<td class="number" data-value="{"" if value is None else repr(float(value))}">{shown}</td>'
