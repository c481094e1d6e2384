"""How numbers and names are written, in the terminal and on the page alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.cells import cell_len

from retrodistill.evaluation.results import Hit, System

MISSING = "–"
ALPHA = 0.05


def measure(value: float | None) -> str:
    """A measure between 0 and 1, three decimals."""
    return MISSING if value is None else f"{value:.3f}"


def kept(system: System) -> str:
    """Share of the teaching system's nDCG@10: ``94.1%``."""
    return MISSING if system.retention is None else f"{system.retention:.1%}"


def milliseconds(value: float | None) -> str:
    """Two or three significant digits: ``0.012``, ``0.12``, ``3.4``, ``1,200``."""
    if value is None:
        return MISSING
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 1:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.1 else f"{value:.3f}"


def latency(system: System) -> str:
    """``p50 / p95`` in milliseconds."""
    if system.query_ms is None:
        return MISSING
    return f"{milliseconds(system.query_ms['p50'])} / {milliseconds(system.query_ms['p95'])}"


def size(value: float | None) -> str:
    """Bytes, with thousands apart."""
    return MISSING if value is None else f"{value:,.0f}"


def memory(value: float | None) -> str:
    """Bytes in the unit that shows them: ``912 bytes``, ``37.1 kB``, ``1.54 MB``, ``2.31 GB``."""
    if value is None:
        return MISSING
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}" if value < 1000 * limit else f"{value / limit:,.0f} {unit}"
    return f"{value:.0f} bytes"


def title(measure: str) -> str:
    """A measure's name as people read it: ``nDCG@10``, ``MRR@10``; in files, options and settings it is lower case."""
    name, at, cut = measure.partition("@")
    return {"ndcg": "nDCG", "mrr": "MRR", "map": "MAP", "recall": "Recall"}.get(name, name) + at + cut


def duration(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def signed(value: float) -> str:
    """A difference, with its sign and a true minus."""
    return f"{value:+.3f}".replace("-", "−")


def probability(value: float) -> str:
    """``p = 0.012`` or ``p < 0.001``."""
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def corrected(comparison: Mapping[str, Any]) -> float:
    """The p that decides: corrected for several comparisons where that was done."""
    return float(comparison.get("p_holm", comparison["p"]))


def plain(text: str) -> str:
    """One line without control characters: a document's text must not steer a terminal."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def shorten(text: str, width: int) -> str:
    """Cut the end of a text to fit into columns (wide letters count two)."""
    text = plain(text)
    if cell_len(text) <= width:
        return text
    return _fitting(text, width - 1).rstrip() + "…"


def shorten_name(name: str, width: int) -> str:
    """Cut a name to fit: first the organization before a slash goes, then the middle, since names differ at the end."""
    name = plain(name)
    if cell_len(name) > width and "/" in name:
        kind, colon, rest = name.partition(":")
        name = kind + colon + rest.rsplit("/", 1)[-1] if colon else name.rsplit("/", 1)[-1]
    if cell_len(name) <= width:
        return name
    tail = _fitting(name[::-1], (width - 1) // 2)[::-1]
    return _fitting(name, width - 1 - cell_len(tail)) + "…" + tail


def first_relevant(hits: list[Hit]) -> int | None:
    """Rank, from 1, of the first relevant document; None where the ranking shows none."""
    return next((rank for rank, hit in enumerate(hits, 1) if hit.relevant), None)


def _fitting(text: str, width: int) -> str:
    used = 0
    for place, letter in enumerate(text):
        used += cell_len(letter)
        if used > width:
            return text[:place]
    return text
