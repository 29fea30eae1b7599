"""Forward sensitivities of an ODE: the state and its tangents in one system, under one error test.

S' = (dF/dz) S + (dF/dtheta) dtheta, S(t0) = dz0 (J. R. Leis and M. A. Kramer 1988, "The simultaneous solution and
sensitivity analysis of systems described by ordinary differential equations", ACM TOMS 14). Time is rescaled to
s in [0, 1], t = t0 + s (t1 - t0), so that t0 and t1 are parameters like all others.
"""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from implicitexp.solvers.ode import succeeded


def sensitivities(split: Any, tangents: list[Array]) -> tuple[PyTree, Array, Array]:
    """-> tangents of the value (leading axis: direction), converged, steps. `tangents`: leading axis a direction."""
    call = split.call()
    equation, solver = call.equation, call.solver
    span = equation.t1 - equation.t0
    safe = jnp.where(span == 0, 1, span)

    def start(theta):
        return split.call(theta).equation.y0

    def field(theta, s, y):
        moved = split.call(theta)
        t0, t1 = moved.equation.t0, moved.equation.t1
        slope = moved.equation.field(t0 + s * (t1 - t0), y, moved.args)
        return jax.tree.map(lambda f: f * (t1 - t0).astype(f.dtype), slope)

    def each(fn, *primals):
        return lambda t, *moving: jax.jvp(fn, (split.theta, *primals), (t, *moving))[1]

    def augmented(s, state, _):
        y, tangent_y = state
        slope = field(split.theta, s, y)
        moved = jax.vmap(each(lambda theta, y: field(theta, s, y), y))(tangents, tangent_y)
        return slope, moved

    initial = (equation.y0, jax.vmap(each(start))(tangents))
    zero, one = jnp.zeros_like(span), jnp.ones_like(span)
    if equation.ts is None:
        sol = _unit(solver, safe).integrate(augmented, initial, zero, one, None)
        return jax.tree.map(lambda x: x[0], sol.ys[1]), succeeded(sol), sol.stats["num_steps"]
    at = jnp.clip((equation.ts - equation.t0) / safe, 0, 1)
    sol = _unit(solver, safe).integrate(augmented, initial, zero, one, None, saveat=dfx.SaveAt(ts=at))
    values, columns = sol.ys
    columns = jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), columns)
    drift = jax.vmap(lambda t: jax.jvp(lambda theta: _scaled_times(split, theta), (split.theta,), (t,))[1])(tangents)
    slopes = jax.vmap(lambda s, y: field(split.theta, s, y))(at, values)
    moved = jax.tree.map(lambda c, f: c + jnp.einsum("dt,t...->dt...", drift.astype(f.dtype), f), columns, slopes)
    return moved, succeeded(sol), sol.stats["num_steps"]


def _scaled_times(split: Any, theta: list[Array]) -> Array:
    equation = split.call(theta).equation
    return (equation.ts - equation.t0) / (equation.t1 - equation.t0)


def _unit(solver: Any, span: Array) -> Any:
    """The solver with its first (or fixed) step in units of the whole interval."""
    if solver.dt0 is None:
        return solver
    return eqx.tree_at(lambda s: s.dt0, solver, jnp.abs(solver.dt0 / span))
