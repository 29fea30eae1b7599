"""One Runge-Kutta step from its tableau, and its transpose.

    z_i = y0 + sum_{j<i} a_ij k_j + a_ii k_i,    k_i = F(t_i, z_i, theta) u,    y1 = y0 + sum_i b_i k_i,

u being the step size (in general the increment of the control). Backwards, a bar being a cotangent,

    (I - a_ii u dF/dz_i)^T l_i = b_i y1~ + sum_{j>i} a_ji z_j~,    z_i~ = u (dF/dz_i)^T l_i,    y0~ = y1~ + sum_i z_i~,

and theta~ = sum_i u (dF/dtheta)^T l_i: the stage equations by the implicit function theorem, so that the iterations which
solved them are not differentiated (E. Hairer, C. Lubich, G. Wanner, Geometric Numerical Integration, VI.4, without the
linear solve; A. Sandu 2006, On the properties of Runge-Kutta discrete adjoints, with it).
"""

from typing import Any

from jaxtyping import Array, PyTree

from implicitexp.adjoints.discrete.rolled import Rolled
from implicitexp.adjoints.discrete.tableau import AbstractTaken, Scheme
from implicitexp.adjoints.discrete.trees import size
from implicitexp.adjoints.discrete.unrolled import Unrolled

SMALL = 1024  # numbers of a state and its parameters: up to here the stages are a loop (benchmarks/replay.py)


def take(
    scheme: Scheme, model: Any, theta: PyTree, t0: Array, t1: Array, y0: PyTree, k: PyTree | None, count: int
) -> AbstractTaken:
    """The first `count` stages of a step. `k`: the stages, where they are known; an implicit method needs them.

    `model` has `slope(theta, t, z, control)`, which is k, and `control(theta, t0, t1)`.
    """
    kind = Rolled if size((theta, y0)) <= SMALL else Unrolled
    return kind.take(scheme, model, theta, (t0, t1, y0), k, count)


def forward(scheme: Scheme, model: Any, theta: PyTree, t0: Array, t1: Array, y0: PyTree) -> PyTree:
    """y1 of an explicit step alone, for which a loop over the stages loses nothing."""
    return Rolled.take(scheme, model, theta, (t0, t1, y0), None, scheme.needed()).y1
