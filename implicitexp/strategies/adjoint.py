"""`adjoint`: the adjoint equation of the problem, solved with a tolerance of its own."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
import quadax
from jaxtyping import Array, PyTree

from implicitexp.adjoints.continuous import calls as continuous
from implicitexp.adjoints.continuous.calls import MethodName, Tolerances
from implicitexp.adjoints.continuous.trees import count, dot
from implicitexp.adjoints.implicit.iterated import AdjointIteration, PreconditionerName, factor, precondition, unit
from implicitexp.equations import Stats
from implicitexp.errors import Unsupported
from implicitexp.solvers.base import stats
from implicitexp.solvers.pieces import ends, inside

from .base import AbstractCell, AbstractStrategy, Backward, Split, check_solver, normalized, scaled
from .forward import Directions, SensitivityCell, first_order
from .implicit import linearization


class Adjoint(AbstractStrategy):
    """Root and fixed point: the adjoint fixed point iteration (Christianson 1994), matrix-free for a fixed point. ODE:
    the continuous adjoint. Integral: the Leibniz rule, whose integral has its own error control.

    `rtol`, `atol`: of the adjoint solve, whose right-hand side has norm one (None: eps^(3/4) for root and fixed point,
    else the forward solver's). `max_steps`: of the adjoint solve. `method` (ODE): gauss or backsolve.
    `preconditioner` (root, whose f is no contraction): LU factors of the Jacobian at the solver's `last` point or at
    its `start`, or `identity`.
    """

    rtol: Any = None
    atol: Any = None
    max_steps: int | None = eqx.field(static=True, default=None)
    method: MethodName = eqx.field(static=True, default="gauss")
    preconditioner: PreconditionerName = eqx.field(static=True, default="last")

    def __check_init__(self):
        if self.method not in ("gauss", "backsolve"):
            raise Unsupported(f"method={self.method!r} is not one of gauss, backsolve.")
        if self.preconditioner not in ("last", "start", "identity"):
            raise Unsupported(f"preconditioner={self.preconditioner!r} is not one of last, start, identity.")

    def cell(self, kind, solver) -> AbstractCell:
        check_solver("adjoint", solver)
        if kind == "ode":
            return ContinuousCell(Tolerances(self.rtol, self.atol, self.max_steps), self.method)
        if kind == "integral":
            return LeibnizCell(Tolerances(self.rtol, self.atol, self.max_steps))
        return IteratedCell(AdjointIteration(self.rtol, self.atol, self.max_steps), self.preconditioner)


class IteratedCell(AbstractCell):
    """Root: w <- w - B^-T ((df/dy)^T w + c). Fixed point: w <- (dT/dy)^T w + c, the same with B = -1."""

    iterated: AdjointIteration
    preconditioner: PreconditionerName = eqx.field(static=True)

    def linearize(self, split: Split):
        value, statistics = split.call().run()
        return value, statistics, (split, value)

    def push(self, residuals, tangents: list[Array]) -> PyTree:
        at = linearization(*residuals)
        v, converged, _, _ = self._solve(residuals, at.dtheta(tangents), transposed=False)
        return at.flat[1](jnp.where(converged, v, jnp.nan))

    def pull(self, residuals, cotangent: PyTree):
        at = linearization(*residuals)
        c = jax.flatten_util.ravel_pytree(cotangent)[0]
        w, converged, steps, residual = self._solve(residuals, c, transposed=True)
        return first_order("adjoint", at.dtheta_transposed(w)), Backward(converged, steps, residual)

    def _solve(self, residuals, c: Array, transposed: bool):
        """w with A w + c = 0, A being df/dy or its transpose."""
        split, y = residuals
        at = linearization(split, y)
        c, size = unit(c)
        apply = at.dy_transposed if transposed else at.dy
        equation = split.call().equation
        if equation.kind == "fixed_point":
            w, *rest = self.iterated(lambda w: w + apply(w) + c, c, noise=jnp.zeros((), c.dtype), start=c)
        else:
            factors = factor(at, self.preconditioner, equation.y0)
            start = -precondition(factors, c, transposed)
            w, *rest = self.iterated(lambda w: w - precondition(factors, apply(w) + c, transposed), c, start=start)
        return w * size, *rest


class ContinuousCell(AbstractCell):
    """ODE. Forward mode is that of `forward`: sensitivities under the error test."""

    tolerances: Tolerances
    method: MethodName = eqx.field(static=True)

    def linearize(self, split: Split):
        call = split.call()
        if self.method == "backsolve":
            value, statistics = call.run()
            return value, statistics, (split, value, None)
        value, mesh, converged, steps = continuous.solve_with_mesh(call)
        return value, stats(converged, steps, value), (split, value, mesh)

    def push(self, residuals, tangents: list[Array]) -> PyTree:
        return SensitivityCell(Directions()).push(residuals[0], tangents)

    def pull(self, residuals, cotangent: PyTree):
        split, value, mesh = residuals
        call = split.call()
        cotangent, size = normalized(cotangent, count(call.equation.y0))
        at = continuous.outputs(call.equation, value, cotangent)
        if mesh is None:
            back = continuous.by_backsolve(split, self.tolerances, at)
        else:
            back = continuous.by_gauss(split, self.tolerances, at, mesh)
        boundary = self._boundary(call, split, at, back.adjoint)
        moved = scaled(jax.tree.map(lambda a, b: a + b, back.theta, boundary), size)
        return first_order("adjoint", moved), Backward(back.converged, back.steps, jnp.zeros(()))

    def _boundary(self, call: Any, split: Split, at: Any, adjoint: PyTree) -> list[Array]:
        """What y0 and the times contribute: lambda(t0), -<lambda(t0), F(t0)>, <c, F> at each output."""
        times, values, cotangents = at
        equation = call.equation

        def boundary(theta):
            moved = split.call(theta).equation
            start = dot(adjoint, moved.y0) - moved.t0 * dot(
                adjoint, equation.field(equation.t0, equation.y0, call.args)
            )
            slopes = jax.vmap(lambda t, z: equation.field(t, z, call.args))(times, values)
            ends = moved.ts if moved.ts is not None else moved.t1[None]
            return start + jnp.sum(ends * jax.vmap(dot)(cotangents, slopes))

        return jax.grad(boundary)(split.theta) if split.theta else []


class LeibnizCell(AbstractCell):
    """I' = g(u) u' - g(l) l' + the integral of dg, with the rule of the solver and its own error control; between
    breaks piece by piece, so that a jump's term is that of the ends on its two sides."""

    tolerances: Tolerances

    def linearize(self, split: Split):
        value, statistics = split.call().run()
        return value, statistics, split

    def push(self, residuals, tangents: list[Array]) -> PyTree:
        split = residuals
        if not split.theta:
            return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(lambda: split.call().run()[0]))
        call = split.call()

        def inner(x, operands):
            split, tangents = operands
            return jax.jvp(lambda theta: integrand(split, theta, x), (split.theta,), (tangents,))[1]

        value, statistics = self._integrate(call, inner, (split, tangents))
        edge = jax.jvp(lambda theta: edges(split, theta), (split.theta,), (tangents,))[1]
        return jax.tree.map(lambda v, e: jnp.where(statistics.converged, v + e, jnp.nan), value, edge)

    def pull(self, residuals, cotangent: PyTree):
        split = residuals
        if not split.theta:
            return [], Backward.exact()
        cotangent, size = normalized(cotangent)

        def inner(x, operands):
            split, cotangent = operands
            return jax.vjp(lambda theta: integrand(split, theta, x), split.theta)[1](cotangent)[0]

        value, statistics = self._integrate(split.call(), inner, (split, cotangent))
        edge = jax.grad(lambda theta: dot(cotangent, edges(split, theta)))(split.theta)
        moved = jax.tree.map(jnp.add, value, edge)
        return scaled(moved, size), Backward(statistics.converged, statistics.steps, jnp.zeros(()))

    def _integrate(self, call: Any, inner: Any, operands: PyTree) -> tuple[PyTree, Stats]:
        """The derivative's integral. Quadax takes arguments that are arrays, so the rest is bound here."""
        equation, own = call.equation, self.tolerances
        options = {"adjoint": quadax.DirectAdjoint(), "rtol": own.rtol, "atol": own.atol, "max_steps": own.max_steps}
        if equation.breaks is not None:
            return call.solver.over_pieces(inner, ends(equation, call.args), operands, **options)
        arrays, static = eqx.partition(operands, eqx.is_array)
        return call.solver.integrate(
            lambda x, arrays: inner(x, eqx.combine(arrays, static)), equation.lower, equation.upper, arrays, **options
        )


