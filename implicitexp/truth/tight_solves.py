"""How the ground truth solves an equation inside JAX: the configured method made tight, and a strategy to go with it.

Two plans share as little as can be. `continuous`: the continuous adjoint of an ODE, the implicit function theorem with
a dense LU, the Leibniz rule. `discrete`: backpropagation through the steps of another solver. A solver with fixed steps
that the loss itself pins (a residual layer) is part of the model: its derivative is that of the discrete map.
"""

import abc
import dataclasses
from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from implicitexp import solvers, solving
from implicitexp.equations import AbstractEquation, Solution, Stats
from implicitexp.solvers.base import PLAIN, AbstractSolver, NotConverged
from implicitexp.solvers.integral import AbstractAdaptiveRule
from implicitexp.strategies import Adjoint, Implicit, Unroll
from implicitexp.truth.written_out import WrittenOut

DENSE_UNKNOWNS = 500  # of a root or fixed point: up to here a dense Jacobian is formed and the solution polished
POLISHING_STEPS = 4  # of Newton's method from a converged solution: quadratic, so that two are enough far from singular
DENSE_BUFFER = 2**25  # numbers that the dense output of an ODE may take: 256 MiB
MOST_STEPS = 16_384  # of an ODE solver at the tightest tolerance
FEWEST_STEPS = 256
INTERVALS = 500  # of an adaptive quadrature


class AbstractPlan(eqx.Module):
    """One of the two computations: which solver and strategy stand for an equation."""

    @abc.abstractmethod
    def choose(self, equation: Any, configured: AbstractSolver, tolerance: Any, nudge: Any) -> tuple[Any, Any]:
        """-> solver and strategy for an equation that stands for its exact solution."""

    @abc.abstractmethod
    def pinned(self, solver: Any) -> tuple[Any, Any]:
        """-> solver and strategy for a fixed-step solver that is part of the model."""


class Continuous(AbstractPlan):
    """The equation's own adjoint: continuous for an ODE, implicit by LU, Leibniz. `method`: adaptive ODE method for
    problems that are not stiff."""

    method: type[AbstractSolver] = eqx.field(static=True, default=solvers.Dopri8)
    stiff: bool = eqx.field(static=True, default=False)

    def choose(self, equation, configured, tolerance, nudge):
        if equation.kind == "ode":
            solver = tight_ode(equation, configured, tolerance, self.method, self.stiff)
            return solver, Adjoint(rtol=tolerance, atol=tolerance)
        if equation.kind == "integral":
            return tight_integral(configured, tolerance), Adjoint(rtol=tolerance, atol=tolerance)
        return tight_algebraic(equation, configured, tolerance, nudge), Implicit(rtol=tolerance, atol=tolerance)

    def pinned(self, solver):
        return WrittenOut(fixed=solver), Unroll()


class Discrete(AbstractPlan):
    """Backpropagation through the steps; the adjoint iteration for a root or a fixed point."""

    stiff: bool = eqx.field(static=True, default=False)

    def choose(self, equation, configured, tolerance, nudge):
        if equation.kind == "ode":
            return tight_ode(equation, configured, tolerance, solvers.Dopri8, self.stiff), Unroll()
        if equation.kind == "integral":
            return tight_integral(configured, tolerance), Implicit()
        return tight_algebraic(equation, configured, tolerance, nudge), Adjoint(rtol=tolerance, atol=tolerance)

    def pinned(self, solver):
        return solver, Unroll()


class TightSolve:
    """The `solve` that a loss is handed for the ground truth."""

    def __init__(self, plan: AbstractPlan, configured: Any, tolerance: Any, nudge: Any = 0.0):
        self.plan, self.configured, self.tolerance, self.nudge = plan, configured, tolerance, nudge

    def __call__(self, equation: AbstractEquation, args: PyTree = None, *, solver: Any = None) -> Solution:
        """Solve; `solver` is what the loss itself pins."""
        if is_model(solver):
            chosen, strategy = self.plan.pinned(solver)
        else:
            method = solvers.for_kind(self.configured if solver is None else solver, equation.kind)
            chosen, strategy = self.plan.choose(equation, method, self.tolerance, self.nudge)
        return solving.solve(equation, args, solver=chosen, gradient=strategy)


