"""A call of Quadax whose derivative is one of ours: what it depends on, in a list, and the integrand as a function of that."""

import abc
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import quadax
from jaxtyping import Array, PyTree

from .operators import Inputs
from .quadax_private import no_tangent


class Held(eqx.Module):
    """Arrays that are not differentiated: integers among the inputs, options, the rule's nodes, what is kept of the loop."""

    rest: PyTree
    options: PyTree
    frozen: PyTree


class Call:
    """What of a call of Quadax is no array, and how its inputs are put together. Nothing in it is traced."""

    def __init__(self, ops: Any, inputs: PyTree, options: PyTree):
        """`inputs`: interval, args, and what the integrand closes over. `options`: the solve's, and the rule's keywords."""
        leaves, self.treedef = jax.tree.flatten(inputs)
        self.ops = ops
        self.where = tuple(i for i, x in enumerate(leaves) if eqx.is_inexact_array(x))
        self.static = eqx.filter(leaves, eqx.is_array, inverse=True)
        self.static_options = eqx.filter(options, eqx.is_array, inverse=True)

    def split(self, inputs: PyTree, options: PyTree, frozen: PyTree) -> tuple[Inputs, Held]:
        """-> the inputs that can be differentiated, and all other arrays."""
        leaves = jax.tree.leaves(inputs)
        rest = [None if i in self.where or not eqx.is_array(x) else x for i, x in enumerate(leaves)]
        held = Held(rest, eqx.filter(options, eqx.is_array), frozen)
        return [leaves[i] for i in self.where], jax.lax.stop_gradient(held)

    def options(self, held: Held) -> tuple[dict, dict]:
        """-> the solve's options, the rule's keywords."""
        return eqx.combine(held.options, self.static_options)

    def inputs(self, inputs: Inputs, held: Held) -> tuple[Any, Any, Any]:
        """-> interval, args, consts. Of more inputs than there are the first count."""
        leaves = [y if x is None else x for x, y in zip(held.rest, self.static, strict=True)]
        for i, x in zip(self.where, inputs, strict=False):
            leaves[i] = x
        return self.treedef.unflatten(leaves)

    def built(self, inputs: Inputs, held: Held) -> tuple[Any, Any]:
        """-> the mapped integrand and the mapped interval."""
        return self.ops.build(*self.inputs(inputs, held), safe=True)


class AbstractQuadratureAdjoint(quadax.AbstractAdjoint):
    """An adjoint that leaves Quadax's value and statistics as they are, and brings a derivative of its own."""

    @abc.abstractmethod
    def kept(self, ops: Any, state: dict) -> PyTree:
        """What of the loop's last state the derivative needs, as arrays."""

    @abc.abstractmethod
    def derivative(
        self, call: Call, inputs: Inputs, held: Held, moving: tuple[int, ...], tangents: list[Array], like: Array
    ) -> Array:
        """The derivative of the value along `tangents` of the inputs at the places `moving`."""

    def quadrature(self, ops, interval, args, consts, kwargs, opts):
        return _solved((interval, args, consts), (opts, kwargs), ops=ops, adjoint=self)


@eqx.filter_custom_jvp
def _solved(inputs, options, *, ops, adjoint):
    del adjoint
    (opts, kwargs), (fn, interval) = options, ops.build(*inputs)
    return ops.solve(fn, interval, kwargs, **opts)


@_solved.def_jvp
def _solved_jvp(primals, tangents, *, ops, adjoint):
    value, state = _solved(primals[0], primals[1], ops=ops, adjoint=adjoint)
    call = Call(ops, primals[0], primals[1])
    inputs, held = call.split(primals[0], primals[1], adjoint.kept(ops, state))
    known = _aligned(primals[0], tangents[0])
    moving = tuple(place for place, i in enumerate(call.where) if known[i] is not None)
    moved = [known[call.where[place]] for place in moving]
    if not moving:
        return (value, state), (jnp.zeros_like(value), no_tangent(state))
    tangent = adjoint.derivative(call, inputs, held, moving, moved, value)
    return (value, state), (tangent, no_tangent(state))


def _aligned(primals: PyTree, tangents: PyTree) -> list[Any]:
    """The tangents of the leaves of `primals`, None for those that do not move."""
    leaves = jax.tree.leaves(primals, is_leaf=_is_none)
    found = jax.tree.leaves(tangents, is_leaf=_is_none)
    return [t for x, t in zip(leaves, found, strict=True) if x is not None]


def _is_none(x: Any) -> bool:
    return x is None
