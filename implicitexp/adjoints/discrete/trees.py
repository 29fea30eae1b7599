"""Sums and products of pytrees, None being zero."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree


def add(x: PyTree | None, y: PyTree | None) -> Any:
    """x + y, None being zero."""
    if x is None or y is None:
        return y if x is None else x
    return jax.tree.map(jnp.add, x, y)


def inner(x: PyTree, y: PyTree) -> Array:
    """<x, y>."""
    return sum(jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum(x * y), x, y)))  # pyright: ignore[reportReturnType]


def combination(start: PyTree | None, weights: Any, trees: list[PyTree]) -> PyTree:
    """start + sum of weight * tree, over the weights that are not zero."""
    terms = [(w, tree) for w, tree in zip(weights, trees, strict=True) if w != 0]
    if not terms:
        return jax.tree.map(jnp.zeros_like, trees[0]) if start is None else start
    first = jax.tree.map(lambda x: terms[0][0] * x, terms[0][1])
    total = add(start, first)
    for weight, tree in terms[1:]:
        total = jax.tree.map(lambda s, x, w=weight: s + w * x, total, tree)
    return total


def contraction(weights: Array, stacked: PyTree) -> PyTree:
    """sum of weights[j] * tree[j] along the leading axis. A product of matrices, in full precision on an accelerator too: as a
    sum of products XLA's CPU backend is seven times slower under `vmap`."""

    def one(x):
        w = weights.astype(jnp.finfo(x.dtype).dtype)
        return jnp.tensordot(w, x, axes=1, precision=jax.lax.Precision.HIGHEST)

    return jax.tree.map(one, stacked)


def stacked(trees: list[PyTree]) -> PyTree:
    return jax.tree.map(lambda *x: jnp.stack(x), *trees)


def size(tree: PyTree) -> int:
    """How many numbers."""
    return sum(x.size for x in jax.tree.leaves(tree))
