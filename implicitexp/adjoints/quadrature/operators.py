"""Linear functionals of an integrand that are differentiated to any order, forwards and backwards.

A rule with its mesh held fixed is linear in the integrand: Q[g] = sum of w_i g(x_i). So is the integral itself. The derivative
by what g depends on is then the same functional of the derivative of g: dQ[g] = Q[dg . t], and its transpose Q[dg^T c]. Both are
again such functionals, of an integrand with more inputs, so that one rule is enough for all orders, and reverse mode keeps the
inputs alone: no value of the integrand, nothing of the loop that found the mesh.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from implicitexp.adjoints.implicit.linear_map import linear_map

Inputs = list[Array]  # all that an integrand depends on and that may be differentiated
Integrand = Callable[..., PyTree]  # integrand(inputs, held, where) -> tree; `where`: a node, or a block of a mesh
Functional = Callable[[Integrand, Inputs, PyTree], PyTree]  # functional(integrand, inputs, held)
Edge = Callable[[Integrand, Inputs, PyTree, Inputs], PyTree]  # edge(integrand, inputs, held, moved inputs)


def differentiable(
    functional: Functional, edge: Edge | None, integrand: Integrand, inputs: Inputs, held: PyTree
) -> PyTree:
    """`functional(integrand, inputs, held)`, with this file's rule for its derivative by `inputs`; `held` (arrays) is
    held constant. Neither function closes over anything that is traced."""

    @jax.custom_jvp
    def run(inputs, held):
        return functional(integrand, inputs, held)

    def rule(primals, tangents):
        inputs, held = primals
        inputs = [jnp.asarray(x) for x in inputs]
        moving = tuple(i for i, t in enumerate(tangents[0]) if not _is_zero(t))
        value = differentiable(functional, edge, integrand, inputs, held)
        moved = [tangents[0][i] for i in moving]
        return value, derivative(functional, edge, integrand, inputs, held, moving, moved, value)

    run.defjvp(rule, symbolic_zeros=True)
    return run(inputs, held)


def derivative(
    functional: Functional,
    edge: Edge | None,
    integrand: Integrand,
    inputs: Inputs,
    held: PyTree,
    moving: tuple[int, ...],
    tangents: Inputs,
    like: PyTree,
) -> PyTree:
    """The derivative of the functional along `tangents` of the inputs at the places `moving`; it has a transpose.

    `edge`: for a functional whose domain moves with the inputs, a function of the moved inputs whose derivative is the boundary
    term. `like`: the functional's value.
    """
    maps = Maps(functional, edge, integrand, moving, jax.tree.structure(like))
    return linear_map(maps.push, maps.pull, (inputs, held), tangents, like=like)


class Maps(NamedTuple):
    """The derivative of a functional by the inputs at the places `moving`, and its transpose."""

    functional: Functional
    edge: Edge | None
    integrand: Integrand
    moving: tuple[int, ...]
    treedef: Any  # of the value

    def push(self, residuals: tuple[Inputs, PyTree], tangents: Inputs) -> PyTree:
        inputs, held = residuals
        tangents, size = _normalized(tangents)
        along = _along(self.integrand, self.moving)
        out = differentiable(self.functional, self.edge, along, [*inputs, *tangents], held)
        if self.edge is not None:
            at = [inputs[i] for i in self.moving]
            out = jax.tree.map(jnp.add, out, jax.jvp(self._boundary(residuals), (at,), (tangents,))[1])
        return jax.tree.map(lambda x: size.astype(x.dtype) * x, out)

    def pull(self, residuals: tuple[Inputs, PyTree], cotangent: PyTree) -> Inputs:
        inputs, held = residuals
        cotangents, size = _normalized(jax.tree.leaves(cotangent))
        against = _against(self.integrand, self.moving, self.treedef)
        out = differentiable(self.functional, self.edge, against, [*inputs, *cotangents], held)
        if self.edge is not None:
            at = [inputs[i] for i in self.moving]
            more = jax.vjp(self._boundary(residuals), at)[1](self.treedef.unflatten(cotangents))[0]
            out = jax.tree.map(jnp.add, out, more)
        return [size.astype(x.dtype) * x for x in out]

    def _boundary(self, residuals: tuple[Inputs, PyTree]) -> Callable[[Inputs], PyTree]:
        inputs, held = residuals
        edge = self.edge
        assert edge is not None
        return lambda moved: edge(self.integrand, inputs, held, replaced(inputs, self.moving, moved))


class Flat:
    """A pytree of the shapes of `like` as a vector, of its numbers' type or of `dtype` where that is wider."""

    def __init__(self, like: PyTree, dtype: Any):
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), like)
        vector, self._unravel = ravel_pytree(zeros)
        self._own, self._wide = vector.dtype, jnp.result_type(vector.dtype, dtype)

    def vector(self, tree: PyTree) -> Array:
        return ravel_pytree(tree)[0].astype(self._wide)

    def tree(self, vector: Array) -> PyTree:
        return self._unravel(vector.astype(self._own))


def _along(integrand: Integrand, moving: tuple[int, ...]) -> Integrand:
    """The integrand's tangent; the tangents of the moving inputs are further inputs."""

    def tangent(inputs, held, where):
        inputs, tangents = inputs[: -len(moving)], inputs[-len(moving) :]
        at = [inputs[i] for i in moving]
        return jax.jvp(lambda moved: integrand(replaced(inputs, moving, moved), held, where), (at,), (tangents,))[1]

    return tangent


def _against(integrand: Integrand, moving: tuple[int, ...], treedef: Any) -> Integrand:
    """The integrand's cotangent at the moving inputs; that of its value is a further input."""

    def cotangent(inputs, held, where):
        inputs, cotangent = inputs[: -treedef.num_leaves], inputs[-treedef.num_leaves :]
        at = [inputs[i] for i in moving]
        _, pullback = jax.vjp(lambda moved: integrand(replaced(inputs, moving, moved), held, where), at)
        return pullback(treedef.unflatten(cotangent))[0]

    return cotangent


def replaced(inputs: Inputs, moving: tuple[int, ...], moved: Inputs) -> Inputs:
    """The inputs, with others at the places `moving`."""
    inputs = list(inputs)
    for i, x in zip(moving, moved, strict=True):
        inputs[i] = x
    return inputs


def _normalized(vectors: list[Array]) -> tuple[list[Array], Array]:
    """The vectors, the largest entry brought to one, and that entry: a tolerance is absolute, a derivative is linear."""
    largest = [jnp.max(jnp.abs(x), initial=0.0) for x in vectors]
    size = jax.lax.stop_gradient(jnp.max(jnp.stack(largest)))
    size = jnp.where((size > 0) & jnp.isfinite(size), size, 1)
    return [x / size.astype(x.dtype) for x in vectors], size


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, jax.custom_derivatives.SymbolicZero)
