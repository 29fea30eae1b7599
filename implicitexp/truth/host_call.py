"""A Python function of arrays as an operation of JAX, for code that runs eagerly.

Unlike `jax.pure_callback` it calls Python directly, on the calling thread: the function may run compiled JAX code
without a deadlock, and what it raises arrives as it is, without a log. It has no lowering: under `jax.jit` it is an
error, so that whoever uses it evaluates the loss under `jax.disable_jit()`. Under vmap it runs lane by lane.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import batching
from jaxtyping import PyTree

_host_call_p = Primitive("implicitexp_host_call")
_host_call_p.multiple_results = True


def host_call(fn: Callable[..., PyTree], shapes: PyTree, *operands: PyTree) -> PyTree:
    """`fn(*operands)`, whose result has the structure, shapes and types of `shapes`. It is not differentiable.

    `fn` sees concrete arrays and closes over nothing that is traced.
    """
    leaves, treedef = jax.tree.flatten(operands)
    out_leaves, out_tree = jax.tree.flatten(shapes)

    def flat_fn(*flat):
        out = fn(*treedef.unflatten(flat))
        return [jnp.asarray(x, s.dtype).reshape(s.shape) for x, s in zip(jax.tree.leaves(out), out_leaves, strict=True)]

    out = _host_call_p.bind(
        *map(jnp.asarray, leaves), fn=flat_fn, shapes=tuple((tuple(s.shape), s.dtype) for s in out_leaves)
    )
    return out_tree.unflatten(out)


@_host_call_p.def_impl
def _impl(*operands: Any, fn: Callable, shapes: Any):
    del shapes
    return fn(*operands)


@_host_call_p.def_abstract_eval
def _abstract_eval(*operands: Any, fn: Callable, shapes: Any):
    del operands, fn
    return [ShapedArray(shape, dtype) for shape, dtype in shapes]


def _batch(operands, dims, *, fn, shapes):
    """Lane by lane. Each lane binds anew, so that a vmap around this one is a loop of loops."""
    size = next(x.shape[d] for x, d in zip(operands, dims, strict=True) if d is not None)
    lanes = []
    for i in range(size):
        one = [
            x if d is None else jax.lax.index_in_dim(x, i, d, keepdims=False)
            for x, d in zip(operands, dims, strict=True)
        ]
        lanes.append(_host_call_p.bind(*one, fn=fn, shapes=shapes))
    return [jnp.stack(outs) for outs in zip(*lanes, strict=True)], [0] * len(shapes)


batching.primitive_batchers[_host_call_p] = _batch
