"""Agreement with the teacher: how far each system ranks as it does; no judgment is needed but for the ceiling."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from retrodistill.evaluation.results import Agreement, Bin, Results, System
from retrodistill.report import markup, svg, words

_HEADS = ["system", "overlap@10", "rank-biased overlap", "Kendall’s τ"]
_QUALITY = ["nDCG@10", "ceiling nDCG@10"]
_AGREEMENT = (
    "Overlap@10: share of the teacher’s ten best documents among the system’s ten. Rank-biased overlap: agreement at "
    "every depth, the first ten ranks weighing 86%. Kendall’s τ: order of the teacher’s 100 best, −1 to 1. "
)
_CEILING = (
    "Ceiling: nDCG@10 if the teacher itself ordered this system’s 100 best; what is missing from there to a perfect "
    "order is the teacher’s, what is missing before it is the system’s."
)
_CALIBRATION = (
    "Pairs of each system’s 100 best, in groups by its score: the line is the teacher’s mean score of a group, the "
    "band its middle half. A system that learned the teacher’s scores rises steadily, in a narrow band."
)


def agreement(results: Results) -> str:
    """A row a system and a calibration plot each; empty where agreement was not measured."""
    found = [(system, system.agreement) for system in results.systems if system.agreement is not None]
    if not found:
        return ""
    teachers = list(dict.fromkeys(one.teacher for _, one in found))
    judged = any(one.ceiling is not None or system.ndcg10 is not None for system, one in found)
    heads = [*_HEADS, *(_QUALITY if judged else [])]
    rows = (markup.row(markup.named(system), _cells(system, one, judged), system.role) for system, one in found)
    table = markup.table(heads, rows, "Agreement with the teacher")
    told = _AGREEMENT + (_CEILING if judged else "")
    counts = {one.queries for _, one in found if one.queries}
    fewer = counts and max(counts) < results.queries
    head = f"Agreement with {escape(' and '.join(teachers))}{f', on {max(counts)} queries' if fewer else ''}"
    plots = "".join(_plot(system, one) for system, one in found if len(one.calibration) > 1)
    drawn = f'<h3>Calibration</h3><div class="figures">{plots}</div>{markup.about(_CALIBRATION)}' if plots else ""
    return markup.section("agreement", head, table + markup.about(told) + drawn)


def _cells(system: System, one: Agreement, judged: bool) -> list[str]:
    cells = [
        words.measure(one.overlap10),
        words.measure(one.rank_biased_overlap),
        words.measure(one.kendall_tau).replace("-", "−"),
    ]
    reached = system.ndcg10 if one.reached is None else one.reached
    return [*cells, words.measure(reached), words.measure(one.ceiling)] if judged else cells


def _plot(system: System, one: Agreement) -> str:
    bins: Sequence[Bin] = sorted(one.calibration, key=lambda point: point.student)
    x = svg.linear([point.student for point in bins], svg.LEFT, svg.WIDTH - svg.RIGHT, room=0.03)
    y = svg.linear([end for point in bins for end in (point.low, point.high)], svg.HEIGHT - svg.BOTTOM, svg.TOP)
    upper = [(x(point.student), y(point.high)) for point in bins]
    lower = [(x(point.student), y(point.low)) for point in reversed(bins)]
    line = [(x(point.student), y(point.teacher)) for point in bins]
    parts = [
        svg.axes(x, y, "score by the system", "score by the teacher"),
        f'<path class="band {system.role}" d="{svg.path([*upper, *lower])}Z"/>',
        f'<path class="line {system.role}" d="{svg.path(line)}"/>',
        *(svg.dot(at, system.role) for at in line),
    ]
    picture = svg.figure("".join(parts), f"calibration of {system.name}")
    pairs = sum(point.pairs for point in bins)
    return f"<figure>{picture}<figcaption><b>{markup.named(system)}</b>, {pairs:,} pairs</figcaption></figure>"
