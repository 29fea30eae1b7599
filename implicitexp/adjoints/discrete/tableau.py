"""The Runge-Kutta methods that `Replay` and `Reversible` know, by their tableau."""

import abc
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import numpy as np
from jaxtyping import Array, PyTree

from implicitexp.errors import Unsupported


class Scheme(NamedTuple):
    """The tableau as Python numbers. `keeps_stages`: the solver's dense output holds the k_i; `solves_slopes`: an implicit
    stage is solved for F(t_i, z_i), not for k_i."""

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    diagonal: tuple[float, ...]
    b: tuple[float, ...]
    keeps_stages: bool
    solves_slopes: bool

    @property
    def implicit(self) -> bool:
        return any(self.diagonal)

    def __len__(self) -> int:
        return len(self.b)

    def needed(self) -> int:
        """How many of the first stages y1 depends on: all but the last where first is same as last."""
        used = np.array(self.b) != 0
        return int(np.max(np.nonzero(used)[0])) + 1

    def middle(self) -> int:
        """The implicit stage nearest to the middle of the step, whose Jacobian is nearest to those of the others."""
        stages = [i for i, a in enumerate(self.diagonal) if a]
        return min(stages, key=lambda i: abs(self.c[i] - 0.5))


EULER = Scheme((0.0,), ((),), (0.0,), (1.0,), False, False)
IMPLICIT_EULER = Scheme((1.0,), ((),), (1.0,), (1.0,), False, False)


def scheme_of(solver: Any) -> Scheme:
    """The tableau of a Diffrax solver. Raises `Unsupported` for a solver that has none, or several."""
    kind = type(solver)  # a wrapped solver passes `isinstance` as the one inside it
    if issubclass(kind, dfx.Euler):
        return EULER
    if issubclass(kind, dfx.ImplicitEuler):
        return IMPLICIT_EULER
    tableau = solver.tableau if issubclass(kind, dfx.AbstractRungeKutta) else None
    if not isinstance(tableau, dfx.ButcherTableau):
        raise Unsupported(
            f"{kind.__name__} is no Runge-Kutta method with one tableau: use Euler, Heun, Midpoint, Ralston, Bosh3, "
            "Tsit5, Dopri5, Dopri8, ImplicitEuler or Kvaerno3 to 5, or diffrax.RecursiveCheckpointAdjoint for this solver"
        )
    stages = len(tableau.b_sol)
    rows = ((), *(tuple(map(float, row)) for row in tableau.a_lower))
    diagonal = np.zeros(stages) if tableau.a_diagonal is None else tableau.a_diagonal
    return Scheme(
        c=(float(tableau.c1), *map(float, tableau.c)),
        a=rows,
        diagonal=tuple(map(float, diagonal)),
        b=tuple(map(float, tableau.b_sol)),
        keeps_stages=True,
        solves_slopes=tableau.implicit and tableau.fsal,
    )


class StepCotangents(NamedTuple):
    """Of the start of the step, of its two ends in time, and of the parameters."""

    y0: PyTree
    t0: Array
    t1: Array
    theta: PyTree


class AbstractTaken(eqx.Module):
    """A step that has been taken."""

    y1: PyTree

    @property
    @abc.abstractmethod
    def k(self) -> PyTree:
        """The stages, in the leading axis."""

    @abc.abstractmethod
    def transposed(self, y1: PyTree, k: PyTree | None) -> StepCotangents:
        """Cotangents of the step's inputs from those of y1 and, where `k` is given, of the stages as outputs of their own."""
