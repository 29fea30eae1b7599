"""The adjoint by solving the state backwards as well (R. T. Q. Chen et al. 2018, "Neural Ordinary Differential
Equations"): no memory, and wrong where the ODE backwards is unstable. At every node the state is restored.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from implicitexp.adjoints.continuous.trajectory import Flow
from implicitexp.adjoints.continuous.trees import added, norm
from implicitexp.adjoints.continuous.walk import Backward
from implicitexp.solvers.base import all_finite

# fields (s, state) -> ds, one a part of the flow; state, from, to -> state there, whether it succeeded, steps
Integrate = Callable[[list[Callable], PyTree, Array, Array], tuple[PyTree, Array, Array]]


class Nodes(eqx.Module):
    """Times s in ascending order, the states there and cotangents, zero where nothing is put out."""

    times: Float[Array, " nodes"]
    states: PyTree  # leading axis: nodes
    cotangents: PyTree


def backsolve(flow: Flow, s0: Array, y0: PyTree, nodes: Nodes, integrate: Integrate) -> tuple[Backward, Array]:
    """Integrate (y, lambda, mu) from the last node to s0, node by node. -> what it came to, and the drift: the largest
    relative distance |y - y_kept| / |y_kept| at the end of a segment, which is how far to trust it."""
    below = jnp.concatenate([s0[None], nodes.times[:-1]])
    lower_states = jax.tree.map(lambda y, ys: jnp.concatenate([y[None], ys[:-1]]), y0, nodes.states)
    fields = [_field(flow, part) for part in flow.parts]

    def segment(carry, node):
        upper, lower, state, lower_state, cotangent = node
        adjoint, theta, converged, steps, drift = carry
        end, ok, n = integrate(fields, (state, added(adjoint, cotangent), theta), upper, lower)
        off, size = norm(jax.tree.map(jnp.subtract, end[0], lower_state)), norm(lower_state)
        drift = jnp.maximum(drift, off / jnp.where(size > 0, size, 1))
        return (*end[1:], converged & ok, steps + jnp.asarray(n, jnp.int32), drift), None

    start = (
        jax.tree.map(jnp.zeros_like, y0),
        jax.tree.map(jnp.zeros_like, flow.theta),
        jnp.array(True),
        jnp.array(0, jnp.int32),
        jnp.zeros(()),
    )
    along = (nodes.times, below, nodes.states, lower_states, nodes.cotangents)
    (adjoint, theta, converged, steps, drift), _ = jax.lax.scan(segment, start, along, reverse=True)
    return Backward(adjoint, theta, converged & all_finite((adjoint, theta)), steps), drift


def _field(flow: Flow, part: Callable) -> Callable:
    """dy/ds = F, dlambda/ds = -(dF/dy)^T lambda, dmu/ds = -(dF/dtheta)^T lambda, all in the error test."""

    def field(s: Any, state: tuple) -> tuple:
        y, adjoint, _ = state
        slope, pullback = jax.vjp(lambda y, theta: part(theta, s, y), y, flow.theta)
        by_y, by_theta = pullback(adjoint)
        return slope, jax.tree.map(jnp.negative, by_y), jax.tree.map(jnp.negative, by_theta)

    return field
