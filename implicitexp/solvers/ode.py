"""What all ODE solvers share: the call of Diffrax, fixed steps, steps under an error control."""

import abc
from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from implicitexp.equations import ODE, Stats

from .base import AbstractSolver, Loop, resolve_tolerance, stats


def loop_adjoint(loop: Loop) -> dfx.AbstractAdjoint:
    """Diffrax's name for a loop: its plain one can be differentiated in forward mode only."""
    if loop.adjoint is not None:
        return loop.adjoint
    if loop.kind == "plain":
        return dfx.ForwardMode()
    return dfx.RecursiveCheckpointAdjoint(checkpoints=loop.checkpoints)


class AbstractODESolver(AbstractSolver):
    """A one-step method. `integrate` is the one place that calls Diffrax, for forward and backward solves."""

    max_steps: eqx.AbstractVar[int]
    dt0: eqx.AbstractVar[Any]

    @abc.abstractmethod
    def stepper(self, y0: PyTree, rtol: Any = None, atol: Any = None) -> dfx.AbstractSolver:
        """The Diffrax solver for a state like `y0`; given tolerances stand before the solver's own."""

    @abc.abstractmethod
    def controller(self, y0: PyTree, rtol: Any = None, atol: Any = None) -> dfx.AbstractStepSizeController:
        """The step size control; given tolerances stand before the solver's own."""

    def first_step(self, t0: Any, t1: Any) -> Any:
        """The first step from t0 towards t1; None: the controller chooses."""
        return None if self.dt0 is None else jnp.where(t1 < t0, -1, 1) * jnp.asarray(self.dt0, jnp.result_type(t0))

    def integrate(
        self,
        field: Callable[[Any, PyTree, PyTree], PyTree],
        y0: PyTree,
        t0: Any,
        t1: Any,
        args: PyTree,
        *,
        saveat: dfx.SaveAt | None = None,
        loop: Loop = Loop(),
        rtol: Any = None,
        atol: Any = None,
        max_steps: int | None = None,
    ) -> dfx.Solution:
        """Integrate dy/dt = field(t, y, args) from t0 to t1, in either direction."""
        return dfx.diffeqsolve(
            dfx.ODETerm(field),
            self.stepper(y0, rtol, atol),
            t0,
            t1,
            self.first_step(t0, t1),
            y0,
            args,
            saveat=dfx.SaveAt(t1=True) if saveat is None else saveat,
            stepsize_controller=self.controller(y0, rtol, atol),
            adjoint=loop_adjoint(loop),
            max_steps=self.max_steps if max_steps is None else max_steps,
            throw=False,
        )

    def run(self, equation: ODE, args: PyTree, loop: Loop) -> tuple[PyTree, Stats]:
        saveat = dfx.SaveAt(t1=True) if equation.ts is None else dfx.SaveAt(ts=equation.ts)
        sol = self.integrate(equation.field, equation.y0, equation.t0, equation.t1, args, saveat=saveat, loop=loop)
        value = jax.tree.map(lambda y: y[0], sol.ys) if equation.ts is None else sol.ys
        return value, stats(succeeded(sol), sol.stats["num_steps"], value)


def succeeded(sol: dfx.Solution):
    return sol.result == dfx.RESULTS.successful


class AbstractFixedStep(AbstractODESolver):
    """A method in equal steps of at most `dt0`, the last of which ends at t1."""

    def controller(self, y0, rtol=None, atol=None):
        return dfx.ConstantStepSize()

    def noise(self, like):
        return 0.0

    def steps(self, t0: Any, t1: Any) -> Any:
        """How many: t1 - t0 over dt0, rounded up unless it is a whole number within rounding."""
        ratio = jnp.abs(jnp.asarray(t1) - t0) / self.dt0
        slack = 1 - 8 * jnp.finfo(ratio.dtype).eps
        return jax.lax.stop_gradient(jnp.maximum(jnp.ceil(ratio * slack), 1))

    def first_step(self, t0, t1):
        """Like all others: Diffrax's own makes a first step of dt0, and the rest of them shorter."""
        return (t1 - t0) / self.steps(t0, t1)

    def kept_steps(self, before, after):
        """One step more or less jumps by the error of a step, which a small difference of times would be lost in."""
        span = before.t1 - before.t0
        longer = jnp.where(span == 0, 1, (after.t1 - after.t0) / jnp.where(span == 0, 1, span))
        return eqx.tree_at(lambda solver: solver.dt0, self, self.dt0 * longer)


class AbstractAdaptive(AbstractODESolver):
    """A Runge-Kutta method with an embedded error estimate; steps by a PI controller."""

    rtol: eqx.AbstractVar[Any]
    atol: eqx.AbstractVar[Any]

    def controller(self, y0, rtol=None, atol=None):
        rtol = resolve_tolerance(self.rtol if rtol is None else rtol, y0)
        atol = resolve_tolerance(self.atol if atol is None else atol, y0)
        return dfx.PIDController(rtol=rtol, atol=atol)

    def noise(self, like):
        return resolve_tolerance(self.rtol, like)
