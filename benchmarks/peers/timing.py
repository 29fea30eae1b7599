"""Compile, then call all in turn: everything that is compared has seen the same machine.

A turn is as many calls as fill TURN seconds, so that a call of microseconds is not measured against the clock; its time is
their mean. All have a turn in each round, in an order that moves on by one; what is slow has fewer turns. A time is the median
over the turns with its quartiles.
"""

import dataclasses
import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax

from benchmarks.peers.cases import Program
from implicitexp import cost
from implicitexp.device import uncached

TURN = 2e-3  # s
FEWEST, MOST = 3, 40  # turns
ONCE = 5.0  # s: what takes longer has a single turn


class Runner(Protocol):
    """Something that computes a gradient, ready to run."""

    def seconds(self, calls: int) -> list[float]:
        """Call it so many times -> s, of each call."""
        ...


@dataclasses.dataclass(frozen=True)
class Compiled:
    """A compiled program and its inputs."""

    executable: Any
    args: tuple
    compile_s: float  # tracing and compiling, without any cache
    memory_bytes: int | None  # XLA's figure of its temporary memory

    @classmethod
    def of(cls, gradient: Callable, args: tuple) -> "Compiled":
        """Nothing is left in JAX's caches from the program before, so that the first one does not pay for the others."""
        jax.clear_caches()
        began = time.perf_counter()
        with uncached():
            executable = jax.jit(gradient).lower(*args).compile()
        return cls(executable, args, time.perf_counter() - began, cost.memory_of(executable))

    def __call__(self) -> Any:
        return jax.block_until_ready(self.executable(*self.args))

    def seconds(self, calls: int) -> list[float]:
        times = []
        for _ in range(calls):
            began = time.perf_counter()
            self()
            times.append(time.perf_counter() - began)
        return times


@dataclasses.dataclass(frozen=True)
class Times:
    """s a call: the median over the turns, and the quartiles."""

    median: float
    low: float
    high: float
    turns: int

    @classmethod
    def of(cls, turns: Sequence[float]) -> "Times":
        if len(turns) == 1:
            return cls(turns[0], turns[0], turns[0], 1)
        low, median, high = statistics.quantiles(turns, n=4, method="inclusive")
        return cls(median, low, high, len(turns))


def alternated(runners: Mapping[Any, Runner], budget: float) -> dict[Any, Times]:
    """The times of all, measured in turn, in about `budget` seconds for each that is not very slow. All have been called
    before."""
    gc.collect()
    gc.disable()
    try:
        once = {key: runner.seconds(1)[0] for key, runner in runners.items()}
        calls = {key: max(1, math.ceil(TURN / max(s, 1e-7))) for key, s in once.items()}
        wanted = {key: _turns(once[key] * calls[key], budget) for key in runners}
        return {key: Times.of(turns) for key, turns in _rounds(runners, calls, wanted).items()}
    finally:
        gc.enable()


def _turns(seconds: float, budget: float) -> int:
    if seconds > ONCE:
        return 1
    return min(max(int(budget / seconds), FEWEST), MOST)


def _rounds(runners: Mapping[Any, Runner], calls: dict[Any, int], wanted: dict[Any, int]) -> dict[Any, list[float]]:
    """Turns spread evenly over the rounds, of which there are as many as the fastest has turns."""
    rounds, keys = max(wanted.values()), list(runners)
    times: dict[Any, list[float]] = {key: [] for key in keys}
    for i in range(rounds):
        for key in keys[i % len(keys) :] + keys[: i % len(keys)]:
            if (i + 1) * wanted[key] // rounds > i * wanted[key] // rounds:
                times[key].append(statistics.fmean(runners[key].seconds(calls[key])))
    return times


def compiled(program: Program, args: tuple) -> Compiled:
    """**Raises** whatever the program raises when it is traced or compiled."""
    return Compiled.of(program.gradient, args)
