"""Is the difference real? Each comparison with its interval drawn, its corrected p, and what could have been seen."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from retrodistill.evaluation.results import Results
from retrodistill.report import markup, words

_WIDTH, _HEIGHT = 180, 18


def differences(results: Results) -> str:
    """Differences with their intervals, and whether they are significant; empty where nothing was compared."""
    compared = results.comparisons
    if not compared:
        return ""
    reach = max(
        [abs(end) for one in compared for end in one["interval"]] + [abs(one["difference"]) for one in compared]
    )
    measures = {words.title(str(one["measure"])) for one in compared}
    mean = escape(measures.pop()) if len(measures) == 1 else "mean"
    heads = ["difference", mean, "verdict", "95% interval", "0 at the line", "p", "p (Holm)", "won / tied / lost"]
    rows = [_row(one, reach or 1.0, several=mean == "mean") for one in compared]
    shown = markup.table([*heads, "detectable"], rows, "Comparisons", (0, 2, 4))
    return markup.section("differences", "Is the difference real?", shown + markup.about(_about(results)))


def _about(results: Results) -> str:
    told = (
        "p: two-sided paired randomization test over the queries, 10,000 sign flips; interval: bootstrap over the "
        "queries. "
    )
    if len(results.comparisons) > 1 and any("p_holm" in one for one in results.comparisons):
        told += f"Holm: corrected for the {len(results.comparisons)} comparisons here. "
    if any(one.get("smallest") is not None for one in results.comparisons):
        told += (
            f"Detectable: the smallest true difference that {results.queries:,} queries show with 80% power; a smaller "
            "one may be there and go unseen. "
        )
    return f"{told}Significant: p below {words.ALPHA}, corrected where it can be."


def _row(comparison: Mapping[str, Any], reach: float, several: bool) -> str:
    low, high = comparison["interval"]
    name = f"<bdi>{escape(str(comparison['a']))}</bdi> − <bdi>{escape(str(comparison['b']))}</bdi>"
    name += f", {escape(words.title(str(comparison['measure'])))}" if several else ""
    real = "significant" if words.corrected(comparison) < words.ALPHA else "not significant"
    smallest = comparison.get("smallest")
    cells = [
        _number(words.signed(comparison["difference"])),
        f"<td>{real}</td>",
        _number(f"{words.signed(low)} to {words.signed(high)}"),
        f"<td>{_whisker(comparison['difference'], low, high, reach)}</td>",
        _number(_p(comparison["p"])),
        _number(_p(comparison.get("p_holm"))),
        _number(_outcomes(comparison)),
        _number(words.MISSING if smallest is None else f"{smallest:.3f}"),
    ]
    return f'<tr><th scope="row">{name}</th>{"".join(cells)}</tr>'


def _number(shown: str) -> str:
    return f'<td class="number">{escape(shown)}</td>'


def _p(value: float | None) -> str:
    return words.MISSING if value is None else words.probability(value).removeprefix("p ").removeprefix("= ")


def _outcomes(comparison: Mapping[str, Any]) -> str:
    if not {"wins", "ties", "losses"} <= comparison.keys():
        return words.MISSING
    return " / ".join(f"{comparison[key]:,}" for key in ("wins", "ties", "losses"))


def _whisker(difference: float, low: float, high: float, reach: float) -> str:
    """The interval as a bar on a scale that all rows share, 0 in the middle; the numbers stand beside it."""

    def place(value: float) -> str:
        return f"{_WIDTH / 2 + value / reach * (_WIDTH / 2 - 5):.1f}"

    middle = _HEIGHT / 2
    return (
        f'<svg class="whisker" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" aria-hidden="true">'
        f'<path class="axis" d="M{_WIDTH / 2} 0V{_HEIGHT}"/>'
        f'<path class="interval" d="M{place(low)} {middle}H{place(high)}"/>'
        f'<circle class="dot" cx="{place(difference)}" cy="{middle}" r="4"/></svg>'
    )
