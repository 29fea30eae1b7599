"""The four kinds of equation that a solver stands for, and what a solve returns.

Argument order follows Optimistix and Diffrax: `fn(y, args)`, `field(t, y, args)`, `integrand(x, args)`. Everything is a
pytree: unknowns, arguments, and the function itself (`ODE(mlp, ...)`), whose array leaves are differentiated too.
"""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
from jaxtyping import Array, PyTree, Scalar


class AbstractEquation(eqx.Module):
    """An equation whose solution is a function of its arguments."""

    kind: eqx.AbstractClassVar[str]


class Root(AbstractEquation):
    """Find y with fn(y, args) = 0.

    `fn(y, args)` returns a pytree of the structure and shapes of `y`. `y0` is a starting guess: it is never
    differentiated. `bounds = (lower, upper)`, each broadcastable to y: the iterates of Newton's method stay inside.
    """

    fn: Callable[[PyTree, PyTree], PyTree]
    y0: PyTree
    bounds: tuple[Any, Any] | None = None
    kind: ClassVar[str] = "root"


class FixedPoint(AbstractEquation):
    """Find y = fn(y, args), near the starting guess `y0`, which is never differentiated."""

    fn: Callable[[PyTree, PyTree], PyTree]
    y0: PyTree
    kind: ClassVar[str] = "fixed_point"


class ODE(AbstractEquation):
    """dy/dt = field(t, y, args), y(t0) = y0. The value is y(t1), or y at `ts` (leading axis: time).

    `y0`, `t0`, `t1` and `ts` are differentiated like `args`. `ts` is sorted from t0 towards t1; t1 may be before t0.
    """

    field: Callable[[Any, PyTree, PyTree], PyTree]
    y0: PyTree
    t0: Any
    t1: Any
    ts: Any = None
    kind: ClassVar[str] = "ode"


class Integral(AbstractEquation):
    """The integral of integrand(x, args) over x from `lower` to `upper`; the limits are differentiated like `args`.

    x is a scalar; the integrand returns a pytree of any shapes. Limits may be infinite (then not differentiated).

    `breaks(args)` returns the places where the integrand jumps: an array of shape (k,), in any order, of which those
    strictly between the limits count (NaN and infinity never do). It is differentiated: a place b that moves adds
    (g(b-) - g(b+)) db to the derivative, whatever the strategy, which no integral of dg/dargs contains. So a jump that
    moves and is not marked makes the gradient wrong, and its value right; so does one at rest when a limit moves, for
    strategies whose nodes move with the limits. A break where nothing jumps costs time only.
    The integrand is never evaluated at a break, so `x > b` and `x >= b` are the same. It has to compute b as `breaks`
    does, to a few roundings of b or of the distance to its neighbors.
    """

    integrand: Callable[[Any, PyTree], PyTree]
    lower: Any
    upper: Any
    breaks: Any = None  # a function of args, or None
    kind: ClassVar[str] = "integral"


KINDS: tuple[str, ...] = ("root", "fixed_point", "ode", "integral")


class Stats(eqx.Module):
    """What a solver says of one solve: whether it converged, and how many steps (or intervals) it took."""

    converged: Array  # bool, scalar
    steps: Array  # int32, scalar


class Solution(eqx.Module):
    """What `solve` returns: the value (NaN where the solve did not converge) and `stats` (`converged`, `steps`)."""

    value: PyTree
    stats: dict[str, Scalar]
