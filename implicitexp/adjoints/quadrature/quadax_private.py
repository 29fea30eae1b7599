"""The one place that knows what Quadax (0.3) calls its private things.

An adjoint of Quadax is handed `ops`, by which it builds the mapped integrand and runs the rule, and gets back the state of
the loop, a dictionary. Here the entries that these adjoints read get names.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import quadax
from jaxtyping import Array, Bool
from quadax._adjoint import _breakpoint_jumps, _ReplayRecord

FLOOR = 200.0  # of eps times the integral of |f|: twice the error below which Quadax says "round-off", whatever the value is


class Mesh(NamedTuple):
    """Where each interval lies: in which of the given ones, and from which fraction of it to which. Unused: nowhere."""

    owner: Array  # integers, (slots,) or for a box (slots, dimensions)
    start: Array
    end: Array


def mesh(frozen: Any) -> Mesh:
    """The mesh that a loop ended with, the used slots in front; `frozen`: what `ops.frozen` keeps of the loop's state."""
    return Mesh(*(frozen.mesh if isinstance(frozen, _ReplayRecord) else frozen))


def extrapolated(frozen: Any) -> Bool[Array, ""]:
    """Whether the value was extrapolated from the sums on the way."""
    return frozen.used_accel


def ends_of(ops: Any, interval: Any, piece: Mesh) -> tuple[Array, Array]:
    """The ends of intervals of the mesh, which move with the limits and breakpoints."""
    return ops.rebuild(interval, tuple(piece))


def apply(
    rule: quadax.AbstractQuadratureRule | quadax.AbstractCubatureRule,
    fn: Callable[[Array], Array],
    lower: Any,
    upper: Any,
) -> Array:
    """The rule's sum for one interval, or one box between two corners."""
    return rule._apply(fn, lower, upper, ())


def reached(state: dict, eps: float) -> Bool[Array, ""]:
    """Whether the loop reached its tolerance, or what the arithmetic can give of it."""
    normal = state["status"] == quadax.STATUS.normal
    at_floor = state["status"] == quadax.STATUS.roundoff
    if "f_arr" in state:
        size = jnp.max(jnp.sum(state["f_arr"], axis=0))
        at_floor &= state["err_sum"] <= FLOOR * eps * size
    return normal | at_floor


def unmasked(fn: Any) -> Callable[[Array], Array]:
    """The mapped integrand at one place, with what is not finite left in it."""
    return fn.fun


def jumps(fn: Callable[[Array], Array], interval: Array) -> Array | None:
    """How far fn falls at each place inside the interval, read from both sides; zero where it is continuous or unbounded;
    None where there are no places. fn takes a batch of places."""
    return _breakpoint_jumps(fn, interval)


def no_tangent(state: Any) -> Any:
    """Zero tangents for the state of a loop."""

    def one(x):
        x = jnp.asarray(x)
        inexact = jnp.issubdtype(x.dtype, jnp.inexact)
        return jnp.zeros_like(x) if inexact else np.zeros(x.shape, jax.dtypes.float0)

    return jax.tree.map(one, state)
