"""Strategies that are an object of `implicitexp.adjoints`, which the library that solves takes in place of its own."""

import abc
from typing import Any

import equinox as eqx
from jaxtyping import Array, PyTree

from implicitexp.solvers.base import Loop

from .base import AbstractCell, Split, refuse
from .of_kinds import AbstractOfKinds
from .unroll import UnrollCell, forward_through


class AbstractDropIn(AbstractOfKinds):
    """`adjoint` builds the object."""

    @abc.abstractmethod
    def adjoint(self) -> Any:
        """What `diffrax.diffeqsolve`, `optimistix.root_find` or `optimistix.fixed_point` takes as `adjoint`."""

    def forward(self, loop: Loop) -> Loop | None:
        """The loop whose tangents these are; None where forward mode is not defined."""
        return loop

    def defined(self, kind, solver) -> AbstractCell:
        loop = Loop(adjoint=self.adjoint())
        return DropInCell(loop, self.forward(loop), self.name, kind)


class DropInCell(UnrollCell):
    """The derivative that the library makes of its solve with this adjoint; what fails in it is NaN."""

    tangents: Loop | None
    name: str = eqx.field(static=True)
    kind: str = eqx.field(static=True)

    def push(self, residuals, tangents: list[Array]) -> PyTree:
        if self.tangents is None:
            raise refuse(f"Forward mode of {self.name}", self.kind, "unroll or forward")
        split: Split = residuals[0]
        loop = self.tangents
        return forward_through(lambda theta: split.call(theta).run(loop)[0], split.theta, tangents)
