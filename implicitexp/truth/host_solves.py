"""The second computation of the ground truth: solutions and derivatives by SciPy and LAPACK on the host.

It shares the user's functions with the first one (as compiled code) and nothing else: no solver, no strategy, no
linear algebra. One file a kind of equation: `host_ode.py`, `host_algebraic.py`, `host_integral.py`.
"""

from typing import Any

from implicitexp.truth.host_algebraic import HostFixedPoint, HostRoot
from implicitexp.truth.host_base import AbstractHost, HostLimits
from implicitexp.truth.host_integral import HostIntegral
from implicitexp.truth.host_ode import HostODE

SOLVERS = {"ode": HostODE, "integral": HostIntegral, "root": HostRoot, "fixed_point": HostFixedPoint}


def host_solver(kind: str, configured: Any, limits: HostLimits) -> AbstractHost:
    """The host's solver for this kind of equation; `configured` finds the branch of a root or fixed point."""
    return SOLVERS[kind](configured, limits)
