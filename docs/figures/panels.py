"""What a figure is made of: curves as data, which are printed and drawn. Grey is enough: markers and line styles."""

import io
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from implicitexp.figures import MARKERS, plain_powers

LINES = ("-", "--", "-.", (0, (1, 1)))
GREYS = ("0.0", "0.35", "0.55", "0.7")
DPI = 150  # 900 by 540 pixels

Curve = Sequence[float]


@dataclass(frozen=True)
class Panel:
    """Curves over one axis. `guides` are what theory says: thin lines without markers."""

    title: str
    x_label: str
    y_label: str
    x: Curve
    curves: Mapping[str, Curve]
    guides: Mapping[str, Curve] = field(default_factory=dict)
    log: str = "xy"  # which axes are logarithmic


def printed(panel: Panel) -> str:
    """The numbers, a row for each x."""
    columns = {panel.x_label: panel.x, **panel.curves, **panel.guides}
    widths = [max(len(name), 9) for name in columns]
    head = "  ".join(name.rjust(width) for name, width in zip(columns, widths, strict=True))
    rows = [
        "  ".join(f"{float(x):{width}.3g}" for x, width in zip(row, widths, strict=True))
        for row in zip(*columns.values(), strict=True)
    ]
    return "\n".join([f"{panel.title} ({panel.y_label})", head, *rows])


def drawn(panels: list[Panel]) -> Figure:
    figure = Figure(figsize=(6.0, 3.6), layout="constrained", dpi=DPI)
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _draw(axes, panel)
    return figure


def saved(figure: Figure, path: Path) -> None:
    """As a PNG of 16 greys, a third of the size of one in colors."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    Image.open(buffer).convert("L").quantize(16).save(path, optimize=True)


def _draw(axes: Any, panel: Panel) -> None:
    for i, (name, values) in enumerate(panel.curves.items()):
        style: dict[str, Any] = {"linestyle": LINES[i % len(LINES)], "color": GREYS[i % len(GREYS)]}
        hollow = {} if i % 2 == 0 else {"markerfacecolor": "white"}
        axes.plot(panel.x, values, marker=MARKERS[i], markersize=4, linewidth=1.2, label=name, **style, **hollow)
    for i, (name, values) in enumerate(panel.guides.items()):
        axes.plot(panel.x, values, linestyle=LINES[(i + 3) % len(LINES)], color="0.5", linewidth=0.9, label=name)
    axes.set_xscale("log" if "x" in panel.log else "linear")
    axes.set_yscale("log" if "y" in panel.log else "linear")
    if "y" in panel.log:
        axes.set_ylim(*_range(panel.curves))
    plain_powers(axes.yaxis)
    if max(panel.x) / max(min(panel.x), 1e-300) > 1e4:
        plain_powers(axes.xaxis)
    axes.set_title(panel.title, fontsize=8)
    axes.set_xlabel(panel.x_label, fontsize=8)
    axes.set_ylabel(panel.y_label, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(color="0.9", linewidth=0.5)
    axes.legend(fontsize=7, framealpha=0.9)


def _range(curves: Mapping[str, Curve]) -> tuple[float, float]:
    """What has been measured, with some room; a guide may leave it."""
    values = np.concatenate([np.asarray(c, float) for c in curves.values()])
    values = values[np.isfinite(values) & (values > 0)]
    return values.min() / 3, values.max() * 3


def over(x: Curve, measure: Callable[[Any], float]) -> list[float]:
    return [float(measure(value)) for value in x]


def relative(value: Any, exact: Any) -> float:
    """|value - exact| / |exact|, by the Euclidean norm over all leaves."""
    off, size = 0.0, 0.0
    for a, b in zip(jax.tree.leaves(value), jax.tree.leaves(exact), strict=True):
        off, size = off + float(((a - b) ** 2).sum()), size + float((b**2).sum())
    return (off / size) ** 0.5


def in_turn(calls: Mapping[str, Callable[[], Any]], repeats: int = 100) -> dict[str, float]:
    """Seconds of each call: all of them one after the other `repeats` times, after a first time that compiles; the least of each,
    since whatever else the machine does only adds to it."""
    for call in calls.values():
        jax.block_until_ready(call())
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            began = time.perf_counter()
            jax.block_until_ready(call())
            times[name].append(time.perf_counter() - began)
    return {name: min(measured) for name, measured in times.items()}
