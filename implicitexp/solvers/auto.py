"""A solver for every kind of equation: the default of each kind, or one that is given."""

from typing import Any

import equinox as eqx

from implicitexp.equations import KINDS

from .algebraic import Anderson, Bisection, Chord, Dogleg, LevenbergMarquardt, Newton, NewtonFixedPoint, Picard
from .base import AbstractSolver, NotConverged, Tolerance
from .explicit import Dopri5, Dopri8, Euler, FixedStep, Heun, Midpoint, Tsit5
from .integral import ClenshawCurtis, GaussKronrod, GaussLegendre, Romberg, TanhSinh
from .leapfrog import Leapfrog
from .stiff import ImplicitEuler, Kvaerno3, Kvaerno5

SOLVERS = (
    *(Newton, Chord, Dogleg, LevenbergMarquardt, Bisection),
    *(Picard, Anderson, NewtonFixedPoint),
    *(Tsit5, Dopri5, Dopri8, Heun, Midpoint, Kvaerno5, Kvaerno3, ImplicitEuler, Euler, FixedStep, Leapfrog),
    *(GaussKronrod, ClenshawCurtis, TanhSinh, Romberg, GaussLegendre),
)

DEFAULTS: dict[str, Any] = {
    "root": Newton,
    "fixed_point": Anderson,
    "ode": Tsit5,
    "integral": GaussKronrod,
}


class Auto(eqx.Module):
    """The default solver of each kind (Newton, Anderson, Tsit5, Gauss-Kronrod), with common tolerances.

    A solver given for a kind is used as it is. `max_steps` None: each solver's own.
    """

    rtol: Tolerance = None
    atol: Tolerance = None
    max_steps: int | None = eqx.field(static=True, default=None)
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    root: AbstractSolver | None = None
    fixed_point: AbstractSolver | None = None
    ode: AbstractSolver | None = None
    integral: AbstractSolver | None = None

    def for_kind(self, kind: str) -> AbstractSolver:
        """The solver of this kind of equation."""
        given = getattr(self, kind)
        if given is not None:
            return given
        options: dict[str, Any] = {} if self.max_steps is None else {"max_steps": self.max_steps}
        return DEFAULTS[kind](rtol=self.rtol, atol=self.atol, when_not_converged=self.when_not_converged, **options)


def for_kind(solver: "AbstractSolver | Auto | None", kind: str) -> AbstractSolver:
    """What solves an equation of this kind: `solver` where it can, else the default of that kind."""
    if isinstance(solver, Auto):
        return solver.for_kind(kind)
    if solver is not None and solver.kind == kind:
        return solver
    return Auto().for_kind(kind)


def kinds_of(solver: "AbstractSolver | Auto | None") -> tuple[str, ...]:
    """The kinds of equation that this solver takes."""
    return KINDS if solver is None or isinstance(solver, Auto) else (solver.kind,)
