"""What all solvers share: tolerances by precision, and the loops that a strategy can ask a solver to run in."""

import abc
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from implicitexp.equations import Stats

DEFAULT_TOLERANCE = {"float32": 1e-5, "float64": 1e-8}  # relative and absolute: about eps^(3/4) and sqrt(eps)

NotConverged = Literal["stop", "keep"]


class Loop(eqx.Module):
    """How the solver's loop is built, which decides how it can be differentiated.

    `plain` is a while loop: the fastest, differentiable in forward mode only. `checkpointed` can be backpropagated
    through, keeping `checkpoints` states (None: the logarithm of the largest number of steps) and recomputing others.
    `adjoint`, in place of either: an object of the library that solves, or of `implicitexp.adjoints`, by which it builds
    its loop.
    """

    kind: Literal["plain", "checkpointed"] = eqx.field(static=True, default="plain")
    checkpoints: int | None = eqx.field(static=True, default=None)
    adjoint: Any = None


PLAIN = Loop()


class AbstractSolver(eqx.Module):
    """A configured solver for one kind of equation."""

    kind: eqx.AbstractClassVar[str]
    when_not_converged: eqx.AbstractVar[str]
    refuses: ClassVar[Mapping[str, str]] = {}  # strategies that are not defined for this method: why, and what is

    @abc.abstractmethod
    def run(self, equation: Any, args: PyTree, loop: Loop) -> tuple[PyTree, Stats]:
        """Solve. The value may be garbage where `Stats.converged` is false: whoever calls this puts NaN there."""

    @abc.abstractmethod
    def noise(self, like: PyTree) -> Any:
        """The relative error that a solve in the precision of `like` leaves: its tolerance; 0 if it has none."""

    def check(self, equation: Any, args: PyTree) -> None:
        """Called before an equation is solved. **Raises** `Unsupported` for one that this method cannot solve."""
        del equation, args

    def kept_steps(self, before: Any, after: Any) -> "AbstractSolver":
        """The solver that takes, for the equation `after`, as many steps as this one takes for `before`, where that is
        decided before it starts; itself where it is not."""
        del before, after
        return self


def resolve_tolerance(value: Any, like: PyTree) -> Any:
    """`value`, or the default of the precision in which `like` is computed (float16 counts as float32)."""
    if value is not None:
        return value
    return DEFAULT_TOLERANCE["float64" if dtype_of(like) == jnp.float64 else "float32"]


def dtype_of(tree: PyTree) -> Any:
    """The real floating point type that the inexact leaves of `tree` are computed in."""
    leaves = [x for x in jax.tree.leaves(tree) if eqx.is_inexact_array(x) or isinstance(x, jax.ShapeDtypeStruct)]
    if not leaves:
        return jnp.zeros(()).dtype
    return jnp.finfo(jnp.result_type(*(x.dtype for x in leaves))).dtype


def all_finite(tree: PyTree) -> Array:
    """Whether every number of `tree` is finite (true for a tree without numbers)."""
    finite = [jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(tree) if eqx.is_inexact_array(x)]
    return jnp.all(jnp.stack(finite)) if finite else jnp.array(True)


def stats(converged: Array, steps: Any, value: PyTree) -> Stats:
    """Statistics of a solve; a value that is not finite never counts as converged."""
    return Stats(converged=jnp.asarray(converged) & all_finite(value), steps=jnp.asarray(steps, jnp.int32))


Tolerance = float | Array | None
