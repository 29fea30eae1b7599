"""`Gauss`: the continuous adjoint whose parameters cost the solver nothing, for `diffrax.diffeqsolve(..., adjoint=...)`."""

from typing import Any

import diffrax as dfx
import equinox as eqx

from implicitexp.adjoints.continuous.diffrax_walk import AbstractOverSteps
from implicitexp.adjoints.continuous.gauss import ByNodes
from implicitexp.adjoints.continuous.walk import AbstractParameters


class Gauss(AbstractOverSteps):
    """The continuous adjoint of the state only; the parameters' part by Gauss-Legendre nodes in each backward step.

    lambda' = -(dF/dy)^T lambda backwards, dL/dtheta = integral (dF/dtheta)^T lambda dt, y(t) from the forward solve's
    steps. For n states and p parameters an implicit solver costs n^3 + p a step and no matrix of n + p. Cotangents are
    brought to norm one first, so that `atol` means the same for every scale of the loss.

    `order`: of the quadrature in a step (None: the solver's and 3). `rtol`, `atol`, `solver`, `stepsize_controller`,
    `max_steps`: of the backward solve (None: the forward solve's; its steps at least end where forward steps began, and
    without an error control it takes just those; 4 times the forward's largest number of steps). `store`: what the
    forward solve keeps of each step: `stages`, `steps` (states), `times`, in the order of memory, and against it of time
    (None: by the size of the buffers). `in_error_test`: whether the quadrature takes part in the step control, by its
    difference from the rule without the middle node, which costs a second product with (dF/dtheta)^T a step.

    Source: A. C. Norcliffe and M. P. Deisenroth 2023, "Faster Training of Neural ODEs Using Gauss-Legendre Quadrature".
    Without `in_error_test` an integrand that oscillates within the steps of both solves is not seen. It takes a parameter that
    neither y nor lambda depends on, such as a forcing whose amplitude is zero: what moves y bounds the forward steps, within
    which the backward ones stay, and the rule is of a higher order than the steps.

    **Raises** `Unsupported` as `AbstractContinuous` says, and for `max_steps=None` of the forward solve.
    """

    order: int | None = eqx.field(static=True, default=None)
    rtol: Any = None
    atol: Any = None
    solver: dfx.AbstractSolver | None = None
    stepsize_controller: dfx.AbstractStepSizeController | None = None
    max_steps: int | None = eqx.field(static=True, default=None)
    store: str | None = eqx.field(static=True, default=None)
    in_error_test: bool = eqx.field(static=True, default=False)

    def __check_init__(self):
        if self.order is not None and self.order < 1:
            raise ValueError(f"Gauss(order={self.order}): the order of the quadrature is at least 1.")

    def parameters(self) -> AbstractParameters:
        return ByNodes(order=self.order, in_error_test=self.in_error_test)
