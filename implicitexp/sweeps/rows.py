"""A sweep as rows: what its jobs left behind in their folders, a row for each, or for each strategy of a comparison."""

import csv
import json
import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from implicitexp.notation import with_own_rows

WORDS = {0: "finished", 1: "failed", 2: "refused", 130: "killed", 143: "killed"}  # of exit statuses
NUMBERS = ("loss", "gradient_error", "uncertainty", "absolute_error", "last_gradient_error", "last_uncertainty",
           "parameters", "memory_bytes", "solver_steps", "compile_s", "forward_ms", "gradient_ms", "seconds")  # fmt: skip

Content = dict[str, Any]


class Ended(NamedTuple):
    """How a job ended: its exit status, the seconds that it took, and why its process died, if that is what it did."""

    status: int
    seconds: float | None = None
    died: str | None = None


@dataclass(frozen=True)
class Job:
    """One job of a sweep: its number, the keys that were swept with its values, its folder. `ended`: None before."""

    number: int
    keys: dict[str, str]
    folder: Path
    ended: Ended | None = None


@dataclass(frozen=True)
class Row:
    """One line of the table. Numbers are None where they are not known.

    The gradient's error is the one at the first parameters, which jobs of one problem and seed share, and which is no
    fraction of a gradient that vanishes; `last_gradient_error` is the one at the last parameters.
    """

    job: int
    keys: dict[str, str]
    status: str
    folder: Path
    remark: str = ""
    loss: float | None = None
    gradient_error: float | None = None  # relative
    uncertainty: float | None = None  # of gradient_error
    absolute_error: float | None = None  # which stands where the true gradient is zero
    last_gradient_error: float | None = None
    last_uncertainty: float | None = None
    parameters: int | None = None
    memory_bytes: int | None = None
    solver_steps: int | None = None
    compile_s: float | None = None
    forward_ms: float | None = None
    gradient_ms: float | None = None
    seconds: float | None = None  # of the whole job, compilation and checks included
    metrics: dict[str, float | None] = field(default_factory=dict)  # what the problem's `evaluate` gave last


def swept_keys(overrides: Sequence[Sequence[str]]) -> list[str]:
    """The keys whose values differ between jobs, in the order of the command line."""
    values: dict[str, set[str | None]] = {}
    settings = [settings_of(job) for job in overrides]
    for name in (name for job in settings for name in job):
        values[name] = {job.get(name) for job in settings}
    return [name for name, different in values.items() if len(different) > 1]


def settings_of(overrides: Iterable[str]) -> dict[str, str]:
    """Overrides by their keys: `+problem.P=[2,1]` is `problem.P` and `[2,1]`."""
    pairs = (text.lstrip("+").partition("=") for text in overrides)
    return {key: value for key, _, value in pairs if not key.startswith("hydra.")}


def rows_of(jobs: Iterable[Job], sort_by: str) -> list[Row]:
    """All rows of a sweep, sorted."""
    return sorted((row for job in jobs for row in rows_of_job(job)), key=lambda row: order(row, sort_by))


def rows_of_job(job: Job) -> list[Row]:
    """A row, or one for each strategy where the job is a comparison. A job without a result is a row with its status."""
    content = read_result(job.folder)
    if job.ended is None and content is None:
        return [Row(job.number, job.keys, "not started", job.folder)]
    if job.ended is not None and job.ended.died is not None:
        return [Row(job.number, job.keys, "died", job.folder, job.ended.died)]
    if content is None:
        status = WORDS.get(job.ended.status, "failed") if job.ended else "killed"
        remark = "its configuration was refused when it was built" if status == "refused" else "it left no result.json"
        return [Row(job.number, job.keys, status, job.folder, remark)]
    if content.get("strategies"):
        return [_of_strategy(job, content, strategy) for strategy in with_own_rows(content["strategies"])]
    return [_of_training(job, content)]