def is_model(pinned: Any) -> bool:
    """Whether a solver that the loss pins is part of the model: one with fixed steps is, one with an error control
    only says how to approximate the solution."""
    return isinstance(pinned, solvers.AbstractFixedStep)


def is_stiff(configured: Any) -> bool:
    """Whether the configured ODE solver is an implicit one, chosen since the problem is stiff."""
    return isinstance(configured.stepper(jnp.dtype("float64")), dfx.AbstractImplicitSolver)


# -- configured solvers, made tight -----------------------------------------------------------------------------------


def tight_ode(equation: Any, configured: Any, tolerance: Any, method: type, stiff: bool) -> AbstractSolver:
    """An adaptive solver with this tolerance; implicit where the problem or the configured solver is stiff."""
    unknowns = max(1, sum(jnp.size(x) for x in jax.tree.leaves(equation.y0)))
    steps = max(FEWEST_STEPS, min(MOST_STEPS, DENSE_BUFFER // (16 * unknowns)))
    kind = solvers.Kvaerno5 if stiff or is_stiff(configured) else method
    return kind(rtol=tolerance, atol=tolerance, max_steps=steps)


def tight_integral(configured: Any, tolerance: Any) -> AbstractSolver:
    """The configured rule with this tolerance and many intervals; Gauss-Kronrod where it is none that adapts its mesh."""
    if not isinstance(configured, AbstractAdaptiveRule):
        return solvers.GaussKronrod(rtol=tolerance, atol=tolerance, max_steps=INTERVALS)
    steps = max(INTERVALS, configured.max_steps)
    return dataclasses.replace(configured, rtol=tolerance, atol=tolerance, max_steps=steps)


def tight_algebraic(equation: Any, configured: Any, tolerance: Any, nudge: Any) -> AbstractSolver:
    """The configured solver at its own tolerance, so that the root is the program's own, polished by Newton's method;
    above DENSE_UNKNOWNS unknowns the configured solver made tight."""
    unknowns = sum(jnp.size(x) for x in jax.tree.leaves(equation.y0))
    if unknowns <= DENSE_UNKNOWNS:
        polished = PolishedRoot if equation.kind == "root" else PolishedFixedPoint
        return polished(inner=configured, nudge=jnp.asarray(nudge))
    return eqx.tree_at(lambda s: (s.rtol, s.atol), configured, (tolerance, tolerance), is_leaf=lambda x: x is None)


def polish(equation: Any, args: PyTree, value: PyTree, stats: Stats, nudge: Array) -> tuple[PyTree, Stats]:
    """A few steps of Newton's method with a dense Jacobian from a solution that has converged. `nudge`: a relative
    movement of the result, by which the effect of its rounding on the gradient is measured."""
    y0, unravel = ravel_pytree(value)

    def residual(y):
        out = ravel_pytree(equation.fn(unravel(y), args))[0]
        return out if equation.kind == "root" else out - y

    def newton(_, y):
        return y - jnp.linalg.solve(jax.jacfwd(residual)(y), residual(y))

    y = jax.lax.fori_loop(0, POLISHING_STEPS, newton, y0)
    y = jnp.where(jnp.all(jnp.isfinite(y)), y, y0)  # a singular Jacobian: what the solver found stands
    signs = jnp.where(jnp.arange(y.size) % 2 == 0, 1.0, -1.0)
    return unravel(y * (1 + nudge * signs)), Stats(stats.converged, stats.steps)


class PolishedRoot(AbstractSolver):
    """A root to the last digit."""

    inner: AbstractSolver
    nudge: Array
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "root"

    def noise(self, like):
        return 0.0

    def run(self, equation, args, loop):
        return polish(equation, args, *self.inner.run(equation, args, PLAIN), self.nudge)


class PolishedFixedPoint(AbstractSolver):
    """A fixed point to the last digit."""

    inner: AbstractSolver
    nudge: Array
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "fixed_point"

    def noise(self, like):
        return 0.0

    def run(self, equation, args, loop):
        return polish(equation, args, *self.inner.run(equation, args, PLAIN), self.nudge)
