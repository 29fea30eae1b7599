"""Implicit methods for stiff ODEs: Diffrax's, with root finders for their stages that work in both precisions."""

from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import PyTree

from .base import NotConverged, Tolerance, dtype_of, resolve_tolerance
from .ode import AbstractAdaptive

# In float32 the stages' Newton iteration at Diffrax's default (the step's own tolerance) stalls in rounding, which is
# the stiffness times eps, and the solve then ends with no accepted step. Newton's step from an error of 1e-3 leaves
# its square, so this is as accurate and cannot stall up to a stiffness of about 1e4.
STAGE_TOLERANCE = 1e-3


def stage_solver(finder: Any, solver: AbstractAdaptive, y0: PyTree, rtol: Any, atol: Any) -> optx.AbstractRootFinder:
    """What solves a stage: in float64 Diffrax's own choice, `finder`, to the tolerance of the step; else see above."""
    if dtype_of(y0) != jnp.float64:
        return optx.Newton(STAGE_TOLERANCE, STAGE_TOLERANCE)
    rtol = resolve_tolerance(solver.rtol if rtol is None else rtol, y0)
    return finder(rtol, resolve_tolerance(solver.atol if atol is None else atol, y0))


class ImplicitEuler(AbstractAdaptive):
    """Implicit Euler, order 1, for the stiffest problems at loose tolerances: its error is about the tolerance's square root."""

    rtol: Tolerance = None
    atol: Tolerance = None
    dt0: Any = None  # first step, in the units of t; None: chosen by the controller
    max_steps: int = eqx.field(static=True, default=100_000)
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "ode"

    def stepper(self, y0, rtol=None, atol=None):
        return dfx.ImplicitEuler(root_finder=stage_solver(optx.Chord, self, y0, rtol, atol))


class Kvaerno3(AbstractAdaptive):
    """Kvaerno's method of order 3(2), ESDIRK, for stiff problems at loose tolerances."""

    rtol: Tolerance = None
    atol: Tolerance = None
    dt0: Any = None  # first step, in the units of t; None: chosen by the controller
    max_steps: int = eqx.field(static=True, default=4096)
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "ode"

    def stepper(self, y0, rtol=None, atol=None):
        return dfx.Kvaerno3(root_finder=stage_solver(dfx.VeryChord, self, y0, rtol, atol))


class Kvaerno5(AbstractAdaptive):
    """Kvaerno's method of order 5(4), ESDIRK, for stiff problems."""

    rtol: Tolerance = None
    atol: Tolerance = None
    dt0: Any = None  # first step, in the units of t; None: chosen by the controller
    max_steps: int = eqx.field(static=True, default=4096)
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "ode"

    def stepper(self, y0, rtol=None, atol=None):
        return dfx.Kvaerno5(root_finder=stage_solver(dfx.VeryChord, self, y0, rtol, atol))
