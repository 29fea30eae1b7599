"""The transposed equation of an implicit stage, (I - a dk/dz)^T l = c, to rounding.

The solver's own factorisation is of the Jacobian at one point of the step (Newton's method needs no better one), and it is
gone when the step is done. The derivative needs the Jacobian at each stage: with few unknowns one is made and factorised at
each; with more, one at one stage of the step, and its factors, which fit the other stages nearly, since all have the same
diagonal a, are refined there: l <- l + W^-T (c - (I - a dk/dz)^T l) is Newton's method of the forward step, transposed.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import jax.scipy.linalg as jsl
from jaxtyping import Array, Float

from implicitexp.adjoints.linear import small_dense

AT_EACH_STAGE = 48  # unknowns: up to here a factorisation costs less than refinement (benchmarks/replay.py)
MOST = 30  # corrections: at a rate of one half they reach rounding in float32; in float64 0.3 is needed
STALLED = 0.5  # a correction of more than this part of the one before
SURE = 1e3  # units of rounding: a last correction of more sends the stage to a factorisation of its own

Pull = Callable[[Array], Array]  # l -> (dk/dz)^T l


class Factors(NamedTuple):
    """LU of (I - a dk/dz)^T at one stage of the step."""

    lu: Float[Array, "n n"]
    pivots: Array


def are_shared(unknowns: int, diagonal: tuple[float, ...]) -> bool:
    """Whether one factorisation serves all stages of a step."""
    return unknowns > AT_EACH_STAGE and len({a for a in diagonal if a}) == 1


def factors(a: Array | float, pull: Pull, like: Array) -> Factors:
    return Factors(*jsl.lu_factor(_matrix(a, pull, like)))


def solved(a: Array | float, pull: Pull, c: Float[Array, " n"], shared: Factors | None) -> Float[Array, " n"]:
    """l. `shared`: the factors of the step, where one factorisation serves all of its stages."""
    return _direct(a, pull, c) if shared is None else _refined(a, pull, c, shared)


def _matrix(a: Array | float, pull: Pull, like: Array) -> Array:
    """(I - a dk/dz)^T; its columns are products with it."""
    unit = jnp.eye(like.size, dtype=like.dtype)
    return unit - a * jax.vmap(pull)(unit).T


def _direct(a: Array | float, pull: Pull, c: Array) -> Array:
    matrix = _matrix(a, pull, c)
    if c.size <= small_dense.LARGEST:
        return jnp.stack(small_dense.solve(small_dense.factor(matrix), list(c)))
    return jnp.linalg.solve(matrix, c)


def _refined(a: Array | float, pull: Pull, c: Array, shared: Factors) -> Array:
    """Its own derivative is that of the equation, not of the loop."""

    def product(x):
        return x - a * pull(x)

    def solve(product, c):
        return _corrected(product, c, shared)

    return jax.lax.custom_linear_solve(product, c, solve)


def _corrected(product: Callable, c: Array, shared: Factors) -> Array:
    """x with product(x) = c."""

    def going(carry):
        n, x, change, before = carry
        return (n < MOST) & (change > eps * _largest(x)) & (change < STALLED * before)

    def better(carry):
        n, x, change, _ = carry
        d = jsl.lu_solve(shared, c - product(x))
        return n + 1, x + d, _largest(d), change

    def anew():
        matrix = jax.vmap(product)(jnp.eye(c.size, dtype=c.dtype)).T
        return jnp.where(lost, jnp.linalg.solve(matrix, c), x)

    eps = jnp.finfo(c.dtype).eps
    first = jsl.lu_solve(shared, c)
    start = (0, first, _largest(first), jnp.array(jnp.inf, c.dtype))
    _, x, change, _ = jax.lax.while_loop(going, better, start)
    lost = ~(change <= SURE * eps * _largest(x))  # of a NaN, too
    return jax.lax.cond(eqxi.unvmap_any(lost), anew, lambda: x)


def _largest(x: Array) -> Array:
    return jnp.max(jnp.abs(x))
