"""The figures of a run: loss and gradient error over the updates, and error against time of a comparison.

Without pyplot, which holds state and opens windows. Markers and line styles carry the meaning, so that grey is enough.
"""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from implicitexp.record import Folder

MARKERS = "osD^vPX*<>h"


def warm_up() -> None:
    """Import Matplotlib while something else compiles: it takes two seconds."""
    from matplotlib.figure import Figure

    Figure(figsize=(1, 1)).subplots()


def drawn(folder: "Folder", name: str, draw: "Callable[[], Figure | None]") -> str | None:
    """Draw and save; a figure that fails is a warning, since the numbers are safe by then."""
    try:
        figure = draw()
        if figure is not None:
            folder.save_figure(name, figure)
    except Exception as error:  # a problem's figure is user code
        return f"{name}.png could not be drawn: {type(error).__name__}: {error}"
    return None


def plain_powers(axis: Any) -> None:
    """1e-05 on a logarithmic axis, as the tables print it."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    if axis.get_scale() == "log":
        axis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0e}"))
        axis.set_minor_formatter(NullFormatter())


def run_figure(history: list[dict[str, Any]], title: str) -> "Figure":
    """Loss above, relative gradient error with its uncertainty below, both over the updates."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.0, 6.0), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    figure.suptitle(title)
    _loss(above, [line for line in history if line.get("loss") is not None])
    _error(below, [line for line in history if "reference/uncertainty" in line])
    below.set_xlabel("updates")
    return figure


def _loss(axes: Any, lines: list[dict[str, Any]]) -> None:
    losses = [line["loss"] for line in lines]
    positive = all(x > 0 for x in losses if x == x)
    axes.plot(
        [line["step"] for line in lines], losses, "-", color="0.0", linewidth=1, marker="." if len(lines) < 30 else ""
    )
    axes.set(ylabel="loss", yscale="log" if positive and losses else "linear")
    plain_powers(axes.yaxis)
    axes.grid(color="0.9")


def _error(axes: Any, lines: list[dict[str, Any]]) -> None:
    """The error of the gradient, the band of what the reference cannot resolve, and the program error."""
    axes.set(ylabel="relative gradient error", yscale="log")
    plain_powers(axes.yaxis)
    axes.grid(color="0.9")
    known = [line for line in lines if line.get("grad/relative_error") is not None]
    if not known:
        axes.text(0.5, 0.5, "no ground truth", transform=axes.transAxes, ha="center", color="0.4")
        axes.set_yscale("linear")
        return
    steps = [line["step"] for line in known]
    errors = [max(line["grad/relative_error"], line["reference/uncertainty"]) for line in known]
    low = [max(e - line["reference/uncertainty"], e / 10) for e, line in zip(errors, known, strict=True)]
    high = [e + line["reference/uncertainty"] for e, line in zip(errors, known, strict=True)]
    axes.fill_between(steps, low, high, color="0.85", label="± its uncertainty")
    axes.plot(steps, errors, "o-", color="0.0", markersize=4, label="against the problem's gradient")
    program = [line for line in lines if line.get("grad/program_error") is not None]
    if program:
        axes.plot([x["step"] for x in program], [x["grad/program_error"] for x in program], "s:", color="0.5",
                  markersize=4, markerfacecolor="white", label="against the program's gradient, or its rounding")  # fmt: skip
    axes.plot([x["step"] for x in known], [x["reference/uncertainty"] for x in known], "--", color="0.6", linewidth=1,
              label="uncertainty of the ground truth")  # fmt: skip
    axes.legend(fontsize="small", ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))


def compare_figure(rows: list[dict[str, Any]], title: str) -> "Figure":
    """Error against the time of a gradient, a marker a strategy: the lower left corner is best."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.4, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel="time of a gradient (times that of the forward solve)", xscale="log", yscale="log",
             ylabel="relative error of the gradient")  # fmt: skip
    axes.grid(color="0.9", which="both")
    plain_powers(axes.yaxis)
    shown = [row for row in rows if row["gradient_check"] and row["gradient_check"]["relative_error"] is not None]
    forward = min((row["cost"]["forward_ms"] for row in shown), default=1.0)
    ratios = [row["cost"]["gradient_ms"] / forward for row in shown]
    for row, ratio, marker in zip(shown, ratios, MARKERS * (1 + len(shown) // len(MARKERS)), strict=False):
        error, uncertainty = row["gradient_check"]["relative_error"], row["gradient_check"]["uncertainty"]
        at = max(error, uncertainty)
        axes.plot([ratio, ratio], [max(at - uncertainty, at / 10), at + uncertainty], "-_", color="0.4", markersize=9)
        axes.plot([ratio], [at], marker, color="0.0", markersize=8, label=row["label"],
                  markerfacecolor="0.0" if error > uncertainty else "white")  # fmt: skip
    if shown:
        axes.axhline(shown[0]["gradient_check"]["uncertainty"], color="0.6", linestyle="--", linewidth=1,
                     label="uncertainty of the\nground truth")  # fmt: skip
    _plain_ticks(axes, ratios)
    if not shown:
        axes.text(0.5, 0.5, "no strategy gave a gradient", transform=axes.transAxes, ha="center", color="0.4")
        return figure
    axes.legend(fontsize="small", title="white: a bound", title_fontsize="small", loc="center left",
                bbox_to_anchor=(1.0, 0.5))  # fmt: skip
    return figure


def _plain_ticks(axes: Any, ratios: list[float]) -> None:
    """A decade at least, and numbers such as 0.5, 2 and 20 on the axis instead of powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    middle = math.sqrt(min(ratios) * max(ratios)) if ratios else 1.0
    axes.set_xlim(min([0.8 * x for x in ratios] + [middle / 3]), max([1.25 * x for x in ratios] + [middle * 3]))
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
