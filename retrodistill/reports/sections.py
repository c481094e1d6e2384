"""The parts of the page, each a function from results to HTML; everything that came from outside is escaped."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

from retrodistill.reports import svg, words
from retrodistill.reports.curves import curves
from retrodistill.reports.front import fronts
from retrodistill.reports.headline import answer
from retrodistill.reports.results import ROLES, Example, Hit, Results, System

# What a cell shows and what it sorts by; None sorts last in both directions.
_Cell = tuple[str, float | None]


def opening(results: Results) -> str:
    """The title and the answer: two sentences large, what qualifies them as a list."""
    sentences = [escape(sentence) for sentence in answer(results)]
    title = f'<p class="over">{escape(results.name or "retrodistill")} · {escape(_place(results))}</p>'
    points = "".join(f"<li>{sentence}</li>" for sentence in sentences[2:])
    return f"<header>{title}<h1>{' '.join(sentences[:2])}</h1>{f'<ul>{points}</ul>' if points else ''}</header>"


def notes(results: Results) -> str:
    """Warnings worth a reader's eye."""
    items = "".join(f"<li>{escape(note)}</li>" for note in results.notes)
    return f'<section class="notes" id="notes"><h2>Notes</h2><ul>{items}</ul></section>' if items else ""


def systems(results: Results) -> str:
    """The table of systems, sortable by every head."""
    heads = [_head("system"), *(_head(head, number=True) for head in _numbers(results.systems[0]))]
    row = "".join([*heads, _head("documents by"), _head("queries by")])
    body = "".join(_row(system) for system in results.systems)
    table = _scrolled(f'<table class="sortable"><thead><tr>{row}</tr></thead><tbody>{body}</tbody></table>', "Systems")
    about = (
        f'<p class="about">Kept: share of the nDCG@10 of {escape(results.teacher.name)}.</p>' if results.teacher else ""
    )
    return _section("systems", "Systems", _legend(results) + table + about)


