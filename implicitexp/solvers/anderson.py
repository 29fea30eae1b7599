"""Anderson acceleration, which Optimistix lacks.

D. G. Anderson 1965; type II as in H. F. Walker and P. Ni 2011, "Anderson acceleration for fixed-point iterations", SIAM
J. Numer. Anal. 49(4), equation (2.6): with residuals r_k = T(y_k) - y_k,

    y_{k+1} = y_k + b r_k - (dY_k + b dR_k) g,   g = argmin | r_k - dR_k g |,

the columns of dY_k, dR_k being the last differences of iterates and residuals, b the damping.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, Int, PyTree, Scalar

RESTART = 2.0  # a residual that grew by more than this over the best one: forget the history, take a plain step
LONGEST = 1e4  # times the residual: a longer step is no acceleration of a contraction up to 0.9999; take a plain one
RIDGE = 10.0  # in units of eps, on unit columns: keeps the normal equations solvable when differences are parallel


class _State(eqx.Module):
    y_previous: Float[Array, " n"]
    r_previous: Float[Array, " n"]
    dy: Float[Array, "history n"]
    dr: Float[Array, "history n"]
    best: Float[Array, ""]
    filled: Int[Array, ""]
    error: Scalar


class AndersonAcceleration(optx.AbstractFixedPointSolver):
    """Fixed point iteration with Anderson acceleration (type II), safeguarded by restarts.

    A residual that is RESTART times larger than the smallest since the last restart, or not finite, empties the
    history, and the step is then a plain damped one; so it is where the accelerated one is LONGEST times the residual.
    """

    rtol: Any
    atol: Any
    history: int = eqx.field(static=True, default=5)
    damping: Any = 1.0
    norm: Callable[[PyTree], Scalar] = optx.max_norm

    def init(self, fn, y, args, options, f_struct, aux_struct, tags) -> _State:
        del fn, args, options, f_struct, aux_struct, tags
        flat = ravel_pytree(y)[0]
        empty = jnp.zeros((self.history, flat.size), flat.dtype)
        inf = jnp.array(jnp.inf, jnp.finfo(flat.dtype).dtype)
        return _State(flat, jnp.zeros_like(flat), empty, empty, inf, jnp.array(0), inf)

    def step(self, fn, y, args, options, state: _State, tags) -> tuple[PyTree, _State, PyTree]:
        del options, tags
        flat, unravel = ravel_pytree(y)
        image, aux = fn(y, args)
        r = ravel_pytree(image)[0] - flat
        size = jnp.linalg.norm(jax.lax.stop_gradient(r))
        restart = ~(size <= RESTART * state.best)
        filled = jnp.where(restart, 0, state.filled)
        dy = jnp.roll(state.dy, 1, axis=0).at[0].set(flat - state.y_previous)
        dr = jnp.roll(state.dr, 1, axis=0).at[0].set(r - state.r_previous)
        used = jnp.arange(self.history) < filled
        correction = mixed(jnp.where(used[:, None], dy, 0), jnp.where(used[:, None], dr, 0), r, self.damping)
        # The first residual after a (re)start has no predecessor: its difference is never used, because the count of
        # usable columns grows only after the step.
        step = self.damping * r - correction
        step = jnp.where(jnp.linalg.norm(jax.lax.stop_gradient(step)) <= LONGEST * size, step, self.damping * r)
        error = _scaled(self.norm, r, flat, self.rtol, self.atol)
        # What converged is y, so that its image is returned and not an extrapolation that nothing has tested.
        new = flat + jnp.where(error < 1, r, step)
        best = jnp.where(restart, size, jnp.minimum(size, state.best))
        state = _State(flat, r, dy, dr, best, jnp.minimum(filled + 1, self.history), error)
        return unravel(new), state, aux

    def terminate(self, fn, y, args, options, state: _State, tags) -> tuple[Bool[Array, ""], optx.RESULTS]:
        del fn, y, args, options, tags
        return state.error < 1, optx.RESULTS.successful

    def postprocess(self, fn, y, aux, args, options, state, tags, result):
        return y, aux, {}


def mixed(
    dy: Float[Array, "history n"], dr: Float[Array, "history n"], r: Float[Array, " n"], damping: Any
) -> Float[Array, " n"]:
    """(dY + b dR) g with the least-squares g; columns are scaled to length one, empty ones stay zero."""
    squares = jnp.sum(dr * dr, axis=1)
    scale = jnp.where(squares > 0, jax.lax.rsqrt(jnp.where(squares > 0, squares, 1)), 0)
    unit = dr * scale[:, None]
    ridge = RIDGE * jnp.finfo(r.dtype).eps + (scale == 0)
    g = jnp.linalg.solve(unit @ unit.T + jnp.diag(ridge.astype(r.dtype)), unit @ r)
    return (g * scale) @ (dy + damping * dr)


def _scaled(norm: Callable, step: Array, y: Array, rtol: Any, atol: Any) -> Scalar:
    if y.size == 0:
        return jnp.zeros((), y.dtype)
    return norm(jax.lax.stop_gradient(step / (atol + rtol * jnp.abs(y)))).astype(y.dtype)
