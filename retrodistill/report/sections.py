"""The page's first and last parts: the answer, the notes, and where the numbers are from."""

from __future__ import annotations

import re
from html import escape
from typing import Any

from retrodistill.evaluation.results import Results
from retrodistill.report import markup, words
from retrodistill.report.headline import answer


def opening(results: Results) -> str:
    """The title and the answer: two sentences large, what qualifies them as a list."""
    # A p stays on the line of its value.
    sentences = [re.sub(r"\bp ([=<]|&lt;) ", r"p&nbsp;\1&nbsp;", escape(sentence)) for sentence in answer(results)]
    place = f"{results.collection}, {results.split}, {results.queries:,} queries"
    title = f'<p class="over">{escape(results.name or "retrodistill")} · {escape(place)}</p>'
    points = "".join(f"<li>{sentence}</li>" for sentence in sentences[2:])
    return f"<header>{title}<h1>{' '.join(sentences[:2])}</h1>{f'<ul>{points}</ul>' if points else ''}</header>"


def notes(results: Results) -> str:
    """Warnings worth a reader's eye."""
    items = "".join(f"<li>{escape(note)}</li>" for note in results.notes)
    return f'<section class="notes" id="notes"><h2>Notes</h2><ul>{items}</ul></section>' if items else ""


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
    lists = "".join(f"<div><h3>{head}</h3>{markup.definitions(group)}</div>" for head, group in groups.items() if group)
    content = f'{command}{_seconds(results)}<div class="facts">{lists}</div>'
    return markup.section("provenance", "Provenance", content)


def _seconds(results: Results) -> str:
    if not results.seconds:
        return ""
    most = max(results.seconds.values()) or 1.0
    inside = {f"train {stage.removeprefix('distill ')}" for stage in results.seconds if stage.startswith("distill ")}
    total = sum(seconds for stage, seconds in results.seconds.items() if stage not in inside)
    rows = "".join(
        f'<tr><th scope="row">{escape(stage)}</th><td class="number">{words.duration(seconds)}</td>'
        f'<td class="bar"><svg viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="share" width="{100 * seconds / most:.1f}" height="8"/></svg></td></tr>'
        for stage, seconds in results.seconds.items()
    )
    total_row = f'<tr><th scope="row">total</th><td class="number">{words.duration(total)}</td><td></td></tr>'
    return f'<h3>Time per stage</h3><table class="seconds"><tbody>{rows}{total_row}</tbody></table>'
