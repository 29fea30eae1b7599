"""Anderson acceleration, which Optimistix lacks.

D. G. Anderson 1965; type II as in H. F. Walker and P. Ni 2011, "Anderson acceleration for fixed-point iterations", SIAM
J. Numer. Anal. 49(4), equation (2.6): with residuals r_k = T(y_k) - y_k,

    y_{k+1} = y_k + b r_k - (dY_k + b dR_k) g,   g = argmin | r_k - dR_k g |,

the columns of dY_k, dR_k being the last differences of iterates and residuals, b the damping. The state keeps dR_k^T dR_k,
of which a step changes one row: beside T a step costs three products with a (history, n) array.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import optimistix as optx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree, Scalar

RESTART = 2.0  # a residual that grew by more than this over the best one: forget the history, take a plain step
LONGEST = 1e4  # times the residual: a longer step is no acceleration of a contraction up to 0.9999; take a plain one
RIDGE = 10.0  # in units of eps, on unit columns: keeps the normal equations solvable when differences are parallel
QUICK = 0.5  # a plain step that leaves less of the residual than this is followed by one: benchmarks/plain_steps.py

Vector = Float[Array, " n"]
History = Float[Array, "history n"]
Square = Float[Array, "history history"]


class _State(eqx.Module):
    y_previous: Vector
    r_previous: Vector
    dy: History  # rings: the difference that is the k-th since the last restart stands in row k modulo the history
    dr: History
    gram: Square  # dr dr^T; rows of `dr` that are not used have anything there
    best: Float[Array, ""]
    count: Int[Array, ""]  # differences since the last restart, that of the next step included
    quick: Bool[Array, ""]  # every step until now was a plain one that contracted by QUICK
    error: Scalar


class AndersonAcceleration(optx.AbstractFixedPointSolver):
    """Fixed point iteration with Anderson acceleration (type II), safeguarded by restarts.

    A residual that is RESTART times larger than the smallest since the last restart, or not finite, empties the
    history, and the step is then a plain damped one; so it is where the accelerated one is LONGEST times the residual.
    As long as the residual has fallen by QUICK in every step from the first on, steps are plain ones too, at their cost.
    """

    rtol: Any
    atol: Any
    history: int = eqx.field(static=True, default=5)
    damping: Any = 1.0
    norm: Callable[[PyTree], Scalar] = optx.max_norm

    def init(self, fn, y, args, options, f_struct, aux_struct, tags) -> _State:
        del fn, args, options, f_struct, aux_struct, tags
        return self.start(ravel_pytree(y)[0])

    def step(self, fn, y, args, options, state: _State, tags) -> tuple[PyTree, _State, PyTree]:
        del options, tags
        flat, unravel = ravel_pytree(y)
        image, aux = fn(y, args)
        flat, state = self.advance(flat, ravel_pytree(image)[0] - flat, state)
        return unravel(flat), state, aux

    def terminate(self, fn, y, args, options, state: _State, tags) -> tuple[Bool[Array, ""], optx.RESULTS]:
        del fn, y, args, options, tags
        return state.error < 1, optx.RESULTS.successful

    def postprocess(self, fn, y, aux, args, options, state, tags, result):
        return y, aux, {}

    def start(self, y: Vector) -> _State:
        """Before the first step from y."""
        inf = jnp.array(jnp.inf, jnp.finfo(y.dtype).dtype)
        return self.after(y, jnp.zeros_like(y), inf, inf, count=0)

    def after(self, y: Vector, r: Vector, size: Scalar, error: Scalar, count: int = 1) -> _State:
        """After a plain step from y, where the residual was r, of this size: without a history, but for that one step."""
        empty = jnp.zeros((self.history, y.size), y.dtype)
        gram = jnp.zeros((self.history, self.history), y.dtype)
        quick = jnp.array(count == 0)
        return _State(y, r, empty, empty, gram, size, jnp.array(count, jnp.int32), quick, error)

    def advance(self, y: Vector, r: Vector, state: _State) -> tuple[Vector, _State]:
        """From y, where the residual T(y) - y is r: the next y."""
        size = jnp.linalg.norm(jax.lax.stop_gradient(r))
        restart = ~(size <= RESTART * state.best)
        quick = state.quick & (size <= QUICK * state.best)
        # The first residual after a (re)start has no predecessor: what stands in its row is not used, and written over.
        count = jnp.where(restart, 0, state.count)
        place = jnp.maximum(count - 1, 0) % self.history
        moved = r - state.r_previous
        dy, dr = put(state.dy, y - state.y_previous, place), put(state.dr, moved, place)

        def accelerated():
            products = _product(dr, jnp.stack([moved, r], axis=1))
            row, at = products[:, 0], jnp.arange(self.history) == place
            gram = jnp.where(at[:, None], row, jnp.where(at, row[:, None], state.gram))
            g = coefficients(gram, products[:, 1], count)
            step = self.damping * (r - _product(g, dr)) - _product(g, dy)
            short = jnp.linalg.norm(jax.lax.stop_gradient(step)) <= LONGEST * size
            return jnp.where(short & ~quick, step, self.damping * r), gram

        # A branch that is taken or not also under vmap, where it is taken if any lane wants it.
        wanted = eqxi.unvmap_any(~quick)
        step, gram = jax.lax.cond(wanted, accelerated, lambda: (self.damping * r, state.gram))
        error = self.error(r, y)
        # What converged is y, so that its image is returned and not an extrapolation that nothing has tested.
        new = y + jnp.where(error < 1, r, step)
        best = jnp.where(restart, size, jnp.minimum(size, state.best))
        count = jnp.where(quick, 1, count + 1)
        return new, _State(y, r, dy, dr, gram, best, count, quick, error)

    def error(self, r: Vector, y: Vector) -> Scalar:
        """The size of a residual in units of the tolerance at y."""
        if y.size == 0:
            return jnp.zeros((), y.dtype)
        scaled = r / (self.atol + self.rtol * jnp.abs(y))
        return self.norm(jax.lax.stop_gradient(scaled)).astype(y.dtype)

    def inverse(self, state: _State) -> tuple[Callable[[Vector], Vector], Callable[[Vector], Vector]]:
        """v -> H v and H^T v, where H stands for the inverse of the Jacobian of T(y) - y: the last step was y - H r, H being
        minus the damping with a correction on the last differences."""
        dy, dr, used = state.dy, state.dr, state.count - 1

        def forward(v: Vector) -> Vector:
            g = coefficients(state.gram, _product(dr, v), used)
            return _product(g, dy) - self.damping * (v - _product(g, dr))

        def transposed(v: Vector) -> Vector:
            g = coefficients(state.gram, _product(dy, v) + self.damping * _product(dr, v), used)
            return _product(g, dr) - self.damping * v

        return forward, transposed


def coefficients(gram: Square, products: Float[Array, " history"], count: Int[Array, ""]) -> Float[Array, " history"]:
    """g with the least |r - dR g|, from dR^T dR and dR^T r, of which the first `count` columns of dR are there. Columns are
    scaled to length one; those that are zero have no share."""
    squares = jnp.diagonal(gram)
    there = (jnp.arange(squares.size) < count) & (squares > 0) & jnp.isfinite(squares)
    scale = jnp.where(there, jax.lax.rsqrt(jnp.where(there, squares, 1)), 0)
    both = there[:, None] & there
    ridge = 1 + RIDGE * jnp.finfo(gram.dtype).eps  # and one more is on the diagonal of what is not there
    scaled = jnp.where(both, gram, 0) * scale[:, None] * scale
    matrix = jnp.where(jnp.eye(squares.size, dtype=bool), ridge, scaled).astype(gram.dtype)
    b = jnp.where(there, products, 0) * scale
    held = jax.lax.stop_gradient(matrix)
    return scale * jax.lax.custom_linear_solve(
        lambda x: _product(matrix, x), b, lambda _, b: _eliminated(held, b), symmetric=True
    )


def _eliminated(matrix: Square, b: Float[Array, " history"]) -> Float[Array, " history"]:
    """x with A x = b for a definite A with ones on its diagonal, by Gauss and Jordan: a call of LAPACK takes longer, and so
    does its compilation. A column that the others span to rounding has no share."""
    places, smallest = jnp.arange(b.size), RIDGE * jnp.finfo(b.dtype).eps / 2

    def eliminate(k, rows):
        row = rows[k]
        row = jnp.where(row[k] > smallest, row / row[k], 0)
        return jnp.where((places == k)[:, None], row, rows - rows[:, k, None] * row)

    return jax.lax.fori_loop(0, b.size, eliminate, jnp.concatenate([matrix, b[:, None]], axis=1))[:, -1]


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)  # a GPU's default has three digits


@jax.custom_jvp
def put(rows: History, row: Vector, place: Int[Array, ""]) -> History:
    """`rows` with `row` in this place: written there, but under vmap, where each lane has a place of its own, selected: a
    scatter would be a loop over the lanes."""
    return _written(rows, row, place)


@put.defjvp
def _put_jvp(primals, tangents):
    (rows, row, place), (rows_moved, row_moved, _) = primals, tangents
    return put(rows, row, place), _selected(rows_moved, row_moved, place)


@jax.custom_batching.custom_vmap
def _written(rows: History, row: Vector, place: Int[Array, ""]) -> History:
    return jax.lax.dynamic_update_index_in_dim(rows, row, place, 0)


@_written.def_vmap
def _written_in_lanes(size, batched, rows, row, place):
    axes = tuple(0 if b else None for b in batched)
    return jax.vmap(_selected, axes, axis_size=size)(rows, row, place), True


def _selected(rows: History, row: Vector, place: Int[Array, ""]) -> History:
    return jnp.where((jnp.arange(rows.shape[0]) == place)[:, None], row, rows)
