"""The Gauss adjoint: lambda alone is solved for, and dL/dtheta, the integral of (dF/dtheta)^T lambda, is taken by
Gauss-Legendre nodes inside each accepted backward step (A. C. Norcliffe and M. P. Deisenroth 2023, "Faster Training of
Neural ODEs Using Gauss-Legendre Quadrature"). Parameters cost the solver no unknowns: n^3 + p for an implicit method.
"""

import functools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from implicitexp.adjoints.continuous.extension import outruns_its_interpolation
from implicitexp.adjoints.continuous.trajectory import Flow
from implicitexp.adjoints.continuous.trees import added, few, mapped, scaled
from implicitexp.adjoints.continuous.walk import AbstractParameters, Integral, State

MORE = 3  # orders that the quadrature is above the method's: its error vanishes beside the steps'
LEAST_ORDER = 1  # of a method that does not say its own


def pulled(flow: Flow, part: Callable, s: Any, y: PyTree, adjoint: PyTree) -> PyTree:
    """(df/dy)^T lambda: the derivative of lambda in the time -s."""
    return jax.vjp(lambda y: part(flow.theta, s, y), y)[1](adjoint)[0]


class ByNodes(AbstractParameters):
    """The integral by Gauss-Legendre nodes. `order`: of the rule; None: that of the backward method and MORE."""

    order: int | None = eqx.field(static=True, default=None)
    in_error_test: bool = eqx.field(static=True, default=False)

    def beside(self, flow: Flow) -> State:
        return ()

    def rate(self, flow: Flow, part: Callable, s: Any, y: PyTree, state: State) -> State:
        return (pulled(flow, part, s, y, state[0]),)

    def over_step(self, flow: Flow, solver: Any, y: Callable, state: Callable, s0: Any, s1: Any) -> Integral:
        order = (solver.order(flow.terms()) or LEAST_ORDER) + MORE if self.order is None else self.order
        order += 2 if self.in_error_test and (order + 1) // 2 % 2 == 0 else 0  # the estimate leaves out the middle node
        nodes, weights = gauss_legendre(order, jnp.result_type(s0))
        at, is_small = s0 + nodes * (s1 - s0), few((flow.theta, y(s0)))
        swept = None
        if outruns_its_interpolation(solver):
            swept = _swept(flow, at, y, state, (s0, s1), is_small)
        if is_small and not self.in_error_test:
            return Integral(_one_by_one(flow, at, weights * (s1 - s0), y, state, swept))
        ys = jax.vmap(y)(at)
        adjoints = jax.vmap(lambda s: state(s)[0])(at) if swept is None else swept

        # One pullback for all nodes: JAX adds up over them as it goes, no array of nodes times p is made.
        def slopes(theta):
            return jax.vmap(lambda s, y: flow.slope(theta, s, y))(at, ys)

        pullback = jax.vjp(slopes, flow.theta)[1]

        def weighted(weights):
            return jax.tree.map(
                lambda w: w * jnp.reshape(weights * (s1 - s0), (-1,) + (1,) * (w.ndim - 1)).astype(w.dtype), adjoints
            )

        (value,) = pullback(weighted(weights))
        if not self.in_error_test:
            return Integral(value)
        return Integral(value, pullback(weighted(weights - jnp.asarray(without_middle(nodes.size), weights.dtype)))[0])


def _one_by_one(
    flow: Flow, at: Array, weights: Array, y: Callable, state: Callable, swept: PyTree | None
) -> list[Array]:
    """The integral node after node. `swept`: lambda there, if it is not that of `state`."""

    def add(j, total):
        s = at[j]
        adjoint = state(s)[0] if swept is None else jax.tree.map(lambda x: x[j], swept)
        _, pullback = jax.vjp(lambda theta: flow.slope(theta, s, y(s)), flow.theta)
        return added(total, pullback(scaled(adjoint, weights[j]))[0])

    return jax.lax.fori_loop(0, at.size, add, jax.tree.map(jnp.zeros_like, flow.theta))


def _swept(flow: Flow, at: Array, y: Callable, state: Callable, ends: tuple[Any, Any], is_small: bool) -> PyTree:
    """lambda at the nodes, an order of the step better: lambda(s) = lambda(s1) + integral from s to s1 of (df/dy)^T lambda,
    by the polynomial through the integrand at the nodes."""

    def rate(s):
        here, adjoint = y(s), state(s)[0]
        parts = [pulled(flow, part, s, here, adjoint) for part in flow.parts]
        return jax.tree.map(lambda *xs: sum(xs[1:], xs[0]), *parts)

    s0, s1 = ends
    remaining = jnp.asarray(remainders(at.size), at.dtype) * (s1 - s0)
    rates = mapped(rate, at, is_small)

    def integrated(upper, r):
        return upper + mapped(lambda row: jnp.tensordot(row.astype(r.dtype), r, 1), remaining, is_small)

    return jax.tree.map(integrated, state(s1)[0], rates)


@functools.cache
def remainders(count: int) -> Float[np.ndarray, "count count"]:
    """[i, j]: the integral from node i to 1 of the polynomial that is one at node j of [0, 1] and zero at the others."""
    x = (np.polynomial.legendre.leggauss(count)[0] + 1) / 2
    columns = []
    for j in range(count):
        others = np.delete(x, j)
        antiderivative = np.polynomial.Polynomial.fromroots(others).integ() / np.prod(x[j] - others)
        columns.append(antiderivative(1.0) - antiderivative(x))
    return np.stack(columns, axis=1)


@functools.cache
def without_middle(count: int) -> Float[np.ndarray, " count"]:
    """Weights on [0, 1] of the rule with all but the middle one of an odd number of Gauss-Legendre nodes: of order count - 1,
    by which the rule with all of them is judged."""
    x = np.delete(np.polynomial.legendre.leggauss(count)[0], count // 2)
    moments = [(1 - (-1) ** (k + 1)) / (k + 1) / 2 for k in range(count - 1)]
    return np.insert(np.linalg.solve(np.vander(x, increasing=True).T, moments), count // 2, 0.0)


def gauss_legendre(order: int, dtype: Any) -> tuple[Array, Array]:
    """Nodes and weights on [0, 1], exact for polynomials of a degree below `order` (rounded up to an even number)."""
    x, w = np.polynomial.legendre.leggauss((order + 1) // 2)
    return jnp.asarray((x + 1) / 2, dtype), jnp.asarray(w / 2, dtype)
