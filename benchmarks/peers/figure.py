"""The figure of the results, from the CSV: `python -m benchmarks.peers.figure [folder]`. It can be read in grey."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from benchmarks.peers.rows import Result, Row, read
from benchmarks.peers.verdict import WRONG, judge

# role -> marker, face, label; they differ in form and filling, not in color alone
MARKS = {
    "ours": ("o", "black", "implicitexp, the fastest that is as accurate"),
    "jax": ("s", "white", "Diffrax, Optimistix, JAXopt, Quadax"),
    "torch": ("^", "silver", "torchdiffeq, TorchDEQ"),
    "native": ("D", "grey", "CVODES, CasADi"),
    "floor": ("|", "black", "floor"),
}


def draw(results: Sequence[Result], path: Path) -> None:
    """Left the time, right the error of the gradient, which stands at the reference's uncertainty where it is below that."""
    figure, (left, right) = plt.subplots(
        1, 2, sharey=True, figsize=(11, 0.5 * len(results) + 2), width_ratios=[3, 2], layout="constrained"
    )
    for place, result in enumerate(results):
        for row in _shown(result):
            assert row.times is not None
            _point(left, row, 1e3 * row.times.median, place, (1e3 * row.times.low, 1e3 * row.times.high))
            if row.error is not None:
                _point(right, row, max(row.error, result.uncertainty), place)
    for axes, label in (
        (left, "time of a gradient, ms (median, quartiles)"),
        (right, "relative error of the gradient"),
    ):
        axes.set_xscale("log")
        axes.set_xlabel(label)
        axes.grid(axis="x", color="0.9")
        axes.set_axisbelow(True)
    left.set_yticks(range(len(results)), [f"{r.number}. {r.title}" for r in results])
    left.invert_yaxis()
    handles = [
        Line2D([], [], linestyle="", marker=m, markerfacecolor=f, markeredgecolor="black", label=label)
        for m, f, label in MARKS.values()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _shown(result: Result) -> list[Row]:
    """Every peer and floor that has an answer; of ours the one that stands against the hardest peer."""
    best = judge(result).best
    mine = [] if best is None else [best]
    rows = [r for r in result.rows if r.role != "ours" and r.times is not None and _right(r)]
    return [*rows, *mine]


def _right(row: Row) -> bool:
    return row.error is None or (math.isfinite(row.error) and row.error < WRONG)


def _point(axes: Axes, row: Row, x: float, place: float, spread: tuple[float, float] | None = None) -> None:
    marker, face, _ = MARKS[row.role]
    size = 14 if row.role == "floor" else 7
    order = 4 if row.role == "ours" else 3
    if spread is not None:
        axes.plot(spread, [place, place], color="black", linewidth=1, zorder=2)
    axes.plot(
        [x], [place], marker, markersize=size, markerfacecolor=face, markeredgecolor="black", linestyle="", zorder=order
    )


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "results"
    draw(read(folder / "peers.csv"), folder / "peers.png")