def read_result(folder: Path) -> Content | None:
    """The content of result.json; None where there is none."""
    try:
        return json.loads((folder / "result.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _of_training(job: Job, content: Content) -> Row:
    last = content["gradient_check"]["last"] or {}
    return Row(
        job.number, job.keys, content["status"], job.folder, (content["error"] or {}).get("reason", ""),
        loss=content["loss"]["last"],
        last_gradient_error=last.get("relative_error"),
        last_uncertainty=last.get("uncertainty"),
        parameters=_count(content["params"]),
        seconds=job.ended.seconds if job.ended else None,
        metrics=content["metrics"],
        **_error(content["gradient_check"]["first"]),
        **_cost(content["cost"]),
    )  # fmt: skip


def _of_strategy(job: Job, content: Content, strategy: Content) -> Row:
    return Row(
        job.number, {**job.keys, "gradient": strategy["gradient"]["name"]}, strategy["status"], job.folder,
        strategy["remark"] or "",
        loss=content["loss"]["first"] if strategy["gradient_check"] else None,
        parameters=_count(content["params"]),
        **_error(strategy["gradient_check"]),
        **_cost(strategy["cost"]),
    )  # fmt: skip


def _error(check: Content | None) -> dict[str, Any]:
    check = check or {}
    return {"gradient_error": check.get("relative_error"), "uncertainty": check.get("uncertainty"),
            "absolute_error": check.get("absolute_error")}  # fmt: skip


def _cost(cost: Content | None) -> dict[str, Any]:
    names = ("memory_bytes", "solver_steps", "compile_s", "forward_ms", "gradient_ms")
    return {name: (cost or {}).get(name) for name in names}


def _count(params: Any) -> int | None:
    return params.get("size") if isinstance(params, dict) else len(params) if isinstance(params, list) else None


def order(row: Row, sort_by: str) -> tuple[bool, float, int]:
    """What finished before what did not, the smallest first. An error counts with its uncertainty, as in a comparison."""
    value = row.job if sort_by == "job" else getattr(row, sort_by)
    if sort_by == "gradient_error" and value is not None:
        value += row.uncertainty or 0.0
    return (sort_by != "job" and row.status != "finished", math.inf if value is None else float(value), row.job)


def write_csv(rows: Sequence[Row], path: Path) -> Path:
    """Every number of every row, an empty field for what is not known; names of the columns in the first line."""
    keys, metrics = all_keys(rows), all_metrics(rows)
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["job", *keys, "status", *NUMBERS, *metrics, "folder", "remark"])
        for row in rows:
            numbers = [getattr(row, name) for name in NUMBERS]
            writer.writerow([row.job, *(row.keys.get(key) for key in keys), row.status, *numbers,
                             *(row.metrics.get(name) for name in metrics), row.folder, row.remark])  # fmt: skip
    os.replace(temporary, path)
    return path


def all_keys(rows: Iterable[Row]) -> list[str]:
    """The swept keys of all rows, once each."""
    return list(dict.fromkeys(key for row in rows for key in row.keys))


def all_metrics(rows: Iterable[Row]) -> list[str]:
    """The names of what `evaluate` gave, in all rows, once each."""
    return list(dict.fromkeys(name for row in rows for name in row.metrics))


@dataclass(frozen=True)
class Matrix:
    """Rows as a matrix: strategies across, everything else that was swept down."""

    down: list[str]
    across: list[str]
    cells: dict[tuple[str, str], Row]


def matrix(rows: Sequence[Row]) -> Matrix | None:
    """None where strategies were not swept, or a cell would hold several rows."""
    others = [key for key in all_keys(rows) if key != "gradient"]
    judged = [row for row in rows if row.gradient_error is not None or row.absolute_error is not None]
    if not others or not judged or any("gradient" not in row.keys for row in judged):
        return None
    cells = {(label(row, others), row.keys["gradient"]): row for row in rows if "gradient" in row.keys}
    if len(cells) < sum("gradient" in row.keys for row in rows) or len({across for _, across in cells}) < 2:
        return None
    in_order = sorted(rows, key=lambda row: row.job)
    down = list(dict.fromkeys(label(row, others) for row in in_order))
    across = list(dict.fromkeys(name for _, name in sorted(cells, key=lambda cell: cell[1])))
    return Matrix(down, across, cells)


def label(row: Row, keys: Iterable[str]) -> str:
    """A row by its values of these keys, which names of numbers need a key for: `ode, seed=1`."""
    shown = [(key, row.keys[key]) for key in keys if key in row.keys]
    parts = (value if value.replace("_", "").isalpha() else f"{key.rpartition('.')[2]}={value}" for key, value in shown)
    return ", ".join(parts) or f"job {row.job}"


def over_seeds(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Rows that differ in their seed only, together, under their label; none where no seed was swept."""
    keys = all_keys(rows)
    if "seed" not in keys or len(keys) < 2:
        return []
    others = [key for key in keys if key != "seed"]
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(label(row, others), []).append(row)
    return list(groups.items())
