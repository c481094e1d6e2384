"""Formats of numbers, names, and texts, shared by the terminal, the page, and model cards; and the templates."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from rich.cells import cell_len

from retrodistill.evaluation.results import Results

MISSING = "–"
ALPHA = 0.05
_NOT_SHOWN = ("Cc", "Cf", "Cs", "Zl", "Zp")  # control characters, and those that turn the direction of text
_SEPARATORS = re.compile(r"([:@])")


def _format(spec: str) -> Callable[[float | None], str]:
    return lambda value: MISSING if value is None else format(value, spec).replace("-", "−")


measure = _format(".3f")  # a measure between 0 and 1
signed = _format("+.3f")  # a difference
percent = _format(".1%")  # a share: 94.1%
number = _format(".4g")  # a raw score
thousands = _format(",.0f")  # 1,536


def milliseconds(value: float | None) -> str:
    """Two or three significant digits: ``0.012``, ``0.12``, ``3.4``, ``1,200``."""
    if value is None:
        return MISSING
    digits = 0 if value >= 100 else 1 if value >= 1 else 2 if value >= 0.1 else 3
    return f"{value:,.{digits}f}"


def latency(query_ms: Mapping[str, float] | None) -> str:
    """``p50 / p95`` in milliseconds."""
    return MISSING if query_ms is None else f"{milliseconds(query_ms['p50'])} / {milliseconds(query_ms['p95'])}"


def memory(value: float | None) -> str:
    """Bytes in a readable unit: ``912 bytes``, ``37.1 kB``, ``1.54 MB``, ``2.31 GB``."""
    if value is None:
        return MISSING
    for limit, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= limit:
            return f"{value / limit:.3g} {unit}" if value < 1000 * limit else f"{value / limit:,.0f} {unit}"
    return f"{value:.0f} bytes"


def duration(seconds: float | None) -> str:
    """``0.4 s``, ``12 s``, ``3 min 20 s``, ``2 h 5 min``."""
    if seconds is None:
        return MISSING
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def measure_title(measure: str) -> str:
    """A measure's name as papers write it: ``nDCG@10``, ``MRR@10``. Files and settings use lower case."""
    name, at, cut = measure.partition("@")
    return {"ndcg": "nDCG", "mrr": "MRR", "map": "MAP", "recall": "Recall"}.get(name, name) + at + cut


def p_value(value: float | None) -> str:
    """``0.012`` or ``< 0.001``."""
    return MISSING if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def probability(value: float) -> str:
    """``p = 0.012`` or ``p < 0.001``."""
    return f"p {'' if value < 0.001 else '= '}{p_value(value)}"


def interval(ends: Sequence[float]) -> str:
    """``−0.066 to −0.021``."""
    return f"{signed(ends[0])} to {signed(ends[1])}"


def decisive_p(comparison: Mapping[str, Any]) -> float:
    """The p value that decides: corrected for several comparisons where that was done."""
    return float(comparison.get("p_holm", comparison["p"]))


def significance(comparison: Mapping[str, Any]) -> str:
    """``significant`` or ``not significant``."""
    return "significant" if decisive_p(comparison) < ALPHA else "not significant"


def plain(text: str) -> str:
    """One line without control characters, because a document's text must not control a terminal."""
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


def shorten(text: str, width: int) -> str:
    """Cut the end of a text to fit into terminal columns; wide characters take two."""
    text = plain(text)
    return text if cell_len(text) <= width else _fitting(text, width - 1).rstrip() + "…"


def shorten_name(name: str, width: int) -> str:
    """Cut a name to fit: first drop the organization before a slash, then the middle, since names differ at the end."""
    name = plain(name)
    if cell_len(name) > width and "/" in name:
        kind, colon, rest = name.partition(":")
        name = kind + colon + rest.rsplit("/", 1)[-1] if colon else name.rsplit("/", 1)[-1]
    if cell_len(name) <= width:
        return name
    tail = _fitting(name[::-1], (width - 1) // 2)[::-1]
    return _fitting(name, width - 1 - cell_len(tail)) + "…" + tail


def _fitting(text: str, width: int) -> str:
    used = 0
    for place, letter in enumerate(text):
        used += cell_len(letter)
        if used > width:
            return text[:place]
    return text


def with_short_names(results: Results) -> Results:
    """A copy with short system names; provenance and the command keep the full ones."""
    names = short_names(system.name for system in results.systems)
    systems = []
    for system in results.systems:
        sides = {side: short_name(getattr(system, side)) for side in ("documents_by", "queries_by")}
        systems.append(system.model_copy(update={"name": names[system.name], **sides}))
    return results.model_copy(
        update={
            "systems": systems,
            "comparisons": [{**row, "a": names[row["a"]], "b": names[row["b"]]} for row in results.comparisons],
            "curves": {names.get(name, name): curve for name, curve in results.curves.items()},
            "sides": [names[name] for name in results.sides],
            "taught_by": results.taught_by and names[results.taught_by],
            "kept_of": results.kept_of and names[results.kept_of],
        }
    )


def short_names(names: Iterable[str]) -> Mapping[str, str]:
    """``{name: short name}``; names that would become the same stay unchanged."""
    short = {name: short_name(name) for name in names}
    times = Counter(short.values())
    return {name: candidate if times[candidate] == 1 else name for name, candidate in short.items()}


def short_name(name: str) -> str:
    """Drop folders: ``run:/data/mine.run`` becomes ``run:mine.run``; a hub's ``organization/model`` stays unchanged."""
    return "".join(_without_folders(part) for part in _SEPARATORS.split(name))


def _without_folders(part: str) -> str:
    is_path = part.startswith(("/", ".", "~")) or part.count("/") >= 2
    return part.rstrip("/").rsplit("/", 1)[-1] if is_path and part.strip("/.~") else part


_FORMATS = ("measure", "percent", "number", "thousands", "milliseconds", "duration", "memory", "measure_title", "plain")


def environment(escape: bool, package: str = "retrodistill.report") -> Environment:
    """Jinja2 with the files in templates/ and the formats above as filters; `escape` escapes values for HTML."""
    templates = Environment(
        loader=PackageLoader(package),
        autoescape=escape,
        undefined=StrictUndefined,  # a misspelled name must not print as nothing
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    templates.filters |= {name: globals()[name] for name in _FORMATS}
    return templates


def source(name: str, package: str = "retrodistill.report") -> str:
    """The text of a file in templates/."""
    return (resources.files(package) / "templates" / name).read_text(encoding="utf-8")


def inert(value: Any) -> Any:
    """A value as Markdown that is only text: no HTML, link, code span, or new line; names come from anywhere.

    Quotes are single ones, since values are written between double quotes in examples of code.
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    line = "".join(" " if unicodedata.category(char) in _NOT_SHOWN else char for char in value)
    line = re.sub(r"<(?=[A-Za-z/!?])", "&lt;", line).replace("`", "'").replace('"', "'").replace("](", "] (")
    return Markup(line.rstrip("\\"))
