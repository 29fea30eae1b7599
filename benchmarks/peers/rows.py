"""What was measured: a row for each program of a case, in CSV and back."""

import csv
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.peers.cases import Role
from benchmarks.peers.timing import Times

COLUMNS = (
    *("case", "title", "role", "library", "name", "median_ms", "low_ms", "high_ms", "turns", "error"),
    *("uncertainty", "tolerance", "compile_s", "memory_bytes", "remark"),
)


@dataclasses.dataclass(frozen=True)
class Row:
    """`error`: relative, of the gradient; None for a floor. `remark`: why there are no times."""

    role: Role
    library: str
    name: str
    times: Times | None = None
    error: float | None = None
    compile_s: float | None = None
    memory_bytes: int | None = None
    remark: str = ""


@dataclasses.dataclass(frozen=True)
class Memory:
    """XLA's temporary memory of a gradient, by the number of steps."""

    library: str
    name: str
    bytes_at: dict[int, int | None]


@dataclasses.dataclass(frozen=True)
class Result:
    """All of a case. `uncertainty`: of the reference, relative; `tolerance`: that all were asked for."""

    number: int
    title: str
    rows: list[Row]
    uncertainty: float
    tolerance: float = 0.0
    remarks: Sequence[str] = ()
    memory: Sequence[Memory] = ()


def write(results: Sequence[Result], path: Path) -> None:
    """A line for each row."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for result in results:
            for row in result.rows:
                writer.writerow(_cells(result, row))


def _cells(result: Result, row: Row) -> list[Any]:
    t = row.times
    times = ["", "", "", ""] if t is None else [*(f"{1e3 * x:.6g}" for x in (t.median, t.low, t.high)), t.turns]
    error = "" if row.error is None else f"{row.error:.4g}"
    compile_s = "" if row.compile_s is None else f"{row.compile_s:.4g}"
    memory = "" if row.memory_bytes is None else row.memory_bytes
    who = [result.number, result.title, row.role, row.library, row.name]
    return [*who, *times, error, f"{result.uncertainty:.3g}", result.tolerance, compile_s, memory, row.remark]


def read(path: Path) -> list[Result]:
    """What `write` wrote: without the remarks on a case and the memory by steps."""
    found: dict[int, Result] = {}
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            number = int(line["case"])
            result = found.setdefault(
                number, Result(number, line["title"], [], float(line["uncertainty"]), float(line["tolerance"]))
            )
            result.rows.append(_row(line))
    return list(found.values())


def _row(line: dict[str, Any]) -> Row:
    def number(name: str) -> float | None:
        return float(line[name]) if line[name] else None

    times = None
    if line["turns"]:
        median, low, high = (1e-3 * float(line[f"{name}_ms"]) for name in ("median", "low", "high"))
        times = Times(median, low, high, int(line["turns"]))
    memory = number("memory_bytes")
    return Row(
        line["role"],
        line["library"],
        line["name"],
        times,
        number("error"),
        number("compile_s"),
        None if memory is None else int(memory),
        line["remark"],
    )
