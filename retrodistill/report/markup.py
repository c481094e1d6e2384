"""Pieces of HTML that several sections share; everything that came from outside is escaped."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from retrodistill.evaluation.results import ROLES, System
from retrodistill.report import svg, words

# What a cell shows and what it sorts by; None sorts last in both directions.
Cell = tuple[str, float | None]


def section(name: str, head: str, content: str) -> str:
    """A section with its heading, to be linked to by its name."""
    return f'<section id="{name}" aria-labeledby="{name}-head"><h2 id="{name}-head">{head}</h2>{content}</section>'


def about(text: str) -> str:
    """A line of explanation; the text is HTML."""
    return f'<p class="about">{text}</p>'


def scrolled(table: str, label: str) -> str:
    """A wide table scrolls within its own box, so that the page never does; the keyboard can reach it."""
    return f'<div class="scroll" role="region" aria-label="{label}" tabindex="0">{table}</div>'


def legend(systems: Iterable[System]) -> str:
    """The roles that are present, with their marks; empty where there is one alone."""
    present = {system.role for system in systems}
    if len(present) < 2:
        return ""
    keys = " ".join(f"<span>{svg.icon(role)} {role}</span>" for role in ROLES if role in present)
    return f'<p class="legend">{keys}</p>'


def named(system: System) -> str:
    """A system with the mark of its role, which is told in words to those who do not see it."""
    role = "" if system.name == system.role else f'<span class="told">, {system.role}</span>'
    return f"<span>{svg.icon(system.role)}</span>&nbsp;<bdi>{escape(system.name)}</bdi>{role}"


def table(heads: Sequence[str], rows: Iterable[str], label: str, left: Iterable[int] = (0,)) -> str:
    """A plain table in its scrolled box.

    Args:
        heads: Of the columns, as HTML.
        rows: Whole ``<tr>`` elements.
        label: What it is, for those who do not see it.
        left: Columns of words; the others hold numbers.
    """
    kinds = ["" if at in tuple(left) else ' class="number"' for at in range(len(heads))]
    row = "".join(f'<th scope="col"{kind}>{head}</th>' for head, kind in zip(heads, kinds, strict=True))
    return scrolled(f"<table><thead><tr>{row}</tr></thead><tbody>{''.join(rows)}</tbody></table>", label)


def row(head: str, cells: Iterable[str], kind: str = "") -> str:
    """A row of numbers behind its head; head and cells are HTML."""
    kind = f' class="{kind}"' if kind else ""
    numbers = "".join(f'<td class="number">{cell}</td>' for cell in cells)
    return f'<tr{kind}><th scope="row">{head}</th>{numbers}</tr>'


def search(name: str, label: str, total: int, what: str) -> str:
    """A box that filters the ``data-item`` elements within the element of this id; hidden without its script."""
    box, found = f"search-{name}", f"found-{name}"
    return (
        f'<p class="search" hidden><label for="{box}">{label}</label> '
        f'<input id="{box}" type="search" autocomplete="off" aria-controls="{name}" data-found="{found}"> '
        f'<output for="{box}" id="{found}" data-what="{what}">{total} of {total} {what}</output></p>'
    )


def number(value: float | None) -> str:
    """A raw score with a true minus; a dash for none."""
    return words.MISSING if value is None else f"{value:.4g}".replace("-", "−")


def definitions(group: Mapping[str, Any]) -> str:
    """Names and values, nested names joined by points."""
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
