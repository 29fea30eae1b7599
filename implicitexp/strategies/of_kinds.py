"""What strategies share that are defined for some kinds of equation only, and the names of single cells of the table."""

import abc
from typing import Any, ClassVar

import equinox as eqx
from jaxtyping import PRNGKeyArray

from implicitexp.adjoints.implicit.iterated import PreconditionerName
from implicitexp.errors import OtherKind
from implicitexp.solvers.base import AbstractSolver

from .adjoint import Adjoint
from .base import AbstractCell, AbstractStrategy, check_solver, refuse
from .forward import AbstractDirectional, Forward
from .implicit import Implicit
from .unroll import Unroll


class AbstractOfKinds(AbstractStrategy):
    """`name` is the option's, `kinds` are the equations that it is for."""

    name: eqx.AbstractClassVar[str]
    kinds: eqx.AbstractClassVar[tuple[str, ...]]
    instead: ClassVar[str] = "implicit or adjoint"  # for equations of another kind

    def cell(self, kind: str, solver: AbstractSolver) -> AbstractCell:
        check_solver(self.name, solver)
        if kind not in self.kinds:
            raise OtherKind(str(refuse(self.name, kind, self.instead)))
        return self.defined(kind, solver)

    @abc.abstractmethod
    def defined(self, kind: str, solver: AbstractSolver) -> AbstractCell:
        """The cell for one of `kinds`."""


class AbstractNamed(AbstractOfKinds):
    """Another name for what a strategy of the table does for these kinds."""

    def defined(self, kind, solver) -> AbstractCell:
        return self.plain().cell(kind, solver)

    @abc.abstractmethod
    def plain(self) -> AbstractStrategy: ...


class Gauss(AbstractNamed):
    """`adjoint` of an ODE: lambda backwards along the forward steps, the parameters' part by Gauss-Legendre nodes.

    `rtol`, `atol`, `max_steps`: of the backward solve (None: the forward solver's).

    Source: A. C. Hindmarsh and R. Serban, CVODES; C. Rackauckas et al. 2020, arXiv 2001.04385, sensealg GaussAdjoint.
    """

    rtol: Any = None
    atol: Any = None
    max_steps: int | None = eqx.field(static=True, default=None)
    name: ClassVar[str] = "gauss"
    kinds: ClassVar[tuple[str, ...]] = ("ode",)

    def plain(self):
        return Adjoint(self.rtol, self.atol, self.max_steps)


class Backsolve(AbstractNamed):
    """`adjoint` of an ODE with `method=backsolve`: the state is solved backwards too. Unstable where the ODE is stable.

    `rtol`, `atol`, `max_steps`: of the backward solve (None: the forward solver's).

    Source: R. T. Q. Chen et al. 2018, "Neural Ordinary Differential Equations", appendix B.
    """

    rtol: Any = None
    atol: Any = None
    max_steps: int | None = eqx.field(static=True, default=None)
    name: ClassVar[str] = "backsolve"
    kinds: ClassVar[tuple[str, ...]] = ("ode",)
    exact: ClassVar[bool] = False

    def plain(self):
        return Adjoint(self.rtol, self.atol, self.max_steps, method="backsolve")


class ForwardSensitivity(AbstractNamed, AbstractDirectional):
    """`forward` of an ODE: the tangents are solved beside the state, in the error test.

    `directions`, `key`: as in `forward`.

    Source: A. C. Hindmarsh and R. Serban, CVODES, "simultaneous corrector".
    """

    directions: int | None = eqx.field(static=True, default=None)
    key: PRNGKeyArray | None = None
    name: ClassVar[str] = "forward_sensitivity"
    kinds: ClassVar[tuple[str, ...]] = ("ode",)

    def plain(self):
        return Forward(self.directions, self.key)


class Iterated(AbstractNamed):
    """`adjoint` of a root and a fixed point: the adjoint fixed point iteration, matrix-free (Christianson 1994).

    `rtol`, `atol`: of its residual, the right-hand side having norm one (None: eps^(3/4)); `max_steps`: iterations;
    `preconditioner` of a root: as in `adjoint`.
    """

    rtol: Any = None
    atol: Any = None
    max_steps: int | None = eqx.field(static=True, default=None)
    preconditioner: PreconditionerName = eqx.field(static=True, default="last")
    name: ClassVar[str] = "iterated"
    kinds: ClassVar[tuple[str, ...]] = ("root", "fixed_point")

    def plain(self):
        return Adjoint(self.rtol, self.atol, self.max_steps, preconditioner=self.preconditioner)


class Truncated(AbstractNamed):
    """`unroll` of the `last` iterations: wrong by about the contraction to that power (Shaban et al. 2019)."""

    last: int = eqx.field(static=True, default=10)
    name: ClassVar[str] = "truncated"
    kinds: ClassVar[tuple[str, ...]] = ("root", "fixed_point")
    exact: ClassVar[bool] = False

    def plain(self):
        return Unroll(last=self.last)


class FrozenMesh(AbstractNamed):
    """`implicit` of an integral: the derivative of the rule on the converged mesh."""

    name: ClassVar[str] = "frozen_mesh"
    kinds: ClassVar[tuple[str, ...]] = ("integral",)

    def plain(self):
        return Implicit()


class Leibniz(AbstractNamed):
    """`adjoint` of an integral: the Leibniz rule, the derivative's integral with its own error control.

    `rtol`, `atol`, `max_steps`: of that integral (None: the forward solver's).
    """

    rtol: Any = None
    atol: Any = None
    max_steps: int | None = eqx.field(static=True, default=None)
    name: ClassVar[str] = "leibniz"
    kinds: ClassVar[tuple[str, ...]] = ("integral",)

    def plain(self):
        return Adjoint(self.rtol, self.atol, self.max_steps)
