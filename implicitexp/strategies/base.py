"""What a gradient strategy is: for each kind of equation a cell, that is a value with its own derivative rule.

A cell sees a `Call`: an equation whose function has been closure converted (everything that it holds or closes over is
an array leaf), its arguments and its solver. A `Split` says which leaves are being differentiated.
"""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from implicitexp.adjoints.continuous.trees import norm as norm
from implicitexp.adjoints.continuous.trees import normalized as normalized
from implicitexp.adjoints.continuous.trees import scaled as scaled
from implicitexp.configuration.words import KIND_WORDS as KIND_WORDS
from implicitexp.equations import Stats
from implicitexp.errors import Unsupported
from implicitexp.solvers.base import AbstractSolver, Loop

MAX_PARAMETERS = 200  # `forward` and `finite_difference` cost a solve a parameter: above this they need `directions`


class Call(eqx.Module):
    """One solve to be done: `equation` with converted function, `args`, and the solver with its numbers."""

    equation: Any
    args: PyTree
    solver: Any

    def run(self, loop: Loop = Loop()) -> tuple[PyTree, Stats]:
        return self.solver.run(self.equation, self.args, loop)


DIFFERENTIATED = {
    "root": ("fn",),
    "fixed_point": ("fn",),
    "ode": ("field", "y0", "t0", "t1", "ts"),
    "integral": ("integrand", "lower", "upper", "breaks"),
}


def differentiable(call: Call) -> list[bool]:
    """For each leaf of the call, whether it can be differentiated: array leaves of the function, args, and for an ODE
    y0, t0, t1, ts, for an integral its limits and breaks. A starting guess, bounds, and the numbers of a solver are not."""
    names = DIFFERENTIATED[call.equation.kind]

    def one(path, leaf):
        part, name = path[0].name, getattr(path[1], "name", None) if len(path) > 1 else None
        return bool(eqx.is_inexact_array(leaf)) and (part == "args" or (part == "equation" and name in names))

    return [one(path, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(call)]


class Split(eqx.Module):
    """A call, cut into the leaves that are being differentiated (`theta`) and the rest."""

    theta: list[Array]
    rest: PyTree
    treedef: Any = eqx.field(static=True)
    where: tuple[int, ...] = eqx.field(static=True)

    @classmethod
    def of(cls, call: Call, where: tuple[int, ...]) -> "Split":
        """`where`: indices into the flattened call."""
        leaves, treedef = jax.tree.flatten(call)
        theta = [leaves[i] for i in where]
        rest = [None if i in where else x for i, x in enumerate(leaves)]
        return cls(theta, rest, treedef, where)

    def call(self, theta: list[Array] | None = None) -> Call:
        """The call, with other values of theta if given."""
        leaves = list(self.rest)
        for i, value in zip(self.where, self.theta if theta is None else theta, strict=True):
            leaves[i] = value
        return self.treedef.unflatten(leaves)


class Backward(eqx.Module):
    """What the backward solve says of itself: whether it converged, its steps, its relative residual."""

    converged: Array
    steps: Array
    residual: Array

    @classmethod
    def exact(cls) -> "Backward":
        """For a pullback that solves nothing."""
        return cls(jnp.array(True), jnp.array(0, jnp.int32), jnp.zeros(()))


class AbstractCell(eqx.Module):
    """One cell of the table: how the solution of one kind of equation is computed and differentiated.

    `linearize` solves and keeps what the two linear maps need; `push` is the Jacobian times a tangent of theta, `pull`
    its transpose times a cotangent of the value.
    """

    @abc.abstractmethod
    def linearize(self, split: Split) -> tuple[PyTree, Stats, PyTree]:
        """-> value, statistics, residuals (a pytree; what is not an array in it is static)."""

    @abc.abstractmethod
    def push(self, residuals: PyTree, tangents: list[Array]) -> PyTree:
        """-> tangent of the value."""

    @abc.abstractmethod
    def pull(self, residuals: PyTree, cotangent: PyTree) -> tuple[list[Array], Backward]:
        """-> cotangents of theta, and what is known of the backward solve."""

    def check_reverse(self, numbers: int) -> None:  # noqa: B027 (most cells refuse nothing)
        """Called when `pull` is asked for, before it is traced, for a theta of that many numbers.

        **Raises** `Unsupported` where reverse mode is refused.
        """


class AbstractStrategy(eqx.Module):
    """A gradient strategy: how to differentiate, as a value."""

    per_parameter: ClassVar[bool] = False  # whether it costs a solve, or a tangent, for each number
    exact: ClassVar[bool] = True  # False: truncated, or unstable for some problems: not to be held against a problem

    @abc.abstractmethod
    def cell(self, kind: str, solver: AbstractSolver) -> AbstractCell:
        """The cell for this kind of equation. Raises `Unsupported`, naming what works, where there is none."""

    def drawn(self, key: PRNGKeyArray) -> "AbstractStrategy":
        """For one update: with the random choices of this key, if it makes any."""
        del key
        return self

    def plain(self) -> "AbstractStrategy":
        """Itself, or what it is another name for."""
        return self


def refuse(name: str, kind: str, instead: str) -> Unsupported:
    """The error for a cell that is not defined."""
    return Unsupported(f"{name} is not defined for {KIND_WORDS[kind]}; use {instead}.")


def check_solver(name: str, solver: AbstractSolver) -> None:
    """**Raises** `Unsupported` where the strategy of that name is not defined for this method."""
    if name in solver.refuses:
        raise Unsupported(f"{name} is not defined for {type(solver).__name__}: {solver.refuses[name]}.")
