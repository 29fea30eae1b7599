"""The interpolating adjoint: lambda and the integral over theta in one system, both in the error test, y(s) from the
forward steps. n + p unknowns, which for an implicit method are a matrix of that size.
"""

from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
from jaxtyping import PyTree

from implicitexp.adjoints.continuous.diffrax_walk import AbstractOverSteps
from implicitexp.adjoints.continuous.trajectory import Flow
from implicitexp.adjoints.continuous.walk import AbstractParameters, Integral, State


class ByStates(AbstractParameters):
    """The integral as a state beside lambda: mu' = -(df/dtheta)^T lambda."""

    in_error_test: bool = eqx.field(static=True, default=False)  # by itself: it is part of the state

    def beside(self, flow: Flow) -> State:
        return (flow.theta,)

    def rate(self, flow: Flow, part: Callable, s: Any, y: PyTree, state: State) -> State:
        by_theta, by_y = jax.vjp(lambda theta, y: part(theta, s, y), flow.theta, y)[1](state[0])
        return by_y, by_theta

    def over_step(self, flow: Flow, solver: Any, y: Callable, state: Callable, s0: Any, s1: Any) -> Integral:
        return Integral([])


class Interpolating(AbstractOverSteps):
    """The continuous adjoint with its parameters in the error test, y(t) from the forward solve's steps.

    lambda' = -(dF/dy)^T lambda, mu' = -(dF/dtheta)^T lambda backwards as one system of n + p states: each of the two is
    held to the tolerance by its own root mean square. For a `diffrax.diffeqsolve(..., adjoint=Interpolating())` with many
    parameters and an implicit solver use `Gauss()`, which has no matrix of n + p.

    `rtol`, `atol`, `solver`, `stepsize_controller`, `max_steps`: of the backward solve (None: the forward solve's);
    `store`: see `Gauss`.

    Source: Y. Cao, S. Li, L. Petzold and R. Serban 2003, "Adjoint sensitivity analysis for differential-algebraic
    equations", SIAM J. Sci. Comput. 24(3); the name is SciMLSensitivity's.

    **Raises** `Unsupported` as `AbstractContinuous` says, and for `max_steps=None` of the forward solve.
    """

    rtol: Any = None
    atol: Any = None
    solver: dfx.AbstractSolver | None = None
    stepsize_controller: dfx.AbstractStepSizeController | None = None
    max_steps: int | None = eqx.field(static=True, default=None)
    store: str | None = eqx.field(static=True, default=None)

    def parameters(self) -> AbstractParameters:
        return ByStates()
