"""How it came out: a row for each strategy on each case in each precision, in CSV and back."""

import csv
import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RIGHT = "right"
GRADIENT = "the gradient is off"
SOLUTION = "the solution itself is wrong"
NO_NUMBER = "not finite"
PROGRAM = "not the derivative of the program"
REFUSED = "refused"
FAILED = "failed"


@dataclasses.dataclass(frozen=True)
class Row:
    """Errors are relative. NaN: there is no number."""

    case: str
    strategy: str
    precision: str
    kind: str
    condition: float
    primal: float  # error of the loss
    tolerances: float  # the same in units of the tolerance that the solve was asked for
    gradient: float  # error of the gradient
    share: float  # that error over its bound
    program: float | None  # distance to the program's derivative over what rounding may make of it; None: not judged
    verdict: str
    remark: str = ""  # what was raised


COLUMNS = tuple(field.name for field in dataclasses.fields(Row))


def write(rows: Sequence[Row], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows([_cell(getattr(row, name)) for name in COLUMNS] for row in rows)


def _cell(value: object) -> object:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else value


def read(path: Path) -> list[Row]:
    """What `write` wrote, to four digits; nothing where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [_row(line) for line in csv.DictReader(file)]


def _row(line: dict[str, Any]) -> Row:
    for name in ("condition", "primal", "tolerances", "gradient", "share"):
        line[name] = float(line[name])
    line["program"] = float(line["program"]) if line["program"] else None
    return Row(**line)


def merged(before: Sequence[Row], new: Sequence[Row]) -> list[Row]:
    """`new` in the place of all that was known of its precisions and kinds."""
    done = {(row.precision, row.kind) for row in new}
    return [*(row for row in before if (row.precision, row.kind) not in done), *new]


def number(value: float | None) -> str:
    """For people."""
    return "-" if value is None or math.isnan(value) else f"{value:.1e}"
