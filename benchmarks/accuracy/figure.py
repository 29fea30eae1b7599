"""The figure of the results, from the CSV: `python -m benchmarks.accuracy.figure [folder]`. It can be read in grey."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from benchmarks.accuracy.rows import REFUSED, SOLUTION, Row, read
from benchmarks.accuracy.subjects import EXACT, PRECISIONS
from implicitexp.strategies.base import KIND_WORDS

LEAST, MOST = 1e-7, 1e3  # shares are drawn at these ends where they lie beyond
MARKERS = {"root": "o", "fixed_point": "s", "ode": "^", "integral": "D"}


def draw(rows: Sequence[Row], path: Path) -> None:
    """A panel for each precision: every error over its bound, a line for each strategy, a marker for each kind."""
    lines = [(kind, name) for kind, group in EXACT.items() for name in group]
    figure, panels = plt.subplots(
        1, len(PRECISIONS), sharex=True, sharey=True, figsize=(11, 0.27 * len(lines) + 1.8), layout="constrained"
    )
    for axes, precision in zip(panels, PRECISIONS, strict=True):
        _panel(axes, [row for row in rows if row.precision == precision], lines)
        axes.set_title(precision)
        axes.set_xlabel("error of the gradient over its bound")
    panels[0].set_yticks(range(len(lines)), [name for _, name in lines])
    panels[0].invert_yaxis()
    figure.legend(handles=_legend(), loc="outside upper center", ncols=4, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _panel(axes: Axes, rows: Sequence[Row], lines: Sequence[tuple[str, str]]) -> None:
    for place, line in enumerate(lines):
        for row in rows:
            if (row.kind, row.strategy) == line and row.verdict != REFUSED:
                _point(axes, row, place)
    for place in range(1, len(lines)):
        if lines[place][0] != lines[place - 1][0]:
            axes.axhline(place - 0.5, color="0.6", linewidth=0.8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlim(LEAST / 2, MOST * 4)
    axes.set_ylim(-0.5, len(lines) - 0.5)
    axes.grid(axis="x", color="0.9")
    axes.set_axisbelow(True)


def _point(axes: Axes, row: Row, place: int) -> None:
    """Filled: above its bound. A cross: the solution itself is wrong, or there is no number."""
    if row.verdict == SOLUTION or math.isnan(row.share):
        axes.plot([MOST], [place], "x", color="black", markersize=7, markeredgewidth=2, zorder=4)
        return
    face = "black" if row.share > 1 else "white"
    x = min(max(row.share, LEAST), MOST)
    axes.plot([x], [place], MARKERS[row.kind], markersize=5, markerfacecolor=face, markeredgecolor="black", zorder=3)


def _legend() -> list[Line2D]:
    style: Any = {"linestyle": "", "markeredgecolor": "black"}
    kinds = [
        Line2D([], [], marker=m, markerfacecolor="white", label=KIND_WORDS[k], **style) for k, m in MARKERS.items()
    ]
    above = Line2D([], [], marker="o", markerfacecolor="black", label="above its bound", **style)
    none = Line2D([], [], marker="x", markeredgewidth=2, label="NaN, or the solution itself is wrong", **style)
    return [*kinds, above, none]


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "results"
    draw(read(folder / "accuracy.csv"), folder / "accuracy.png")
