"""Solvers of roots and fixed points: Optimistix's, and Anderson acceleration."""

import abc
from typing import Any, ClassVar

import equinox as eqx
import equinox.internal as eqxi
import jax
import optimistix as optx
from jaxtyping import PyTree

from implicitexp.equations import FixedPoint, Root, Stats

from .anderson import AndersonAcceleration
from .base import AbstractSolver, Loop, NotConverged, Tolerance, resolve_tolerance, stats
from .pivots import StaticPivots


class LoopAdjoint(optx.AbstractAdjoint):
    """An Optimistix adjoint that differentiates through the iterations, in the kind of loop that is asked for."""

    loop: Loop

    def apply(self, primal_fn, rewrite_fn, inputs, tags):
        del rewrite_fn, tags
        return primal_fn((*inputs, self.while_loop))

    def while_loop(self, cond_fun, body_fun, init_val, *, max_steps=None, **kwargs):
        if self.loop.kind == "plain":
            return eqxi.while_loop(cond_fun, body_fun, init_val, max_steps=max_steps, kind="lax", **kwargs)
        return eqxi.while_loop(
            cond_fun,
            body_fun,
            init_val,
            max_steps=max_steps,
            kind="checkpointed",
            checkpoints=self.loop.checkpoints,
            **kwargs,
        )


class AbstractIteration(AbstractSolver):
    """A solver that Optimistix iterates; `method` builds its object from the numbers of this one."""

    rtol: eqx.AbstractVar[Any]
    atol: eqx.AbstractVar[Any]
    max_steps: eqx.AbstractVar[int]

    @abc.abstractmethod
    def method(self, rtol: Any, atol: Any) -> Any:
        """The Optimistix solver with these tolerances."""

    def tolerances(self, y: PyTree) -> tuple[Any, Any]:
        return resolve_tolerance(self.rtol, y), resolve_tolerance(self.atol, y)

    def noise(self, like):
        return resolve_tolerance(self.rtol, like)

    def run(self, equation: Any, args: PyTree, loop: Loop) -> tuple[PyTree, Stats]:
        method = self.method(*self.tolerances(equation.y0))
        find = optx.root_find if self.kind == "root" else optx.fixed_point
        sol = find(
            equation.fn,
            method,
            jax.lax.stop_gradient(equation.y0),
            args,
            options=options_of(equation),
            max_steps=self.max_steps,
            adjoint=LoopAdjoint(loop),
            throw=False,
        )
        return sol.value, stats(sol.result == optx.RESULTS.successful, sol.stats["num_steps"], sol.value)


def options_of(equation: Root | FixedPoint) -> dict[str, Any]:
    """Optimistix's options: the box that the iterates are clipped to."""
    if isinstance(equation, Root) and equation.bounds is not None:
        lower, upper = jax.lax.stop_gradient(equation.bounds)
        return {"lower": lower, "upper": upper}
    return {}


class Newton(AbstractIteration):
    """Newton's method with a dense Jacobian; it has converged when step and residual are below the tolerances."""

    rtol: Tolerance = None
    atol: Tolerance = None
    max_steps: int = eqx.field(static=True, default=256)
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "root"

    def method(self, rtol, atol):
        return optx.Newton(rtol, atol, linear_solver=StaticPivots())


class Dogleg(AbstractIteration):
    """Powell's dogleg method on the sum of squares: slower than Newton's, and safe far from the root."""

    rtol: Tolerance = None
    atol: Tolerance = None
    max_steps: int = eqx.field(static=True, default=256)
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "root"

    def method(self, rtol, atol):
        return optx.Dogleg(rtol, atol, linear_solver=StaticPivots())


class Picard(AbstractIteration):
    """The plain iteration y <- fn(y, args), for contractions."""

    rtol: Tolerance = None
    atol: Tolerance = None
    max_steps: int = eqx.field(static=True, default=10_000)
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "fixed_point"

    def method(self, rtol, atol):
        return optx.FixedPointIteration(rtol, atol)


class Anderson(AbstractIteration):
    """Anderson acceleration of the fixed point iteration, type II, safeguarded (see `anderson.py`)."""

    rtol: Tolerance = None
    atol: Tolerance = None
    max_steps: int = eqx.field(static=True, default=1000)
    history: int = eqx.field(static=True, default=5)
    damping: Any = 1.0
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "fixed_point"

    def method(self, rtol, atol):
        return AndersonAcceleration(rtol, atol, history=self.history, damping=self.damping)
