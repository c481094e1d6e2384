"""The queries won and lost, and some that nobody picked, each expandable to both rankings; searchable."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from retrodistill.evaluation.results import Example, Hit, Results
from retrodistill.report import markup, words
from retrodistill.report.headline import comparison_of

_QUERY, _WHOLE_QUERY = 240, 2000  # letters of a query: on its line, and when opened
_TITLE, _TEXT, _WHOLE, _ID = 200, 300, 2000, 80  # letters of a document: at once, and when asked for more
_RELEVANT = '<span class="right">✓ relevant</span> '
_CONTROL = {code: " " for code in range(32) if chr(code) not in "\n\t"}


def queries(results: Results) -> str:
    """Groups of queries with a search box over all of them; empty where there are none."""
    sides = _sides(results)
    counts = comparison_of(results, sides[1], sides[0]) or {}
    groups = [
        _group(
            "won", _counted("Won", f"{sides[1]} above {sides[0]}", results.won, counts.get("wins")), results.won, sides
        ),
        _group(
            "lost",
            _counted("Lost", f"{sides[1]} below {sides[0]}", results.lost, counts.get("losses")),
            results.lost,
            sides,
        ),
        _group("drawn", "Evenly drawn, so that nobody picked them", results.examples, sides),
    ]
    total = len(results.won) + len(results.lost) + len(results.examples)
    if not total:
        return ""
    tools = (
        '<p class="tools" hidden><button type="button" data-open="queries-list">Open all</button> '
        '<button type="button" data-close="queries-list">Close all</button></p>'
    )
    box = markup.search("queries-list", "Search queries and documents", total, "queries")
    listed = f'<div id="queries-list">{"".join(groups)}<p class="none" hidden>No query matches.</p></div>'
    head = "Queries won and lost" if results.won or results.lost else "Rankings side by side"
    return markup.section("queries", head, _about(results, sides) + box + tools + listed)


def _about(results: Results, sides: tuple[str, str]) -> str:
    judged = any(one.relevant for one in [*results.won, *results.lost, *results.examples])
    told = "✓ marks what was judged relevant" if judged else "nothing was judged relevant, so nothing is marked"
    return markup.about(f"{escape(sides[1])} beside {escape(sides[0])}: open a query for both rankings; {told}.")


def _sides(results: Results) -> tuple[str, str]:
    if len(results.sides) == 2:
        return results.sides[0], results.sides[1]
    return "teacher", "student"


def _counted(head: str, meaning: str, shown: Sequence[Example], total: int | None) -> str:
    count = f"the {len(shown)} largest of {total:,}" if total is not None and total > len(shown) else str(len(shown))
    return f"{head}: {escape(meaning)} ({count})"


def _group(name: str, head: str, examples: Sequence[Example], sides: tuple[str, str]) -> str:
    if not examples:
        return ""
    items = "".join(_example(example, sides) for example in examples)
    return f'<div class="group" data-group="{name}"><h3>{head}</h3>{items}</div>'


def _example(example: Example, sides: tuple[str, str]) -> str:
    outcome, told = _outcome(example, sides)
    summary = (
        f'<summary><span class="query"><bdi>{_cut(example.query, _QUERY)}</bdi></span> '
        f'<span class="ranks {outcome}">{told}{f" <b>{outcome}</b>" if outcome else ""}</span></summary>'
    )
    whole = ""
    if len(example.query) > _QUERY:
        whole = f'<p class="whole" dir="auto">{_cut(example.query, _WHOLE_QUERY)}</p>'
    rankings = "".join(
        _ranking(name, hits) for name, hits in zip(sides, (example.teacher, example.student), strict=True)
    )
    relevant = ", ".join(f"<bdi>{_cut(name, _ID)}</bdi>" for name in example.relevant[:20]) or "none"
    more = f" and {len(example.relevant) - 20:,} more" if len(example.relevant) > 20 else ""
    query = f"Query <bdi>{_cut(example.query_id, _ID)}</bdi>. " if example.query_id else ""
    return (
        f'<details class="example" data-item>{summary}{whole}<div class="sides">{rankings}</div>'
        f"{_missed(example, sides)}"
        f'<p class="about">{query}Judged relevant: {relevant}{more}</p></details>'
    )


def _outcome(example: Example, sides: tuple[str, str]) -> tuple[str, str]:
    """The word for it, and the line below the query, as HTML."""
    names = [escape(words.shorten_name(name, 32)) for name in sides]
    first, second = example.teacher_value, example.student_value
    if first is not None and second is not None:
        word = "won" if second - first > 1e-9 else "lost" if first - second > 1e-9 else "same"
        change = f"{words.measure(first)} → {words.measure(second)}"
        return word, f"nDCG@10 {change} ({words.signed(second - first)})"
    if not example.relevant:
        return "", f"{_shared(example)} of the documents shown are the same"
    ranks = [words.first_relevant(hits) for hits in (example.teacher, example.student)]
    told = ", ".join(f"{name} {rank or words.MISSING}" for name, rank in zip(names, ranks, strict=True))
    return _by_rank(*ranks), f"first relevant: {told}"


def _by_rank(teacher: int | None, student: int | None) -> str:
    if teacher == student:
        return "same"
    return "won" if teacher is None or (student is not None and student < teacher) else "lost"


def _shared(example: Example) -> str:
    both = {hit.document_id for hit in example.teacher} & {hit.document_id for hit in example.student}
    return f"{len(both)} of {max(len(example.teacher), len(example.student))}"


def _ranking(head: str, hits: Sequence[Hit]) -> str:
    items = "".join(_hit(hit) for hit in hits) or f"<li>{words.MISSING}</li>"
    return f"<div><h4><bdi>{escape(head)}</bdi></h4><ol>{items}</ol></div>"


def _hit(hit: Hit) -> str:
    mark = _RELEVANT if hit.relevant else ""
    score = f'<span class="score">{markup.number(hit.score)}</span>'
    kind = ' class="relevant"' if hit.relevant else ""
    return f"<li{kind}><p>{mark}{_name(hit.document_id)} {score}</p>{_texts(hit.title, hit.text)}</li>"


def _missed(example: Example, sides: tuple[str, str]) -> str:
    """Relevant documents that neither ranking shows, with the rank in each."""
    if not example.missed:
        return ""
    items = []
    for one in example.missed:
        ranks = zip(sides, (one.teacher_rank, one.student_rank), strict=True)
        told = ", ".join(f"{escape(name)} {rank or words.MISSING}" for name, rank in ranks)
        head = f'<p>{_RELEVANT}{_name(one.document_id)} <span class="score">rank: <bdi>{told}</bdi></span></p>'
        items.append(f'<li class="relevant">{head}{_texts(one.title, one.text)}</li>')
    return f'<div class="missed"><h4>Relevant, and in neither five</h4><ul>{"".join(items)}</ul></div>'


def _texts(title: str, text: str) -> str:
    """Title and beginning of a document; the rest where one asks for it."""
    head = f'<p class="title" dir="auto">{_cut(title, _TITLE)}</p>' if title else ""
    if len(text) <= _TEXT:
        return f'{head}<p dir="auto">{_cut(text, _TEXT)}</p>'
    space = text.rfind(" ", _TEXT * 3 // 4, _TEXT)
    at = space if space > 0 else _TEXT
    rest = f'<details class="more"><summary>more</summary><p dir="auto">{_cut(text[at:], _WHOLE)}</p></details>'
    return f'{head}<p dir="auto">{_cut(text[:at], _TEXT)} …</p>{rest}'


def _name(document_id: str) -> str:
    return f'<span class="document"><bdi>{_cut(document_id, _ID)}</bdi></span>'


def _cut(text: str, length: int) -> str:
    """The beginning of a text, escaped, control characters blanked."""
    cut = text if len(text) <= length else f"{text[: length - 1]}…"
    return escape(cut.translate(_CONTROL))
