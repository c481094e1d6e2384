"""Render the curve as a table and as a plot. The plot needs matplotlib: ``pip install "retrodistill[studies]"``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

NAMES = {
    "pq": "PQ",
    "opq": "OPQ",
    "rabitq": "RaBitQ",
    "scalar": "scalar",
    "distilled": "distilled",
    "distilled-queries": "distilled + query map",
}
# One hue per family; markers and lines differ as well.
STYLE = {
    "pq": ("#9a9a9a", "v", ":"),
    "opq": ("#555555", "s", "--"),
    "rabitq": ("#b07aa1", "D", "none"),
    "scalar": ("#76b7b2", "^", "none"),
    "distilled": ("#f28e2b", "o", "-"),
    "distilled-queries": ("#4e79a7", "o", "-"),
}


def table(points: dict[str, dict[str, Any]]) -> str:
    """Markdown with a table per collection: nDCG@10 and its share of exact search's."""
    parts = []
    for name in collections(points):
        exact = points[f"{name}/exact"]["ndcg"]
        parts.append(f"### {name}: exact search {exact:.4f} at {points[f'{name}/exact']['bytes']} bytes\n")
        own = curves(points, name)
        sizes = sorted({size for curve in own.values() for size, _ in curve})
        parts.append("| bytes | " + " | ".join(NAMES[system] for system in own) + " |")
        parts.append("|---:|" + "---:|" * len(own))
        for size in sizes:
            cells = []
            for curve in own.values():
                value = dict(curve).get(size)
                cells.append("" if value is None else f"{value:.4f} ({value / exact:.1%})")
            parts.append(f"| {size} | " + " | ".join(cells) + " |")
        parts.append("")
    return "\n".join(parts)


def draw(points: dict[str, dict[str, Any]], folder: Path) -> None:
    """Draw curve.png and curve.svg: share of exact search's nDCG@10 against bytes, one panel per collection."""
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "curve"
    import matplotlib.pyplot as plt

    names = collections(points)
    figure, axes = plt.subplots(1, len(names), figsize=(5.4 * len(names), 4.6), sharey=True, squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        exact = points[f"{name}/exact"]["ndcg"]
        for system, curve in curves(points, name).items():
            color, marker, line = STYLE[system]
            sizes, shares = zip(*((size, 100 * value / exact) for size, value in curve), strict=True)
            axis.plot(sizes, shares, color=color, marker=marker, linestyle=line, label=NAMES[system], markersize=5)
        axis.axhline(100, color="#222222", linewidth=0.8)
        axis.set_xscale("log", base=2)
        ticks = [4, 8, 16, 32, 48, 96, 192, 384]
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.minorticks_off()
        axis.set_xlabel("bytes per document")
        axis.set_title(f"{name} (exact: nDCG@10 {exact:.3f}, {points[f'{name}/exact']['bytes']} bytes)", fontsize=10)
        axis.grid(color="#e6e6e6", linewidth=0.6)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("share of exact search's nDCG@10, %")
    axes[0][-1].legend(frameon=False, fontsize=9, loc="lower right")
    figure.tight_layout()
    figure.savefig(folder / "curve.png", dpi=140)
    figure.savefig(folder / "curve.svg", metadata={"Date": None})


def collections(points: dict[str, dict[str, Any]]) -> list[str]:
    """Names of the collections, in the order in which they were measured."""
    return list(dict.fromkeys(key.split("/")[0] for key in points))


def curves(points: dict[str, dict[str, Any]], name: str) -> dict[str, list[tuple[int, float]]]:
    """(bytes, nDCG@10) points of each measured system, by ascending bytes."""
    found = {}
    for system in NAMES:
        own = [point for key, point in points.items() if key.startswith(f"{name}/{system}/")]
        if own:
            found[system] = sorted((point["bytes"], point["ndcg"]) for point in own)
    return found
