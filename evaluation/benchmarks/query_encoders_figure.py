"""Draw quality against latency from files of query_encoders.py, one panel per collection. It needs matplotlib.

    python evaluation/benchmarks/query_encoders_figure.py FILE... --out FIGURE.png [--line SciFact=BM25:0.686 ...]

Bars are 95% intervals over queries. Encoders on the front, which no other beats in both, have filled markers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

_COLORS = ("#4e79a7", "#f28e2b", "#59a14f", "#b07aa1", "#e15759", "#76b7b2", "#9c755f", "#555555", "#edc948", "#9a9a9a")
_MARKERS = "osD^vPX<>*"


def main() -> None:
    """Read the files and write the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, help="what query_encoders.py --out wrote")
    parser.add_argument("--out", type=Path, required=True, help="the figure")
    parser.add_argument("--line", nargs="*", default=[], help="COLLECTION=LABEL:VALUE, a horizontal line")
    given = parser.parse_args()
    lines = [(line.partition("=")[0], *line.partition("=")[2].rsplit(":", 1)) for line in given.line]
    draw([json.loads(file.read_text(encoding="utf-8")) for file in given.files], lines, given.out)


def draw(panels: list[dict[str, Any]], lines: list[tuple[str, str, str]], out: Path) -> None:
    """Draw a panel per collection."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "front"
    import matplotlib.pyplot as plt

    labels = list(dict.fromkeys(label for panel in panels for label in panel["encoders"]))
    figure, axes = plt.subplots(1, len(panels), figsize=(4.3 * len(panels), 4.4), squeeze=False)
    for axis, panel in zip(axes[0], panels, strict=True):
        encoders = panel["encoders"]
        for place, label in enumerate(labels):
            if label not in encoders:
                continue
            one, color = encoders[label], _COLORS[place % len(_COLORS)]
            value = one["ndcg@10"]
            bars = [[value - one["low"]], [one["high"] - value]]
            axis.errorbar(one["encode p50"], value, yerr=bars, color=color, alpha=0.35, linewidth=1, zorder=1)
            is_front = not any(_beats(other, one) for other in encoders.values())
            marker = _MARKERS[place % len(_MARKERS)]
            axis.scatter(
                one["encode p50"],
                value,
                marker=marker,
                s=48,
                edgecolor=color,
                facecolor=color if is_front else "white",
                label=label,
                zorder=2,
            )
        for name, label, value in lines:
            if name == panel["collection"]:
                axis.axhline(float(value), color="#888888", linewidth=0.9, linestyle="--", zorder=0)
                axis.annotate(
                    label, (1, float(value)), xycoords=("axes fraction", "data"), ha="right", va="bottom", size=8
                )
        axis.set_xscale("log")
        axis.xaxis.set_major_formatter("{x:g}")
        axis.set_xlabel("encoding a query, ms (median, one thread)")
        axis.set_title(panel["collection"], fontsize=10)
        axis.grid(color="#e6e6e6", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("nDCG@10")
    shown = dict(zip(*reversed(axes[0][0].get_legend_handles_labels()), strict=True))
    figure.legend(shown.values(), shown.keys(), frameon=False, fontsize=9, loc="lower center", ncols=4)
    figure.tight_layout(rect=(0, 0.13, 1, 1))
    figure.savefig(out, dpi=140)


def _beats(other: dict[str, Any], one: dict[str, Any]) -> bool:
    """Whether it is no worse in both quality and latency, and better in one."""
    ours, theirs = (one["ndcg@10"], -one["encode p50"]), (other["ndcg@10"], -other["encode p50"])
    return ours != theirs and all(a <= b for a, b in zip(ours, theirs, strict=True))


if __name__ == "__main__":
    main()
