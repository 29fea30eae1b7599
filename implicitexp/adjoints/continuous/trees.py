"""Arithmetic on pytrees that the continuous adjoints share."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

FEW = 1024  # numbers: up to here an operation on them costs its dispatch, whatever it computes


def norm(tree: PyTree) -> Array:
    """Euclidean norm over all leaves."""
    squares = [jnp.sum(jnp.abs(x) ** 2) for x in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares, jnp.zeros(())))


def normalized(cotangent: PyTree, unknowns: int = 1) -> tuple[PyTree, Array]:
    """The cotangent scaled to norm sqrt(unknowns), and the factor that undoes it (one where the cotangent is zero).

    An adjoint is linear in the cotangent, but an absolute tolerance is not: without this the accuracy of a gradient
    depends on the scale of the loss. `unknowns`: of a solver whose error test takes a root mean square, so that a large
    state is not solved less accurately than a small one.
    """
    largest = jnp.max(jnp.stack([jnp.zeros(()), *(jnp.max(jnp.abs(x), initial=0) for x in jax.tree.leaves(cotangent))]))
    largest = jnp.where(largest > 0, largest, jnp.ones_like(largest))  # first, since squares of small numbers vanish
    size = largest * norm(scaled(cotangent, 1 / largest)) / max(unknowns, 1) ** 0.5
    size = jnp.where(size > 0, size, jnp.ones_like(size))
    return jax.tree.map(lambda c: c / size.astype(c.dtype), cotangent), size


def scaled(tree: PyTree, factor: Array) -> PyTree:
    return jax.tree.map(lambda x: x * factor.astype(x.dtype), tree)


def added(a: PyTree, b: PyTree) -> PyTree:
    return jax.tree.map(jnp.add, a, b)


def chosen(condition: Array, a: PyTree, b: PyTree) -> PyTree:
    """a where the condition holds, else b, leaf by leaf."""
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def dot(a: PyTree, b: PyTree) -> Array:
    """The sum of products over all leaves: its real part, which is how JAX pairs a cotangent with a tangent."""
    return sum(jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum(x * y).real, a, b)), jnp.zeros(()))


def few(tree: PyTree) -> bool:
    """Whether it is so small that an operation on it costs its dispatch."""
    return count(tree) <= FEW


def mapped(fn: Callable, xs: Array, is_small: bool) -> PyTree:
    """fn over the leading axis; one by one where that is little: XLA compiles a loop with little in it into a single kernel."""
    return jax.lax.map(fn, xs) if is_small else jax.vmap(fn)(xs)


def count(tree: PyTree) -> int:
    """How many numbers."""
    return sum(x.size for x in jax.tree.leaves(tree))


class Packing(eqx.Module):
    """A tree of few numbers of one kind as one vector: a solver has an operation, and the compiler a kernel, for each leaf of its
    state in each of its lines. Another tree stays as it is."""

    treedef: Any = eqx.field(static=True)
    shapes: tuple[tuple[int, ...], ...] = eqx.field(static=True)
    used: bool = eqx.field(static=True)

    @classmethod
    def of(cls, like: PyTree, allowed: bool = True) -> "Packing":
        leaves, treedef = jax.tree.flatten(like)
        fits = len(leaves) > 1 and len({x.dtype for x in leaves}) == 1 and few(like)
        return cls(treedef, tuple(x.shape for x in leaves), allowed and fits)

    def pack(self, tree: PyTree) -> PyTree:
        return jnp.concatenate([jnp.ravel(x) for x in jax.tree.leaves(tree)]) if self.used else tree

    def unpack(self, packed: PyTree) -> PyTree:
        if not self.used:
            return packed
        cuts = itertools.pairwise(itertools.accumulate(map(math.prod, self.shapes), initial=0))
        parts = [packed[a:b].reshape(shape) for (a, b), shape in zip(cuts, self.shapes, strict=True)]
        return self.treedef.unflatten(parts)

    def field(self, field: Callable) -> Callable:
        """(s, tree) -> its derivative, as a function of what is packed."""
        return (lambda s, packed: self.pack(field(s, self.unpack(packed)))) if self.used else field

    def norm(self, norm: Callable[[PyTree], Any]) -> Callable[[PyTree], Any]:
        """The norm of a tree, of what is packed."""
        return (lambda packed: norm(self.unpack(packed))) if self.used else norm


def largest_of(first: Callable[[PyTree], Any], others: Callable[[PyTree], Any]) -> Callable[[PyTree], Any]:
    """The norm of a tuple that is the largest norm of its parts: a part with many unknowns hides no small one."""

    def of_parts(parts: tuple) -> Any:
        sizes = [first(parts[0]), *(others(part) for part in parts[1:] if jax.tree.leaves(part))]
        return jnp.max(jnp.stack(sizes)) if len(sizes) > 1 else sizes[0]

    return of_parts
