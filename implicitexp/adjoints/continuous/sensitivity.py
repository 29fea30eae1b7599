"""Forward sensitivities of an ODE: the state and its tangents in one system.

S' = (dF/dy) S + (dF/dtheta) dtheta (J. R. Leis and M. A. Kramer 1988, "The simultaneous solution and sensitivity
analysis of systems described by ordinary differential equations", ACM TOMS 14), S(s0) = dy0 - F(s0, y0) ds0, so that the
start moves like everything else; a value at a time s that moves has S(s) + F(s, y) ds.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from implicitexp.adjoints.continuous.trajectory import Flow

Integrate = Callable[[list[Callable], PyTree], PyTree]  # fields (s, state) -> ds, state at s0 -> states at the outputs


def along(flow: Flow, y0: PyTree, s0: Any, moved_start: tuple[PyTree, Array], tangents: list[Array]) -> PyTree:
    """The augmented system: -> its fields, one a part of the flow, and its start (y0, S(s0)).

    Leading axis of every tangent: direction. `moved_start`: tangents of y0 and s0; `tangents`: of the flow's theta.
    """

    def augmented(part):
        def field(s, state):
            y, columns = state
            slope, linear = jax.linearize(lambda theta, y: part(theta, s, y), flow.theta, y)
            return slope, jax.vmap(linear)(tangents, columns)

        return field

    dy0, ds0 = moved_start
    slope = flow.slope(flow.theta, s0, y0)
    return [augmented(part) for part in flow.parts], (
        y0,
        jax.tree.map(lambda c, f: c - along_times(ds0, f), dy0, slope),
    )


def at_moving_times(flow: Flow, times: Array, states: PyTree, columns: PyTree, moved: Array) -> PyTree:
    """Tangents of y(s) where s moves. `times`: T; leading axes of `states`: T, of `columns`: T, direction; `moved`:
    direction, T. -> leading axes direction, T."""
    slopes = jax.vmap(lambda s, y: flow.slope(flow.theta, s, y))(times, states)
    return jax.tree.map(
        lambda c, f: jnp.moveaxis(c, 1, 0) + jnp.einsum("dt,t...->dt...", moved.astype(f.dtype), f), columns, slopes
    )


def along_times(moved: Array, slope: Array) -> Array:
    """F ds for every direction."""
    return moved.reshape(-1, *(1,) * slope.ndim).astype(slope.dtype) * slope


def largest_column(rms: Callable[[PyTree], Any], in_error_test: bool) -> Callable[[PyTree], Any]:
    """The norm of an error test on (y, S): the largest of y's and every column's, so that more columns do not loosen it;
    or y's alone."""

    def of_both(state):
        y, columns = state
        if not in_error_test or not jax.tree.leaves(columns):
            return rms(y)
        return jnp.maximum(rms(y), jnp.max(jax.vmap(rms)(columns)))

    return of_both