def comparisons(results: Results) -> str:
    """Differences with their intervals, and whether they are significant; empty where nothing was compared."""
    rows = "".join(_comparison(comparison) for comparison in results.comparisons)
    if not rows:
        return ""
    names = "".join(f'<th scope="col">{head}</th>' for head in ("a", "b", "measure"))
    numbers = "".join(f'<th scope="col" class="number">{head}</th>' for head in ("a − b", "interval", "p"))
    heads = f'{names}{numbers}<th scope="col">verdict</th>'
    return _section(
        "comparisons",
        "Is the difference real?",
        _scrolled(f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>", "Comparisons")
        + f'<p class="about">Significant: p below {words.ALPHA}.</p>',
    )


def costs(results: Results) -> str:
    """Quality against cost."""
    drawn = f'<div class="figures">{fronts(results)}</div>'
    return _section("front", "Quality against cost", _legend(results) + drawn)


def training(results: Results) -> str:
    """Training curves; empty where nothing was recorded."""
    drawn = curves(results)
    return _section("training", "Training", drawn) if drawn else ""


def examples(results: Results) -> str:
    """The queries, each expandable to both rankings, with a search box; empty where there are none."""
    if not results.examples:
        return ""
    items = "".join(_example(example) for example in results.examples)
    count = len(results.examples)
    search = (
        '<p class="search"><label for="search">Search queries and documents</label> '
        '<input id="search" type="search" autocomplete="off"> '
        f'<output for="search" id="found">{count} of {count}</output></p>'
    )
    return _section("examples", "Rankings side by side", search + items)


def provenance(results: Results) -> str:
    """Where the numbers are from and how to have them again."""
    command = f"<h3>Command</h3><pre><code>{escape(results.command)}</code></pre>" if results.command else ""
    about: dict[str, Any] = {"collection": results.collection, "split": results.split, "queries": results.queries}
    about |= {"seed": results.seed} if results.seed is not None else {}
    groups = {
        "Data": about,
        "Made from": results.provenance,
        "Hardware": results.hardware,
        "Versions": results.versions,
    }
    lists = "".join(f"<div><h3>{head}</h3>{_definitions(group)}</div>" for head, group in groups.items() if group)
    return _section("provenance", "Provenance", f'{command}{_seconds(results)}<div class="facts">{lists}</div>')


def _place(results: Results) -> str:
    return f"{results.collection}, {results.split}, {results.queries:,} queries"


def _section(name: str, head: str, content: str) -> str:
    return f'<section id="{name}" aria-labelledby="{name}-head"><h2 id="{name}-head">{head}</h2>{content}</section>'


def _scrolled(table: str, label: str) -> str:
    """A wide table scrolls within its own box, so that the page never does; the keyboard can reach it."""
    return f'<div class="scroll" role="region" aria-label="{label}" tabindex="0">{table}</div>'


def _legend(results: Results) -> str:
    present = {system.role for system in results.systems}
    keys = " ".join(f"<span>{svg.icon(role)} {role}</span>" for role in ROLES if role in present)
    return f'<p class="legend">{keys}</p>'


def _numbers(system: System) -> dict[str, _Cell]:
    time = system.query_ms or {}
    return {
        "nDCG@10": (words.measure(system.ndcg10), system.ndcg10),
        "MRR@10": (words.measure(system.mrr10), system.mrr10),
        "Recall@100": (words.measure(system.recall100), system.recall100),
        "kept": (words.kept(system), system.retention),
        "query p50, ms": (words.milliseconds(time.get("p50")), time.get("p50")),
        "query p95, ms": (words.milliseconds(time.get("p95")), time.get("p95")),
        "bytes/doc": (words.size(system.bytes_per_document), system.bytes_per_document),
    }


def _head(head: str, number: bool = False) -> str:
    kind = ' class="number"' if number else ""
    return f'<th scope="col" aria-sort="none"{kind}><button type="button">{head}</button></th>'


def _row(system: System) -> str:
    name = f'<th scope="row"><span>{svg.icon(system.role)}</span> {escape(system.name)}<i>, {system.role}</i></th>'
    numbers = "".join(
        f'<td class="number" data-value="{"" if value is None else repr(float(value))}">{shown}</td>'
        for shown, value in _numbers(system).values()
    )
    sides = "".join(f"<td>{escape(side or words.MISSING)}</td>" for side in (system.documents_by, system.queries_by))
    return f'<tr class="{system.role}">{name}{numbers}{sides}</tr>'


def _comparison(comparison: Mapping[str, Any]) -> str:
    low, high = comparison["interval"]
    real = "significant" if comparison["p"] < words.ALPHA else "not significant"
    names = [comparison["a"], comparison["b"], comparison["measure"]]
    numbers = [words.signed(comparison["difference"]), f"{words.signed(low)} to {words.signed(high)}"]
    numbers.append(words.probability(comparison["p"]).removeprefix("p ").removeprefix("= "))
    cells = [f"<td>{escape(str(name))}</td>" for name in names]
    cells += [f'<td class="number">{escape(number)}</td>' for number in numbers]
    return f"<tr>{''.join(cells)}<td>{real}</td></tr>"


def _example(example: Example) -> str:
    ranks = [words.first_relevant(hits) for hits in (example.teacher, example.student)]
    teacher, student = (rank or words.MISSING for rank in ranks)
    outcome = _outcome(*ranks)
    summary = (
        f'<summary><span class="query">{escape(example.query)}</span> <span class="ranks {outcome}">'
        f"first relevant: teacher {teacher}, student {student} <b>{outcome}</b></span></summary>"
    )
    sides = _ranking("Teacher", example.teacher) + _ranking("Student", example.student)
    relevant = escape(", ".join(example.relevant)) or "none"
    return (
        f'<details class="example">{summary}<div class="sides">{sides}</div>'
        f'<p class="about">Judged relevant: {relevant}</p></details>'
    )


def _outcome(teacher: int | None, student: int | None) -> str:
    if teacher == student:
        return "same"
    return "won" if teacher is None or (student is not None and student < teacher) else "lost"


def _ranking(head: str, hits: list[Hit]) -> str:
    items = "".join(_hit(hit) for hit in hits) or f"<li>{words.MISSING}</li>"
    return f"<div><h4>{head}</h4><ol>{items}</ol></div>"


def _hit(hit: Hit) -> str:
    mark = '<span class="right">✓ relevant</span> ' if hit.relevant else ""
    score = f'<span class="score">{hit.score:.4g}</span>'.replace("-", "−")
    name = f'<span class="document">{escape(hit.document_id)}</span>'
    kind = ' class="relevant"' if hit.relevant else ""
    return f'<li{kind}><p>{mark}{name} {score}</p><p dir="auto">{escape(hit.text)}</p></li>'


def _seconds(results: Results) -> str:
    if not results.seconds:
        return ""
    most, total = max(results.seconds.values()) or 1.0, sum(results.seconds.values())
    rows = "".join(
        f'<tr><th scope="row">{escape(stage)}</th><td class="number">{words.duration(seconds)}</td>'
        f'<td class="bar"><svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="share" width="{100 * seconds / most:.1f}" height="8"/></svg></td></tr>'
        for stage, seconds in results.seconds.items()
    )
    total_row = f'<tr><th scope="row">total</th><td class="number">{words.duration(total)}</td><td></td></tr>'
    return f'<h3>Time per stage</h3><table class="seconds"><tbody>{rows}{total_row}</tbody></table>'


def _definitions(group: Mapping[str, Any]) -> str:
    pairs = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in _flat(group))
    return f"<dl>{pairs}</dl>"


def _flat(group: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for name, value in group.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{name}.")
        elif isinstance(value, list | tuple):
            yield f"{above}{name}", ", ".join(str(item) for item in value) or words.MISSING
        else:
            yield f"{above}{name}", words.MISSING if value is None else str(value)