def integrand(split: Split, theta: list[Array], x: Array) -> PyTree:
    """g(x) with the parameters theta."""
    call = split.call(theta)
    return call.equation.integrand(x, call.args)


def edges(split: Split, theta: list[Array]) -> PyTree:
    """g(u) u - g(l) l for each piece between breaks, with g held constant: its derivative is the boundary term. An
    infinite limit does not move."""
    call, moved = split.call(), split.call(theta)
    equation, moving = call.equation, moved.equation

    def value(x):
        return equation.integrand(x, call.args)

    if equation.breaks is None:  # a limit at rest, where g may be infinite, has no tangent: not one that is zero
        above = _edge(value, equation.upper, equation.lower, moving.upper)
        return jax.tree.map(jnp.subtract, above, _edge(value, equation.lower, equation.upper, moving.lower))

    def piece(lower, upper, moving_lower, moving_upper):
        def within(x):
            return value(inside(x, lower, upper))

        above = _edge(within, upper, lower, moving_upper)
        return jax.tree.map(jnp.subtract, above, _edge(within, lower, upper, moving_lower))

    at, moving_ends = ends(equation, call.args), ends(moving, moved.args)
    pieces = jax.vmap(piece)(at[:-1], at[1:], moving_ends[:-1], moving_ends[1:])
    return jax.tree.map(lambda x: jnp.sum(x, 0), pieces)


def _edge(value: Callable[[Array], PyTree], limit: Array, other: Array, moving: Array) -> PyTree:
    """g(limit) times `moving`, zero where the limit is infinite."""
    finite = jnp.isfinite(limit)
    inner = jnp.where(finite, limit, jnp.where(jnp.isfinite(other), other, 0))
    shift = jnp.where(finite, moving, 0)
    return jax.tree.map(lambda g: jnp.where(finite, g, 0) * shift.astype(g.dtype), value(inner))
