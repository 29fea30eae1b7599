"""implicitexp: which gradient of a solver inside a model can be trusted, how far, and at what cost.

    solution = implicitexp.solve(implicitexp.Root(fn, y0), args, gradient=implicitexp.Adjoint())
    check = implicitexp.check_gradient(problem, params)
    result = implicitexp.run(["problem=ode_lotka_volterra", "steps=100"])

Names are imported when they are first used, so that the command line can report a wrong configuration before it has
spent four seconds on importing JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "implicitexp.accuracy": ("GradientCheck", "check_gradient"),
    "implicitexp.equations": ("FixedPoint", "Integral", "ODE", "Root", "Solution"),
    "implicitexp.errors": ("ConfigError", "Unsupported"),
    "implicitexp.experiment": ("Experiment",),
    "implicitexp.problems.base": ("AbstractProblem",),
    "implicitexp.solving": ("Solve", "solve"),
    "implicitexp.strategies": (
        "Adjoint",
        "Backsolve",
        "FiniteDifference",
        "Forward",
        "ForwardSensitivity",
        "FrozenMesh",
        "Gauss",
        "Implicit",
        "Interpolating",
        "Iterated",
        "Leibniz",
        "Neumann",
        "OneStep",
        "PerKind",
        "Phantom",
        "Replay",
        "Reuse",
        "Reversible",
        "Shine",
        "Truncated",
        "Unroll",
    ),
    "implicitexp.__main__": ("run",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)  # pyright: ignore[reportUnsupportedDunderAll]
__version__ = "0.1.0"

if TYPE_CHECKING:
    from .__main__ import run as run
    from .accuracy import GradientCheck as GradientCheck
    from .accuracy import check_gradient as check_gradient
    from .equations import ODE as ODE
    from .equations import FixedPoint as FixedPoint
    from .equations import Integral as Integral
    from .equations import Root as Root
    from .equations import Solution as Solution
    from .errors import ConfigError as ConfigError
    from .errors import Unsupported as Unsupported
    from .experiment import Experiment as Experiment
    from .problems.base import AbstractProblem as AbstractProblem
    from .solving import Solve as Solve
    from .solving import solve as solve
    from .strategies import Adjoint as Adjoint
    from .strategies import Backsolve as Backsolve
    from .strategies import FiniteDifference as FiniteDifference
    from .strategies import Forward as Forward
    from .strategies import ForwardSensitivity as ForwardSensitivity
    from .strategies import FrozenMesh as FrozenMesh
    from .strategies import Gauss as Gauss
    from .strategies import Implicit as Implicit
    from .strategies import Interpolating as Interpolating
    from .strategies import Iterated as Iterated
    from .strategies import Leibniz as Leibniz
    from .strategies import Neumann as Neumann
    from .strategies import OneStep as OneStep
    from .strategies import PerKind as PerKind
    from .strategies import Phantom as Phantom
    from .strategies import Replay as Replay
    from .strategies import Reuse as Reuse
    from .strategies import Reversible as Reversible
    from .strategies import Shine as Shine
    from .strategies import Truncated as Truncated
    from .strategies import Unroll as Unroll


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(importlib.import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module 'implicitexp' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
