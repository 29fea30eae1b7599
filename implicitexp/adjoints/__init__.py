"""Adjoints and linear solvers that Diffrax, Optimistix and Lineax take in place of their own:

    diffrax.diffeqsolve(..., adjoint=implicitexp.adjoints.Replay())
    optimistix.fixed_point(..., adjoint=implicitexp.adjoints.Iterated())
    optimistix.ImplicitAdjoint(linear_solver=implicitexp.adjoints.SmallDense())

Names are imported when they are first used: each needs one of the three libraries, and not the others.
"""

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "replay": ("Replay",),
    "reversible": ("Reversible",),
    "gauss_adjoint": ("Gauss",),
    "interpolating": ("Interpolating",),
    "backsolve_adjoint": ("Backsolve",),
    "forward_sensitivity": ("ForwardSensitivity",),
    "fixed_points": ("Iterated", "Neumann", "OneStep", "Phantom", "Reuse", "Shine"),
    "last_steps": ("Truncated",),
    "small_dense": ("SmallDense",),
    "linear_solvers": ("NeumannSeries", "Preconditioned", "Recorded", "jacobi"),
    "auto_linear": ("Auto",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from .auto_linear import Auto as Auto
    from .backsolve_adjoint import Backsolve as Backsolve
    from .fixed_points import Iterated as Iterated
    from .fixed_points import Neumann as Neumann
    from .fixed_points import OneStep as OneStep
    from .fixed_points import Phantom as Phantom
    from .fixed_points import Reuse as Reuse
    from .fixed_points import Shine as Shine
    from .forward_sensitivity import ForwardSensitivity as ForwardSensitivity
    from .gauss_adjoint import Gauss as Gauss
    from .interpolating import Interpolating as Interpolating
    from .last_steps import Truncated as Truncated
    from .linear_solvers import NeumannSeries as NeumannSeries
    from .linear_solvers import Preconditioned as Preconditioned
    from .linear_solvers import Recorded as Recorded
    from .linear_solvers import jacobi as jacobi
    from .replay import Replay as Replay
    from .reversible import Reversible as Reversible
    from .small_dense import SmallDense as SmallDense


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module 'implicitexp.adjoints' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
