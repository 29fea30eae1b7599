"""Adjoints and linear solvers that Diffrax, Optimistix, Quadax and Lineax take in place of their own:

    diffrax.diffeqsolve(..., adjoint=implicitexp.adjoints.Replay())
    optimistix.fixed_point(..., adjoint=implicitexp.adjoints.Iterated())
    quadax.quadgk(..., adjoint=implicitexp.adjoints.FrozenMesh())
    optimistix.ImplicitAdjoint(linear_solver=implicitexp.adjoints.SmallDense())

Names are imported when they are first used: each needs one of the four libraries, and not the others.
"""

import importlib
from typing import TYPE_CHECKING, Any

_HOMES = {
    "discrete.replay": ("Replay",),
    "discrete.reversible": ("Reversible",),
    "continuous.gauss_adjoint": ("Gauss",),
    "continuous.interpolating": ("Interpolating",),
    "continuous.backsolve_adjoint": ("Backsolve",),
    "continuous.forward_sensitivity": ("ForwardSensitivity",),
    "implicit.fixed_points": ("Iterated", "Neumann", "OneStep", "Phantom", "Reuse", "Shine"),
    "implicit.last_steps": ("Truncated",),
    "linear.small_dense": ("SmallDense",),
    "linear.solvers": ("NeumannSeries", "Preconditioned", "Recorded", "jacobi"),
    "linear.auto": ("Auto",),
    "quadrature.frozen_mesh": ("FrozenMesh",),
    "quadrature.leibniz": ("Leibniz",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}
__all__ = sorted(_HOME_OF)  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from .continuous.backsolve_adjoint import Backsolve as Backsolve
    from .continuous.forward_sensitivity import ForwardSensitivity as ForwardSensitivity
    from .continuous.gauss_adjoint import Gauss as Gauss
    from .continuous.interpolating import Interpolating as Interpolating
    from .discrete.replay import Replay as Replay
    from .discrete.reversible import Reversible as Reversible
    from .implicit.fixed_points import Iterated as Iterated
    from .implicit.fixed_points import Neumann as Neumann
    from .implicit.fixed_points import OneStep as OneStep
    from .implicit.fixed_points import Phantom as Phantom
    from .implicit.fixed_points import Reuse as Reuse
    from .implicit.fixed_points import Shine as Shine
    from .implicit.last_steps import Truncated as Truncated
    from .linear.auto import Auto as Auto
    from .linear.small_dense import SmallDense as SmallDense
    from .linear.solvers import NeumannSeries as NeumannSeries
    from .linear.solvers import Preconditioned as Preconditioned
    from .linear.solvers import Recorded as Recorded
    from .linear.solvers import jacobi as jacobi
    from .quadrature.frozen_mesh import FrozenMesh as FrozenMesh
    from .quadrature.leibniz import Leibniz as Leibniz


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(importlib.import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module 'implicitexp.adjoints' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
