"""A sweep's rows as a person reads them: on the terminal with rich, and as Markdown for MLflow."""

import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from implicitexp.notation import format_error
from implicitexp.sweeps.rows import Matrix, Row, all_keys, all_metrics, matrix, over_seeds

WIDTH = 120  # where no terminal gives one
MOST_METRICS = 2  # of what `evaluate` gave, where there is room for them; sweep.csv has all
SPARE = ("at the end", "MiB")  # columns that a narrow table does without
MOST_COLUMNS = 5  # of a table of means, above which combinations of keys are rows
MIB = 2**20


@dataclass(frozen=True)
class Quantity:
    """A number of a row that can be told: for a column, for a mean over seeds, for a figure."""

    name: str
    of: Callable[[Row], float | int | None]
    logarithmic: bool = True


def quantities(rows: Sequence[Row]) -> list[Quantity]:
    """What a sweep's jobs are compared by, as far as it is known of any of them."""
    found = [Quantity("loss", lambda row: row.loss)]
    found += [_metric(name) for name in all_metrics(rows)]
    found += [
        Quantity("gradient error", lambda row: row.gradient_error),
        Quantity("parameters", lambda row: row.parameters, logarithmic=False),
        Quantity(
            "memory MiB", lambda row: None if row.memory_bytes is None else row.memory_bytes / MIB, logarithmic=False
        ),
        Quantity("gradient ms", lambda row: row.gradient_ms, logarithmic=False),
        Quantity("time s", lambda row: row.seconds, logarithmic=False),
    ]
    return [quantity for quantity in found if any(quantity.of(row) is not None for row in rows)]


def _metric(name: str) -> Quantity:
    return Quantity(name, lambda row: row.metrics.get(name), logarithmic=False)


Table_ = tuple[list[str], list[list[str]]]  # the names of the columns, and the cells of each row


def cells(rows: Sequence[Row], most_metrics: int = MOST_METRICS) -> Table_:
    """The one table: job, swept keys, numbers, status. A column in which nothing is known is left out."""
    keys, metrics = all_keys(rows), all_metrics(rows)[:most_metrics]
    columns: dict[str, Callable[[Row], str]] = {"job": lambda row: str(row.job)}
    columns |= {key: lambda row, key=key: row.keys.get(key, "-") for key in keys}
    columns |= {"loss": lambda row: short(row.loss)}
    columns |= {name: lambda row, name=name: short(row.metrics.get(name)) for name in metrics}
    columns |= {
        "gradient error": error_text,
        "at the end": lambda row: format_error(row.last_gradient_error, row.last_uncertainty),
        "gradient ms": lambda row: short(row.gradient_ms),
        "MiB": lambda row: short(None if row.memory_bytes is None else row.memory_bytes / MIB),
        "time s": lambda row: short(row.seconds),
        "status": lambda row: row.status,
    }
    table = {name: [of(row) for row in rows] for name, of in columns.items()}
    kept = {name: column for name, column in table.items() if any(cell != "-" for cell in column)}
    return list(kept), [list(row) for row in zip(*kept.values(), strict=True)]


def without(table: Table_, names: Sequence[str]) -> Table_:
    """The table without these columns."""
    kept = [i for i, name in enumerate(table[0]) if name not in names]
    return [table[0][i] for i in kept], [[row[i] for i in kept] for row in table[1]]


def error_text(row: Row) -> str:
    """The gradient's error with its uncertainty; the absolute one where the true gradient is zero."""
    if row.gradient_error is None and row.absolute_error is not None:
        return f"absolute {row.absolute_error:.2g}"
    return format_error(row.gradient_error, row.uncertainty)


def matrix_cells(of: Matrix) -> Table_:
    """Error and time of a gradient, in multiples of its forward solve, for each strategy."""
    return ["", *of.across], [
        [down, *(matrix_cell(of.cells.get((down, name))) for name in of.across)] for down in of.down
    ]


def matrix_tables(of: Matrix, width: int) -> list[Table_]:
    """Strategies across, if there is room; else down, and of the rest as much across as there is room for, table by table."""
    whole = matrix_cells(of)
    if room(whole) <= width:
        return [whole]
    found: list[Table_] = []
    names, body = [""], [[name] for name in of.across]
    for down in of.down:
        title = down.replace("_", "_\n")  # a terminal breaks it anywhere
        column = [matrix_cell(of.cells.get((down, name))) for name in of.across]
        wider = [*names, title], [[*row, cell] for row, cell in zip(body, column, strict=True)]
        if room(wider) > width and len(names) > 1:
            found.append((names, body))
            wider = ["", title], [[name, cell] for name, cell in zip(of.across, column, strict=True)]
        names, body = wider
    return [(names, [row for row in body if set(row[1:]) != {"-"}]) for names, body in [*found, (names, body)]]


def matrix_cell(row: Row | None) -> str:
    if row is None:
        return "-"
    if row.gradient_error is None and row.absolute_error is None:
        return "no truth" if row.status == "finished" else row.status
    text = error_text(row).split(" ± ")[0]
    return f"{text}, {ratio(row):.2g}x" if ratio(row) is not None else text


