"""A sweep's figure: a matrix of strategies where these were swept, else a point for every job.

Without pyplot, which holds state and opens windows. Shades of grey and shapes carry the meaning, and numbers stand beside.
"""

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from implicitexp.sweeps.rows import Matrix, Row, all_keys, label, matrix, over_seeds
from implicitexp.sweeps.tables import Quantity, matrix_cell, quantities, ratio

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_PANELS = 8
ROW_HEIGHT = 0.28  # inches
DARK = 0.55  # part of the shades, above which text is white
LEAST_SPAN = 2.0  # decades from white to black, so that little differences stay pale
DECADE = 10.0  # between the least and the largest value, below which a logarithmic axis has no two labels
DPI = 120


def sweep_figure(rows: Sequence[Row], title: str) -> "Figure":
    """The figure of a sweep."""
    square = matrix(rows)
    return matrix_figure(square, title) if square else points_figure(rows, title)


def matrix_figure(of: Matrix, title: str) -> "Figure":
    """Two matrices, problems or whatever was swept down and strategies across: error, and time of a gradient."""
    from matplotlib.figure import Figure

    wide = max(len(name) for name in of.down)
    figure = Figure(figsize=(5.0 + 0.09 * wide + 1.3 * len(of.across), 1.8 + 0.36 * len(of.down)), layout="constrained")
    figure.suptitle(title, fontsize=11)
    left, right = figure.subplots(1, 2, sharey=True)
    errors = {at: _shown_error(row) for at, row in of.cells.items()}
    _matrix(left, of, errors, "relative error of the gradient")
    times = {at: ratio(row) if row.status == "finished" else None for at, row in of.cells.items()}
    _matrix(right, of, times, "time of a gradient, in forward solves")
    return figure


def _shown_error(row: Row) -> float | None:
    """The error, or the bound on it where it is not above its uncertainty."""
    error, uncertainty = row.gradient_error, row.uncertainty or 0.0
    return None if error is None else error if error > uncertainty else error + uncertainty


def _matrix(axes: Any, of: Matrix, values: dict[tuple[str, str], float | None], title: str) -> None:
    logs = {at: math.log10(x) for at, x in values.items() if x is not None and x > 0}
    low, high = (min(logs.values()), max(logs.values())) if logs else (0.0, 1.0)
    high = max(high, low + LEAST_SPAN)
    image = [[logs.get((down, across), math.nan) for across in of.across] for down in of.down]
    axes.imshow(image, cmap="Greys", vmin=low, vmax=high + 0.2 * (high - low), aspect="auto")
    for i, down in enumerate(of.down):
        for j, across in enumerate(of.across):
            dark = (down, across) in logs and logs[down, across] - low > DARK * 1.2 * (high - low)
            text = _cell_text(of.cells.get((down, across)), values.get((down, across)), "error" in title)
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color="1.0" if dark else "0.0")
    axes.set_title(title, fontsize=10)
    axes.set(xticks=range(len(of.across)), yticks=range(len(of.down)))
    axes.set_xticklabels([name.replace("finite_difference", "finite\ndifference") for name in of.across], fontsize=8)
    axes.set_yticklabels(of.down, fontsize=8)
    axes.tick_params(length=0)
    for side in axes.spines.values():
        side.set_color("0.6")


def _cell_text(row: Row | None, value: float | None, is_error: bool) -> str:
    if row is None:
        return "-"
    if value is not None:
        bound = is_error and row.gradient_error is not None and row.gradient_error <= (row.uncertainty or 0.0)
        return f"{'< ' if bound else ''}{value:.1e}" if is_error else f"{value:.{2 if value < 100 else 3}g}"
    if is_error and row.absolute_error is not None:
        return f"absolute\n{row.absolute_error:.1e}"
    return matrix_cell(row) if is_error or row.status != "finished" else "-"


def points_figure(rows: Sequence[Row], title: str) -> "Figure":
    """A panel for each quantity, a line for each combination of swept keys. With several seeds a line has a mean and all
    its points."""
    from matplotlib.figure import Figure

    lines = over_seeds(rows) or [(label(row, all_keys(rows)), [row]) for row in rows]
    shown = [quantity for quantity in quantities(rows) if _differs(quantity, rows)][:MOST_PANELS]
    across = min(4, max(1, len(shown)))
    down = -(-len(shown) // across) or 1
    wide = max((len(name) for name, _ in lines), default=0)
    size = (1.0 + 0.085 * wide + 2.6 * across, 0.9 + down * (0.9 + ROW_HEIGHT * len(lines)))
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle(title + ("; circles: seeds, bars: their mean" if over_seeds(rows) else ""), fontsize=11)
    panels = figure.subplots(down, across, sharey=True, squeeze=False).ravel()
    for axes, quantity in zip(panels, shown, strict=False):
        _panel(axes, quantity, lines)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    return figure


def _differs(quantity: Quantity, rows: Sequence[Row]) -> bool:
    """A panel in which all points are the same says nothing, but of what everyone asks for."""
    return (
        quantity.name in ("loss", "gradient error")
        or len({quantity.of(row) for row in rows if quantity.of(row) is not None}) > 1
    )


def _panel(axes: Any, quantity: Quantity, lines: Sequence[tuple[str, list[Row]]]) -> None:
    from implicitexp.figures import plain_powers

    known = [x for _, group in lines for x in map(quantity.of, group) if x is not None]
    error = quantity.name == "gradient error"
    logarithmic = (
        quantity.logarithmic and bool(known) and min(known) > 0 and (error or DECADE * min(known) < max(known))
    )
    axes.set(xlabel=quantity.name, xscale="log" if logarithmic else "linear")
    for i, (_, group) in enumerate(lines):
        values = [x for x in map(quantity.of, group) if x is not None]
        if quantity.name == "gradient error":
            _error_bars(axes, i, group)
        elif len(group) == 1:
            axes.plot(values, [i] * len(values), "o", color="0.0", markersize=5)
        else:
            axes.plot(values, [i] * len(values), "o", color="0.35", markersize=5, markerfacecolor="none")
        if len(values) > 1:
            mean = statistics.geometric_mean(values) if logarithmic else statistics.fmean(values)
            axes.plot([mean], [i], "|", color="0.0", markersize=16, markeredgewidth=2)
    if logarithmic:
        axes.set_xlim(min(known) / DECADE, max(known) * DECADE)
    else:
        axes.ticklabel_format(axis="x", useOffset=False)
        axes.locator_params(axis="x", nbins=4)
    plain_powers(axes.xaxis)
    axes.set_yticks(range(len(lines)), [name for name, _ in lines], fontsize=8)
    axes.set_ylim(len(lines) - 0.4, -0.6)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(color="0.9")


def _error_bars(axes: Any, i: int, group: Sequence[Row]) -> None:
    """An error with its uncertainty; an open marker at the bound where the error is not above it."""
    for row in group:
        error, uncertainty = row.gradient_error, row.uncertainty or 0.0
        if error is None:
            continue
        at = _shown_error(row) or 0.0
        resolved = error > uncertainty
        axes.plot([max(at - uncertainty, at / 10), at + uncertainty * resolved], [i, i], "-", color="0.4", linewidth=1)
        axes.plot([at], [i], "o" if resolved else "<", color="0.0", markersize=5,
                  markerfacecolor="0.0" if resolved and len(group) == 1 else "none")  # fmt: skip
