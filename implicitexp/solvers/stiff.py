"""Implicit methods for stiff ODEs: Diffrax's, with root finders for their stages that work in both precisions."""

from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import PyTree

from .base import NotConverged, Tolerance, resolve_tolerance
from .ode import AbstractAdaptive

# Newton's step from an error e leaves about its square, so stages are solved to the square root of the step's tolerance,
# at most this. To the tolerance itself, which is Diffrax's choice, the iteration stalls in rounding (the stiffness times
# eps), in float32 with no accepted step; and Diffrax's chord method ("very chord"), whose Jacobian is that of the step's
# start, rejects every other step of a stiff problem: on Robertson's kinetics at 1e-8, float64, 1065 steps and as many
# rejected ones, where Newton's method takes 110 and 4. Its ten times longer steps end 3 to 14 times further from the
# solution (6.9e-6 relative against 5.0e-7 in the worst species).
STAGE_TOLERANCE = 1e-3


def stage_solver(solver: AbstractAdaptive, y0: PyTree, rtol: Any, atol: Any) -> optx.AbstractRootFinder:
    """What solves a stage: Newton's method to the square root of the step's tolerance."""

    def root(tolerance: Any) -> Any:
        return jnp.minimum(jnp.sqrt(resolve_tolerance(tolerance, y0)), STAGE_TOLERANCE)

    return optx.Newton(root(solver.rtol if rtol is None else rtol), root(solver.atol if atol is None else atol))


class ImplicitEuler(AbstractAdaptive):
    """Implicit Euler, order 1, for the stiffest problems at loose tolerances: its error is about the tolerance's square root."""

    rtol: Tolerance = None
    atol: Tolerance = None
    dt0: Any = None  # first step, in the units of t; None: chosen by the controller
    max_steps: int = eqx.field(static=True, default=100_000)
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "ode"

    def stepper(self, y0, rtol=None, atol=None):
        return dfx.ImplicitEuler(root_finder=stage_solver(self, y0, rtol, atol))


class Kvaerno3(AbstractAdaptive):
    """Kvaerno's method of order 3(2), ESDIRK, for stiff problems at loose tolerances."""

    rtol: Tolerance = None
    atol: Tolerance = None
    dt0: Any = None  # first step, in the units of t; None: chosen by the controller
    max_steps: int = eqx.field(static=True, default=4096)
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "ode"

    def stepper(self, y0, rtol=None, atol=None):
        return dfx.Kvaerno3(root_finder=stage_solver(self, y0, rtol, atol))


class Kvaerno5(AbstractAdaptive):
    """Kvaerno's method of order 5(4), ESDIRK, for stiff problems."""

    rtol: Tolerance = None
    atol: Tolerance = None
    dt0: Any = None  # first step, in the units of t; None: chosen by the controller
    max_steps: int = eqx.field(static=True, default=4096)
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "ode"

    def stepper(self, y0, rtol=None, atol=None):
        return dfx.Kvaerno5(root_finder=stage_solver(self, y0, rtol, atol))
