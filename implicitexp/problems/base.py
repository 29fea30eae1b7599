"""What a problem is: a loss over parameters, which calls solvers through `solve`."""

import abc
from typing import TYPE_CHECKING, Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray, PyTree, Scalar

from implicitexp.solving import Solve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Params = PyTree[Array]
Batch = PyTree
Memory = PyTree[Array]
Loss = Scalar | tuple[Scalar, dict[str, Scalar]] | tuple[Scalar, dict[str, Scalar], PyTree]


class AbstractProblem(eqx.Module):
    """A loss over parameters, which calls solvers through `solve`.

    Fields that are Python floats are numbers: they may be traced arrays when `loss` runs. Fields that are int, str or
    bool are choices: declare them with `eqx.field(static=True)`. Array fields are data. Everything runs in the
    precision of its inputs: the ground truth calls `loss` with all of them in float64.
    """

    trap: ClassVar[bool] = False  # True: some strategies are wrong for it by design, and its docstring says which

    @abc.abstractmethod
    def init(self, key: PRNGKeyArray) -> Params:
        """The parameters to start from: a pytree of floating point arrays."""

    @abc.abstractmethod
    def loss(self, params: Params, batch: Batch, solve: Solve) -> Loss:
        """The number to minimize, or (number, dictionary of further numbers to log), or these and what `remember` takes.

        `solve(equation, args) -> Solution(value, stats)` has solver and gradient strategy bound. It is called inside
        `jax.jit`: no Python `if` on values.
        """

    def batch(self, key: PRNGKeyArray) -> Batch:
        """The data of one update, drawn with `key`; None: the whole problem at every update."""
        return None

    def memory(self) -> Memory | None:
        """What is carried from update to update beside the parameters, before the first one; None: nothing.

        With a memory, `recall` adds to a minibatch what is remembered of it, `loss` returns (number, metrics, found), and
        `remember` puts what it found into the memory. It is never differentiated: it is for starting guesses, on which
        no solution depends.
        """
        return None

    def recall(self, memory: Memory, batch: Batch) -> Batch:
        """The minibatch with what is remembered of it. Runs inside `jit`, as `remember` does."""
        return batch

    def remember(self, memory: Memory, batch: Batch, found: PyTree) -> Memory:
        """The memory after an update, of the same shapes; an update that fails leaves it as it was."""
        return memory

    def exact_loss(self, params: Params, batch: Batch) -> Scalar | None:
        """The loss in closed form, differentiable by `jax.grad`; None where there is none."""
        return None

    def exact_gradient(self, params: Params, batch: Batch) -> Params | None:
        """The gradient in closed form, of the structure of `params`; None where it does not hold."""
        return None

    def evaluate(self, params: Params, solve: Solve) -> dict[str, Scalar]:
        """Numbers that say how good the answer is (test accuracy and the like), at each check. Runs inside `jit`."""
        return {}

    def figure(self, params: Params, solve: Solve) -> "Figure | None":
        """A picture of the answer, with units; None: no picture."""
        return None


def as_number(value: Any) -> Any:
    """Integers become floats, so that they are numbers of the experiment and not choices; arrays stay as they are."""
    return float(value) if isinstance(value, int | float | np.number) and not isinstance(value, bool) else value


def number(default: float) -> Any:
    """A field that holds a number."""
    return eqx.field(converter=as_number, default=default)


def array(values: Any) -> Array:
    """Data as an array in the default floating point type of the process."""
    return jnp.asarray(values, jnp.result_type(float))


def one_newton_step(residual: Any, solution: Array) -> Array:
    """`solution`, with the derivatives that the implicit function theorem gives it.

    `residual(z)` may depend on differentiated values, `solution` is a root of it (found by any means): the value is
    z - f(z) / f'(z), whose derivative is -(∂f) / f'(z) where f(z) = 0. For scalars, elementwise.
    """
    z = jax.lax.stop_gradient(solution)
    value, slope = jax.jvp(residual, (z,), (jnp.ones_like(z),))
    return z - value / jax.lax.stop_gradient(slope)


def one_axes(title: str, xlabel: str, ylabel: str) -> "tuple[Figure, Axes]":
    """A figure with one pair of labelled axes. Not pyplot: it holds state, and opens windows."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    axes.grid(color="0.9")
    return figure, axes
