"""One case: compile its programs, start its workers, time all in turn, hold the gradients against the reference."""

import re
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.peers.cases import Case, Entry, Foreign, Program, Reference, flat, relative_error
from benchmarks.peers.ode_long import MEMORY_AT
from benchmarks.peers.rows import Memory, Result, Row
from benchmarks.peers.timing import Compiled, Runner, Times, alternated, compiled
from benchmarks.peers.workers import Remote, WorkerError, Workers
from implicitexp import device


def measured(entry: Entry, small: bool, budget: float, scratch: Path, workers: Workers) -> Result:
    """The result of a case. A program that fails has a row that says why."""
    with device.configured("cpu", entry.precision):
        case = entry.build(small)
        with device.configured("cpu", "float64"):
            reference = case.reference()
        ready, rows = _prepared(case, scratch, workers)
        times = alternated(ready, budget)
        for key, runner in ready.items():
            rows[key] = _row(key, runner, times[key], reference)
        memory = [Memory(*who, _by_steps(make, case.args)) for who, make in case.memory.items()]
    jax.clear_caches()
    return Result(
        case.number, case.title, list(rows.values()), reference.uncertainty, case.tolerance, case.remarks, memory
    )


def _prepared(
    case: Case, scratch: Path, workers: Workers
) -> tuple[dict[Program | Foreign, Runner], dict[Program | Foreign, Row]]:
    """What can be run; and the rows, in order, of which those that failed are final."""
    data = scratch / f"{case.number}.npz"
    np.savez(data, **case.data)  # pyright: ignore[reportArgumentType]
    ready: dict[Program | Foreign, Runner] = {}
    rows: dict[Program | Foreign, Row] = {}
    for key in (*case.programs, *case.foreign):
        rows[key] = Row(key.role, key.library, key.name)
        print(f"{case.number}: {key.library} {key.name}", file=sys.stderr, flush=True)
        try:
            ready[key] = compiled(key, case.args) if isinstance(key, Program) else Remote.of(key, data, workers)
            ready[key].seconds(1)
        except WorkerError as error:
            rows[key] = Row(key.role, key.library, key.name, remark=_one_line(str(error)))
            ready.pop(key, None)
        except Exception as error:  # a border: a library that cannot do the case must not end the others
            rows[key] = Row(key.role, key.library, key.name, remark=_one_line(f"{type(error).__name__}: {error}"))
            ready.pop(key, None)
    return ready, rows


def _one_line(text: str) -> str:
    """Of an error that brings a traceback along, its last one's message."""
    errors = [line for line in text.splitlines() if re.match(r"[\w.]*(Error|Exception): ", line.strip())]
    return " ".join((errors[-1] if errors else text).split())[:200].replace("|", "/")


def _row(key: Program | Foreign, runner: Any, times: Times, reference: Reference) -> Row:
    if isinstance(runner, Remote):
        return Row(key.role, key.library, key.name, times, relative_error(runner.gradient, reference))
    assert isinstance(runner, Compiled)
    error = None if key.role == "floor" else _error(runner(), reference)
    return Row(key.role, key.library, key.name, times, error, runner.compile_s, runner.memory_bytes)


def _error(out: Any, reference: Reference) -> float:
    """Of the gradient, which comes first where the program returns more, as an update does."""
    found = flat(out)
    return relative_error(found[: reference.gradient.size], reference)


def _by_steps(make: Any, args: tuple) -> dict[int, int | None]:
    return {steps: Compiled.of(make(steps), args).memory_bytes for steps in MEMORY_AT}
