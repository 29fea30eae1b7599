"""What the solves on the host share: their limits, what they note, and how they run as solver and strategy."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from implicitexp.equations import Stats
from implicitexp.solvers.base import AbstractSolver
from implicitexp.strategies.base import AbstractCell, AbstractStrategy, Call, Split
from implicitexp.truth.doubles import NoReference


class HostTooSlow(NoReference):
    """The host needs more than its time; the caller has another pair of computations."""


@dataclasses.dataclass
class Notes:
    """What the host's solves found on the way, the worst of all: by which rounding enters a gradient."""

    condition: float = 1.0  # of a Jacobian whose rows have been brought to one size
    noise: float = 0.0  # rounding of a root, relative to its norm


class HostLimits(eqx.Module):
    """What a host solve may take: its relative tolerance, and the time (of `time.perf_counter`) when it must end."""

    tolerance: float = eqx.field(static=True)
    deadline: float = eqx.field(static=True)
    stiff: bool = eqx.field(static=True, default=False)
    notes: Notes = eqx.field(default_factory=Notes)

    def check(self) -> None:
        if time.perf_counter() > self.deadline:
            raise HostTooSlow("SciPy on the host did not finish in time.")


class AbstractHost(AbstractSolver):
    """A solver on the host; its strategy is `OnHost`. The value alone is a linearization along nothing."""

    configured: eqx.AbstractVar[Any]
    limits: eqx.AbstractVar[HostLimits]
    cell: eqx.AbstractClassVar[type[AbstractCell]]

    def run(self, equation, args, loop):
        value, stats, _ = self.cell().linearize(Split.of(Call(equation, args, self), ()))
        return value, stats

    def noise(self, like):
        return self.limits.tolerance


class OnHost(AbstractStrategy):
    """The strategy that goes with the host's solvers: each brings its own derivative."""

    def cell(self, kind, solver: Any) -> AbstractCell:
        return solver.cell()


def compiled(fn: Callable) -> Callable:
    """`fn` compiled, also where the caller has turned compilation off for the loss around it."""
    jitted = jax.jit(fn)

    def call(*args):
        with jax.disable_jit(False):
            return jitted(*args)

    return call


def finished(value: PyTree, steps: int = 0) -> Stats:
    del value
    return Stats(jnp.array(True), jnp.array(steps, jnp.int32))