def ratio(row: Row) -> float | None:
    """The time of a gradient in multiples of the forward solve's."""
    return row.gradient_ms / row.forward_ms if row.gradient_ms and row.forward_ms else None


def seed_cells(rows: Sequence[Row]) -> Table_ | None:
    """Mean and standard deviation over the seeds for each combination of the other keys; None without seeds."""
    groups = [
        (label, done) for label, group in over_seeds(rows) if (done := [r for r in group if r.status == "finished"])
    ]
    if not groups:
        return None
    lines = [["", *(label for label, _ in groups)], ["seeds", *(str(len(group)) for _, group in groups)]]
    lines += [
        [quantity.name, *(mean_text([quantity.of(row) for row in group]) for _, group in groups)]
        for quantity in quantities(rows)
    ]
    if len(groups) > MOST_COLUMNS:
        lines = [list(column) for column in zip(*lines, strict=True)]
    return lines[0], lines[1:]


def mean_text(values: Sequence[float | int | None]) -> str:
    known = [float(x) for x in values if x is not None]
    if not known:
        return "-"
    mean, spread = statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else math.nan
    return short(mean) if not spread > 0 else f"{short(mean)} ± {float(f'{spread:.1g}'):g}"


def short(value: float | int | None) -> str:
    """Three digits; a dash for what is not known."""
    if value is None:
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"


def remarks(rows: Sequence[Row]) -> list[str]:
    """Why a row is without numbers: each reason once, with the jobs that it holds for."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.status not in ("finished", "undefined") and row.remark:
            reasons.setdefault(row.remark, []).append(f"#{row.job}")
    return [f"{', '.join(dict.fromkeys(jobs))}: {reason}" for reason, jobs in reasons.items()]


CAPTIONS = (
    "Gradient error: relative, at the first parameters; < marks a bound, where the ground truth resolves no more.",
    "Error of the gradient, and its time in forward solves",
    "Mean ± standard deviation over the seeds",
)


def room(table: Table_) -> int:
    """How wide the terminal has to be for it, with its titles broken between words."""
    names, body = table
    return 1 + sum(3 + max(map(len, [*name.split(), *column])) for name, *column in zip(names, *body, strict=True))


def fitting(rows: Sequence[Row], width: int) -> Table_:
    """The one table with as many columns as this width has room for."""
    for most, left_out in ((MOST_METRICS, ()), (1, ()), (1, SPARE[:1]), (1, SPARE)):
        names, body = without(cells(rows, most), left_out)
        if room((names, body)) <= width:
            return names, body
    return without(cells(rows, 0), SPARE)


def tables(rows: Sequence[Row], width: int = 10 * WIDTH) -> list[tuple[str, Table_]]:
    """All tables of a sweep, with their titles: every row; the matrix and the means over seeds where there are such."""
    square, means = matrix(rows), seed_cells(rows)
    found = [("", fitting(rows, width))]
    found += [(CAPTIONS[1], table) for table in matrix_tables(square, width)] if square else []
    return found + ([(CAPTIONS[2], means)] if means else [])


def print_sweep(title: str, rows: Sequence[Row], sort_by: str) -> None:
    """The tables on the terminal."""
    console = Console(width=None if sys.stdout.isatty() else WIDTH)
    for i, (caption, (names, body)) in enumerate(tables(rows, console.width)):
        console.print(f"\n{caption or f'{title}, sorted by {sort_by}'}", style="bold", highlight=False)
        table = Table()
        for name in names:
            numeric = name not in (*all_keys(rows), "", "status", "gradient error", "at the end")
            table.add_column(name, justify="right" if numeric and not i else "left", overflow="fold")
        for line in body:
            table.add_row(*line)
        console.print(table)
    for line in [*remarks(rows), CAPTIONS[0]]:
        console.print(line, highlight=False)


def markdown_sweep(title: str, rows: Sequence[Row], sort_by: str) -> str:
    """The same as Markdown. The first line is the answer, since MLflow's lists show no more."""
    done = [row for row in rows if row.status == "finished"]
    best = done[0] if done else None
    where = ", ".join(f"{key}={value}" for key, value in best.keys.items()) if best else ""
    answer = (
        f"first by {sort_by}: {where or 'job ' + str(best.job)}, gradient error {error_text(best)}"
        if best
        else "none done"
    )
    lines = [
        f"**{title}, {len(done)} of {len(rows)} rows finished; {answer}**",
        *(f"- {line}" for line in remarks(rows)),
    ]
    for caption, table in sorted(tables(rows), key=lambda found: found[0] == ""):  # the summaries first
        lines += ["", *([f"{caption}:", ""] if caption else []), *_markdown(table)]
    return "\n".join([*lines, "", CAPTIONS[0], ""])


def _markdown(table: Table_) -> list[str]:
    names, body = table
    return [
        f"| {' | '.join(line)} |"
        for line in (names, ["---"] * len(names), *([x.replace("|", "/") for x in row] for row in body))
    ]
