"""A linear map that carries its own transpose, for forward mode, reverse mode and vmap alike.

JAX lets a function have a custom jvp or a custom vjp, not both. A strategy needs both: the loss is differentiated in
reverse, while Newton's method around a nested solve, and every witness in forward mode, push tangents through it. So
the solution mapping is a `custom_jvp`, and its tangent map is this primitive, whose transpose is given and not derived.
(`jax.custom_derivatives.linear_call` is the same idea without a rule for vmap.)
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import PyTree

_linear_map_p = Primitive("implicitexp_linear_map")
_linear_map_p.multiple_results = True


def linear_map(
    push: Callable[[PyTree, PyTree], PyTree],
    pull: Callable[[PyTree, PyTree], PyTree],
    residuals: PyTree,
    tangents: PyTree,
    like: PyTree,
    check: Callable[[], None] = lambda: None,
) -> PyTree:
    """`push(residuals, tangents)`, a map linear in `tangents`, whose transpose is `pull(residuals, cotangents)`.

    Both functions close over nothing that is traced: whatever they need is in `residuals` (a pytree of arrays). `like`
    has the shapes of the result: neither function is traced before it is needed, since each may hold a whole solve.
    The transpose is what `pull` says: it may compute more than `push` needs (a statistic of the backward solve as
    the cotangent of an input that `push` ignores). `check` is called when the transpose is asked for, and may raise.
    """
    flat_residuals, residuals_tree = jax.tree.flatten(residuals)
    flat_tangents, tangents_tree = jax.tree.flatten(tangents)
    flat_like, out_tree = jax.tree.flatten(like)

    def flat_push(*operands):
        head, tail = operands[: len(flat_residuals)], operands[len(flat_residuals) :]
        return jax.tree.leaves(push(residuals_tree.unflatten(head), tangents_tree.unflatten(tail)))

    def flat_pull(*operands):
        head, tail = operands[: len(flat_residuals)], operands[len(flat_residuals) :]
        return jax.tree.leaves(pull(residuals_tree.unflatten(head), out_tree.unflatten(tail)))

    out = _linear_map_p.bind(
        *map(jnp.asarray, flat_residuals),
        *map(jnp.asarray, flat_tangents),
        push=flat_push,
        pull=flat_pull,
        count=len(flat_residuals),
        shapes=tuple((jnp.shape(x), jnp.result_type(x)) for x in flat_like),
        check=check,
    )
    return out_tree.unflatten(out)


@_linear_map_p.def_impl
def _impl(*operands: Any, push: Callable, **_: Any):
    return push(*map(jnp.asarray, operands))  # eager jax.grad(f)(0.1) hands over the number itself


@_linear_map_p.def_abstract_eval
def _abstract_eval(*operands: Any, shapes: tuple, **_: Any):
    return [jax.core.ShapedArray(shape, dtype) for shape, dtype in shapes]


def _jvp(primals, tangents, *, push, count, **rest):
    """Second order: the map itself moves with its residuals, which is ordinary forward mode through `push`."""
    out = _linear_map_p.bind(*primals, push=push, count=count, **rest)
    linear = [ad.instantiate_zeros(t) for t in tangents[count:]]
    out_tangents = _linear_map_p.bind(*primals[:count], *linear, push=push, count=count, **rest)
    if any(type(t) is not ad.Zero for t in tangents[:count]):
        head = [ad.instantiate_zeros(t) for t in tangents[:count]]
        moved = jax.jvp(lambda *r: push(*r, *primals[count:]), tuple(primals[:count]), tuple(head))[1]
        out_tangents = [a + b for a, b in zip(out_tangents, moved, strict=True)]
    return out, out_tangents


def _transpose(cotangents, *operands, push, pull, count, shapes, check):
    del shapes
    check()
    residuals = list(operands[:count])
    moving = tuple((x.aval.shape, x.aval.dtype) for x in operands[count:])
    instantiated = [ad.instantiate_zeros(c) for c in cotangents]
    out = _linear_map_p.bind(*residuals, *instantiated, push=pull, pull=push, count=count, shapes=moving, check=check)
    return [None] * count + list(out)


def _batch(operands, dims, *, push, pull, count, shapes, check):
    """Every tangent gets the batch axis (None: it has none). Broadcasting is linear, so that an input shared by all
    lanes, such as the tap, receives the sum of its cotangents from JAX's own rule."""
    size = next(x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None)
    moved = [
        jnp.moveaxis(x, d, 0) if d is not None else jnp.broadcast_to(x, (size, *x.shape)) if i >= count else x
        for i, (x, d) in enumerate(zip(operands, dims, strict=True))
    ]
    residual_axes = tuple(None if d is None else 0 for d in dims[:count])

    def over_lanes(f):
        def mapped(*xs):
            return jax.vmap(f, in_axes=residual_axes + (0,) * (len(xs) - count))(*xs)

        return mapped

    lanes = tuple(((size, *shape), dtype) for shape, dtype in shapes)
    out = _linear_map_p.bind(
        *moved, push=over_lanes(push), pull=over_lanes(pull), count=count, shapes=lanes, check=check
    )
    return out, [0] * len(out)


ad.primitive_jvps[_linear_map_p] = _jvp
ad.primitive_transposes[_linear_map_p] = _transpose
batching.primitive_batchers[_linear_map_p] = _batch
mlir.register_lowering(_linear_map_p, mlir.lower_fun(_impl, multiple_results=True))
