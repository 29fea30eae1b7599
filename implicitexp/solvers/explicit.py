"""Explicit Runge-Kutta methods: Diffrax's, with fixed steps and under their step size control."""

from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx

from implicitexp.errors import Unsupported

from .base import NotConverged, Tolerance
from .ode import AbstractAdaptive, AbstractFixedStep

EXPLICIT = {"euler": dfx.Euler, "midpoint": dfx.Midpoint, "heun": dfx.Heun, "dopri5": dfx.Dopri5, "tsit5": dfx.Tsit5,
            "dopri8": dfx.Dopri8}  # fmt: skip


class Euler(AbstractFixedStep):
    """Explicit Euler with the fixed step `dt0`: a residual network is dt0 = 1."""

    dt0: Any = 0.01  # in the units of t
    max_steps: int = eqx.field(static=True, default=100_000)
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "ode"

    def stepper(self, y0, rtol=None, atol=None):
        return dfx.Euler()


class FixedStep(AbstractFixedStep):
    """An explicit Runge-Kutta method with the fixed step `dt0` and no error control.

    `method`, with its order: euler (1), midpoint (2), heun (2), dopri5 (5), tsit5 (5) or dopri8 (8).
    """

    method: str = eqx.field(static=True, default="heun")
    dt0: Any = 0.01  # in the units of t
    max_steps: int = eqx.field(static=True, default=100_000)
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "ode"

    def __check_init__(self):
        if self.method not in EXPLICIT:
            raise Unsupported(f"method={self.method!r} is not one of {', '.join(EXPLICIT)}.")

    def stepper(self, y0, rtol=None, atol=None):
        return EXPLICIT[self.method]()


class Midpoint(AbstractAdaptive):
    """The explicit midpoint method of order 2(1), for loose tolerances."""

    rtol: Tolerance = None
    atol: Tolerance = None
    dt0: Any = None  # first step, in the units of t; None: chosen by the controller
    max_steps: int = eqx.field(static=True, default=100_000)
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "ode"

    def stepper(self, y0, rtol=None, atol=None):
        return dfx.Midpoint()


class Heun(AbstractAdaptive):
    """Heun's method of order 2(1), for loose tolerances."""

    rtol: Tolerance = None
    atol: Tolerance = None
    dt0: Any = None  # first step, in the units of t; None: chosen by the controller
    max_steps: int = eqx.field(static=True, default=100_000)
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "ode"

    def stepper(self, y0, rtol=None, atol=None):
        return dfx.Heun()


class Dopri5(AbstractAdaptive):
    """Dormand and Prince's method of order 5(4)."""

    rtol: Tolerance = None
    atol: Tolerance = None
    dt0: Any = None  # first step, in the units of t; None: chosen by the controller
    max_steps: int = eqx.field(static=True, default=4096)
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "ode"

    def stepper(self, y0, rtol=None, atol=None):
        return dfx.Dopri5()


class Tsit5(AbstractAdaptive):
    """Tsitouras' method of order 5(4), the default for problems that are not stiff."""

    rtol: Tolerance = None
    atol: Tolerance = None
    dt0: Any = None  # first step, in the units of t; None: chosen by the controller
    max_steps: int = eqx.field(static=True, default=4096)
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "ode"

    def stepper(self, y0, rtol=None, atol=None):
        return dfx.Tsit5()


class Dopri8(AbstractAdaptive):
    """Dormand and Prince's method of order 8(7), for tight tolerances."""

    rtol: Tolerance = None
    atol: Tolerance = None
    dt0: Any = None  # first step, in the units of t; None: chosen by the controller
    max_steps: int = eqx.field(static=True, default=4096)
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "ode"

    def stepper(self, y0, rtol=None, atol=None):
        return dfx.Dopri8()
