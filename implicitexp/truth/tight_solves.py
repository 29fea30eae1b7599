"""How the ground truth solves an equation inside JAX: the configured method made tight, and a strategy to go with it.

Two plans share as little as can be. `continuous`: the continuous adjoint of an ODE, the implicit function theorem with
a dense LU, the Leibniz rule. `discrete`: backpropagation through the steps of another solver. A solver with fixed steps
that the loss itself pins (a residual layer) is part of the model: its derivative is that of the discrete map.
"""

import abc
from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from implicitexp import solvers, solving
from implicitexp.equations import AbstractEquation, Solution, Stats
from implicitexp.solvers.base import PLAIN, AbstractSolver, Loop, NotConverged
from implicitexp.solvers.base import stats as statistics
from implicitexp.strategies import Adjoint, Implicit, Unroll

DENSE_UNKNOWNS = 500  # of a root or fixed point: up to here a dense Jacobian is formed and the solution polished
POLISHING_STEPS = 4  # of Newton's method from a converged solution: quadratic, so that two are enough far from singular
DENSE_BUFFER = 2**25  # numbers that the dense output of an ODE may take: 256 MiB
MOST_STEPS = 16_384  # of an ODE solver at the tightest tolerance
FEWEST_STEPS = 256
INTERVALS = 500  # of an adaptive quadrature
CLIP = 1e-10  # as Diffrax: a step that ends this close to t1 ends at t1


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
        return FixedEuler(dt0=solver.dt0, max_steps=solver.max_steps), Unroll()


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
    return isinstance(pinned, solvers.Euler)


def is_stiff(configured: Any) -> bool:
    """Whether the configured ODE solver is an implicit one, chosen since the problem is stiff."""
    return isinstance(configured.method(jnp.dtype("float64")), dfx.AbstractImplicitSolver)


# -- configured solvers, made tight -----------------------------------------------------------------------------------


def tight_ode(equation: Any, configured: Any, tolerance: Any, method: type, stiff: bool) -> AbstractSolver:
    """An adaptive solver with this tolerance; implicit where the problem or the configured solver is stiff."""
    unknowns = max(1, sum(jnp.size(x) for x in jax.tree.leaves(equation.y0)))
    steps = max(FEWEST_STEPS, min(MOST_STEPS, DENSE_BUFFER // (16 * unknowns)))
    kind = solvers.Kvaerno5 if stiff or is_stiff(configured) else method
    return kind(rtol=tolerance, atol=tolerance, max_steps=steps)


def tight_integral(configured: Any, tolerance: Any) -> AbstractSolver:
    """The configured rule with this tolerance and many intervals."""
    tight = eqx.tree_at(lambda s: (s.rtol, s.atol), configured, (tolerance, tolerance), is_leaf=lambda x: x is None)
    steps = max(INTERVALS, configured.max_steps)
    return type(tight)(
        **{**{f: getattr(tight, f) for f in tight.__dataclass_fields__ if f != "kind"}, "max_steps": steps}
    )


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


class FixedEuler(AbstractSolver):
    """y <- y + h f(t, y) in equal steps, written out: for a residual network a second code path beside Diffrax's."""

    dt0: Any  # in the units of t
    max_steps: int = eqx.field(static=True)
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "ode"

    def noise(self, like):
        return 0.0

    def run(self, equation, args, loop: Loop):
        t0, t1 = equation.t0, equation.t1
        direction = jnp.where(t1 < t0, -1.0, 1.0)
        whole = jnp.ceil(
            jnp.abs(t1 - t0) / self.dt0 * (1 - 8 * jnp.finfo(t0.dtype).eps)
        )  # what rounding adds is no step
        dt = (t1 - t0) / jax.lax.stop_gradient(jnp.maximum(whole, 1))
        ts = t1[None] if equation.ts is None else equation.ts
        out = jax.tree.map(lambda y: jnp.broadcast_to(y, (*ts.shape, *y.shape)), equation.y0)

        def unfinished(carry):
            return direction * (t1 - carry[0]) > 0

        def step(carry):
            t, y, out, n = carry
            end = jnp.where(direction * (t + dt - t1) > -CLIP, t1, t + dt)
            after = jax.tree.map(lambda y, f: y + (end - t) * f, y, equation.field(t, y, args))
            passed = (direction * (ts - t) > 0) & (direction * (ts - end) <= 0)
            return end, after, jax.tree.map(lambda o, a, b: _between(o, a, b, t, end, ts, passed), out, y, after), n + 1

        kind = "lax" if loop.kind == "plain" else "checkpointed"
        start = (t0, equation.y0, out, jnp.array(0, jnp.int32))
        t, _, out, n = eqxi.while_loop(unfinished, step, start, max_steps=self.max_steps, kind=kind)
        value = out if equation.ts is not None else jax.tree.map(lambda o: o[0], out)
        return value, statistics(t == t1, n, value)


def _between(out: Array, before: Array, after: Array, t: Array, end: Array, ts: Array, passed: Array) -> Array:
    """The outputs in this step, by linear interpolation, as Diffrax gives them for Euler's method."""
    fraction = (ts - t) / (end - t)
    moved = before + fraction.reshape(-1, *[1] * before.ndim) * (after - before)
    return jnp.where(passed.reshape(-1, *[1] * before.ndim), moved, out)
