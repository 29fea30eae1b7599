"""Float64 inside a process of any precision, and the proof that nothing in a loss falls back to less.

The ground truth enters `jax.enable_x64` and calls the user's loss with everything in float64. A constant of type
float32 (`jnp.float32(0.1)`), or an `.astype(jnp.float32)`, would make a reference that claims twelve digits and has
seven: it is found here by tracing the loss, before anything is computed.
"""

from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.extend.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from implicitexp import solving, tracing
from implicitexp.equations import AbstractEquation, Integral, Solution
from implicitexp.errors import ConfigError
from implicitexp.strategies.base import KIND_WORDS
from implicitexp.truth import mixed_precision as mixed_precision  # repairs JAX when it is imported

REMEDY = (
    "Write constants as Python numbers, keep data in array fields of the problem, and take a dtype from the inputs "
    "(jnp.zeros_like, x.dtype), so that the loss computes in the precision that it is given."
)


class NoReference(ConfigError):
    """There is no ground truth, and the message says why and what would give one."""


def in_float64(tree: PyTree) -> PyTree:
    """Every inexact leaf, Python floats included, as a float64 (or complex128) array. Inside `enable_x64` only."""

    def one(x):
        if isinstance(x, float | np.floating):
            return jnp.asarray(x, jnp.float64)
        if eqx.is_inexact_array(x) or (isinstance(x, np.ndarray) and np.issubdtype(x.dtype, np.inexact)):
            complex_valued = jnp.issubdtype(x.dtype, jnp.complexfloating)
            return jnp.asarray(x, jnp.complex128 if complex_valued else jnp.float64)
        return x

    return jax.tree.map(one, tree)


def flat(tree: PyTree) -> np.ndarray:
    """All numbers of a gradient in `ravel_pytree`'s order, as float64 on the host."""
    leaves = [np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)]
    return np.concatenate(leaves) if leaves else np.zeros(0)


def unflat(vector: np.ndarray, like: PyTree) -> PyTree:
    """The inverse of `flat`: float64 numpy leaves of the structure and shapes of `like`."""
    leaves, treedef = jax.tree.flatten(like)
    ends = np.cumsum([np.size(x) for x in leaves])[:-1]
    parts = np.split(vector, ends) if leaves else []
    return treedef.unflatten([part.reshape(np.shape(x)) for part, x in zip(parts, leaves, strict=True)])


def scalar(loss: Any) -> Array:
    """The number to differentiate, of a loss that returns it alone or beside a dictionary of metrics."""
    return loss[0] if isinstance(loss, tuple) else loss


def assert_float64(problem: Any, params: PyTree, batch: PyTree) -> None:
    """Trace the loss at float64 inputs, and refuse if an equation's inputs, outputs or function, or the loss itself,
    are of another type. Raises `NoReference`, which names the leaf. Nothing is computed."""

    def traced(params, batch):
        return scalar(problem.loss(params, batch, _Inspector()))

    try:
        closed = jax.make_jaxpr(traced)(params, batch)
    except NoReference:
        raise
    except (TypeError, ConfigError) as error:
        raise NoReference(f"The loss cannot be traced in float64: {_first_lines(error)} {REMEDY}") from error
    out: Any = closed.out_avals[0]
    if out.dtype != jnp.float64:
        raise NoReference(f"The loss is {out.dtype.name} when everything that goes into it is float64. {REMEDY}")
    _refuse_pinned(_needed(closed.jaxpr), "the loss")


class _Inspector:
    """A `solve` that looks at the types of what it is asked for and returns zeros of the right shape."""

    def __call__(self, equation: AbstractEquation, args: PyTree = None, *, solver: Any = None) -> Solution:
        del solver
        equation, args = solving.canonical(equation, args)
        where = KIND_WORDS[equation.kind]
        function = next(name for name in ("fn", "field", "integrand") if name in equation.__dataclass_fields__)
        with solving.inside_equation():
            program = jax.make_jaxpr(getattr(equation, function))(*_example(equation, args)).jaxpr
        _refuse_leaves(args, "args", where)
        for name in equation.__dataclass_fields__:
            label = f"something that {name} holds or closes over, " if name in (function, "breaks") else name
            _refuse_leaves(getattr(equation, name), label, where)
        value = tracing.shape_of_value(equation, args)
        _refuse_leaves(value, "the value", where)
        _refuse_pinned(program.eqns, f"{function} of {where}")
        if isinstance(equation, Integral) and equation.breaks is not None:
            _refuse_pinned(jax.make_jaxpr(equation.breaks)(args).jaxpr.eqns, f"breaks of {where}")
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), value)
        return Solution(zeros, {"converged": jnp.array(True), "steps": jnp.array(0, jnp.int32)})


def _example(equation: Any, args: PyTree) -> tuple[Any, ...]:
    """What the equation's function is called with."""
    if equation.kind == "ode":
        return equation.t0, equation.y0, args
    return (equation.lower if equation.kind == "integral" else equation.y0), args


def _refuse_leaves(tree: PyTree, name: str, where: str) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        dtype = getattr(leaf, "dtype", None)
        if dtype is not None and _is_narrow(dtype):
            shape = list(np.shape(leaf))
            label = name + (jax.tree_util.keystr(path) if not name.endswith(" ") else "")
            raise NoReference(f"{label.strip()} of {where} (shape {shape}) is {dtype.name}, not float64. {REMEDY}")


def _refuse_pinned(equations: Any, where: str) -> None:
    for name, dtype in _narrow_operations(equations):
        raise NoReference(f"{where} computes {name!r} in {dtype} when its inputs are float64. {REMEDY}")


def _is_narrow(dtype: Any) -> bool:
    return jnp.issubdtype(dtype, jnp.inexact) and dtype not in (jnp.float64, jnp.complex128)


def _narrow_operations(equations: Any) -> Iterator[tuple[str, str]]:
    """(primitive, type) of every operation with a floating point result below float64, inner programs included."""
    for eqn in equations:
        inner = [j for p in eqn.params.values() for j in _programs(p)]
        for program in inner:
            yield from _narrow_operations(program.eqns)
        if not inner:
            for out in eqn.outvars:
                dtype = getattr(out.aval, "dtype", None)
                if dtype is not None and not jnp.issubdtype(dtype, jax.dtypes.extended) and _is_narrow(dtype):
                    yield eqn.primitive.name, dtype.name


def _programs(parameter: Any) -> Iterator[Any]:
    """The jaxprs in one parameter of an operation (a loop's body, the branches of a condition)."""
    if isinstance(parameter, jax.extend.core.ClosedJaxpr):  # pyright: ignore[reportPrivateImportUsage]  its stub is behind
        yield parameter.jaxpr
    elif isinstance(parameter, jax.extend.core.Jaxpr):
        yield parameter
    elif isinstance(parameter, tuple | list):
        for item in parameter:
            yield from _programs(item)


def _needed(jaxpr: Any) -> list[Any]:
    """The operations that the result depends on: a metric beside the loss may be of any type."""
    wanted = {v for v in jaxpr.outvars if not isinstance(v, jax.extend.core.Literal)}
    needed = []
    for eqn in reversed(jaxpr.eqns):
        if any(v in wanted for v in eqn.outvars):
            needed.append(eqn)
            wanted |= {v for v in eqn.invars if not isinstance(v, jax.extend.core.Literal)}
    return needed[::-1]


def _first_lines(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
