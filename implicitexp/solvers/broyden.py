"""Broyden's method with limited memory, which Optimistix lacks.

C. G. Broyden 1965, "A class of methods for solving nonlinear simultaneous equations", Mathematics of Computation 19, the
update of the Jacobian ("good"), applied to its inverse H by the formula of Sherman and Morrison: with the step s and the
change d of f that it made,

    H <- H + (s - H d) (s^T H) / (s^T H d),

kept as a multiple of the identity and the last pairs of vectors (C. T. Kelley 1995, "Iterative Methods for Linear and
Nonlinear Equations", chapter 7). An iteration costs one value of f and no Jacobian.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree, Scalar

GROWTH = 10.0  # a residual that is more than this times the smallest: the step was too long
SHORTER = 0.25  # of the step is tried then
FLAT = 1e-8  # a cosine of H d with s below this: the pair says nothing along s, and would divide by it

Vector = Float[Array, " n"]


class _State(eqx.Module):
    f: Vector
    step: Vector
    left: Float[Array, "history n"]
    right: Float[Array, "history n"]
    scale: Scalar
    best: Scalar
    taken: Int[Array, ""]
    error: Scalar


class Broyden(optx.AbstractRootFinder):
    """Broyden's method for f(y) = 0 with as many equations as unknowns, `history` pairs of vectors and no Jacobian.

    It starts from H = `scale` times the identity; None: the multiple that fits one derivative of f, along f(y0). A step to a
    residual that is GROWTH times the smallest, or not finite, is taken back to SHORTER of its length, and again; there is no
    other line search. It has converged when step and residual are below the tolerances, as Optimistix's Newton.

    Options: `lower`, `upper`, to which the iterates are clipped, as those of `optimistix.Newton`.
    """

    rtol: Any
    atol: Any
    norm: Callable[[PyTree], Scalar] = optx.max_norm
    history: int = eqx.field(static=True, default=20)
    scale: Any = None

    def init(self, fn, y, args, options, f_struct, aux_struct, tags) -> _State:
        del options, aux_struct, tags
        flat, unravel = ravel_pytree(y)
        size = sum(x.size for x in jax.tree.leaves(f_struct))
        if size != flat.size:
            raise ValueError(
                f"Broyden needs as many equations as unknowns, and these are {size} and {flat.size}; use "
                "optimistix.LevenbergMarquardt."
            )

        def value(v: Vector) -> Vector:
            return ravel_pytree(fn(unravel(v), args)[0])[0].astype(flat.dtype)

        scale = _fitted(value, flat) if self.scale is None else jnp.asarray(self.scale, flat.dtype)
        empty, zero = jnp.zeros((self.history, flat.size), flat.dtype), jnp.zeros_like(flat)
        inf = jnp.array(jnp.inf, flat.dtype)
        return _State(zero, zero, empty, empty, scale, inf, jnp.array(0), inf)

    def step(self, fn, y, args, options, state: _State, tags) -> tuple[PyTree, _State, PyTree]:
        del tags
        flat, unravel = ravel_pytree(y)
        image, aux = fn(y, args)
        f = ravel_pytree(image)[0].astype(flat.dtype)
        size = jnp.linalg.norm(jax.lax.stop_gradient(f))
        back = (state.taken > 0) & ~(size <= GROWTH * state.best)
        learnt = _updated(state, f - state.f)
        move = jnp.where(back, (SHORTER - 1) * state.step, -_product(learnt, f))
        new = _clipped(unravel(flat + move), options)
        moved = ravel_pytree(new)[0]
        error = jnp.where(back, jnp.inf, self._error(f, moved - flat, moved))
        best = jnp.where(back, state.best, jnp.minimum(size, state.best))
        step = jnp.where(back, SHORTER * state.step, moved - flat)
        f, left, right = (
            jnp.where(back, old, new)
            for old, new in ((state.f, f), (state.left, learnt.left), (state.right, learnt.right))
        )
        return new, _State(f, step, left, right, state.scale, best, state.taken + jnp.where(back, 0, 1), error), aux

    def terminate(self, fn, y, args, options, state: _State, tags) -> tuple[Bool[Array, ""], optx.RESULTS]:
        del fn, y, args, options, tags
        return state.error < 1, optx.RESULTS.successful

    def postprocess(self, fn, y, aux, args, options, state, tags, result):
        return y, aux, {}

    def inverse(self, state: Any) -> tuple[Callable[[Vector], Vector], Callable[[Vector], Vector]]:
        """H and its transpose, with the pairs of the last iterates: near the inverse Jacobian along these, elsewhere a
        multiple of the identity."""

        def transposed(v: Vector) -> Vector:
            return state.scale * v + (state.left @ v) @ state.right

        return lambda v: _product(state, v), transposed

    def _error(self, f: Vector, step: Vector, y: Vector) -> Scalar:
        if y.size == 0:
            return jnp.zeros((), y.dtype)
        moved = self.norm(jax.lax.stop_gradient(step / (self.atol + self.rtol * jnp.abs(y))))
        return jnp.maximum(moved, self.norm(jax.lax.stop_gradient(f / self.atol))).astype(y.dtype)


def _product(state: _State, v: Vector) -> Vector:
    """H v."""
    return state.scale * v + (state.right @ v) @ state.left


def _updated(state: _State, change: Vector) -> _State:
    """The state with the pair of the last step; it takes the place of the oldest, which is forgotten before."""
    place = (state.taken - 1) % state.left.shape[0]
    kept = (jnp.arange(state.left.shape[0]) != place)[:, None]
    state = eqx.tree_at(lambda s: (s.left, s.right), state, (kept * state.left, kept * state.right))
    moved = _product(state, change)
    along = state.step @ moved
    size = jnp.sqrt(jax.lax.stop_gradient((state.step @ state.step) * (moved @ moved)))
    usable = (state.taken > 0) & (jnp.abs(along) > FLAT * size)
    row = state.scale * state.step + (state.left @ state.step) @ state.right
    column = (state.step - moved) / jnp.where(usable, along, 1)
    left = state.left.at[place].set(jnp.where(usable, column, 0))
    right = state.right.at[place].set(jnp.where(usable, row, 0))
    return eqx.tree_at(lambda s: (s.left, s.right), state, (left, right))


def _fitted(value: Callable[[Vector], Vector], y: Vector) -> Scalar:
    """The multiple of J f that is nearest to f, in which direction H = J^-1 multiplies; its size alone where J f is nearly
    perpendicular to f, and one where f or J f is zero."""
    f = value(y)
    moved = jax.jvp(value, (y,), (f,))[1]
    squares, product = moved @ moved, f @ moved
    length = jnp.sqrt(jnp.where(squares > 0, (f @ f) / jnp.where(squares > 0, squares, 1), 1))
    cosine = product * length / jnp.where(f @ f > 0, f @ f, 1)
    fit = jnp.where(jnp.abs(cosine) > 0.1, cosine * length, length)
    fit = jnp.where(jnp.isfinite(fit) & (fit != 0), fit, 1)
    return jax.lax.stop_gradient(fit).astype(y.dtype)


def _clipped(y: PyTree, options: dict[str, Any]) -> PyTree:
    if options.get("lower") is not None:
        y = jax.tree.map(lambda a, b: jnp.clip(a, min=b), y, options["lower"])
    if options.get("upper") is not None:
        y = jax.tree.map(lambda a, b: jnp.clip(a, max=b), y, options["upper"])
    return y
