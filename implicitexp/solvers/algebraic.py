"""Solvers of roots and fixed points: Optimistix's, and Anderson acceleration."""

import abc
from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import PyTree

from implicitexp.equations import FixedPoint, Root, Stats
from implicitexp.errors import Unsupported

from .anderson import AndersonAcceleration
from .base import AbstractSolver, Loop, NotConverged, Tolerance, resolve_tolerance, stats
from .bisection import QuietBisection
from .pivots import StaticPivots, StaticTriangle


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
            adjoint=LoopAdjoint(loop) if loop.adjoint is None else loop.adjoint,
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


class Chord(AbstractIteration):
    """Newton's method with the Jacobian at the start: an iteration costs no factorization, and there are more of them."""

    rtol: Tolerance = None
    atol: Tolerance = None
    max_steps: int = eqx.field(static=True, default=256)
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "root"

    def method(self, rtol, atol):
        return optx.Chord(rtol, atol, linear_solver=StaticPivots())


class Dogleg(AbstractIteration):
    """Powell's dogleg method on the sum of squares: slower than Newton's, and safe far from the root."""

    rtol: Tolerance = None
    atol: Tolerance = None
    max_steps: int = eqx.field(static=True, default=256)
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "root"

    def method(self, rtol, atol):
        return optx.Dogleg(rtol, atol, linear_solver=StaticPivots())


class LevenbergMarquardt(AbstractIteration):
    """The Levenberg-Marquardt method on the sum of squares: between Newton's method and steepest descent, safe far from
    the root and where the Jacobian is nearly singular."""

    rtol: Tolerance = None
    atol: Tolerance = None
    max_steps: int = eqx.field(static=True, default=256)
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "root"

    def method(self, rtol, atol):
        return optx.LevenbergMarquardt(rtol, atol, linear_solver=StaticTriangle())


class Bisection(AbstractIteration):
    """Bisection of the interval `Root.bounds` of one number, at whose ends fn has different signs: it cannot fail."""

    rtol: Tolerance = None
    atol: Tolerance = None
    max_steps: int = eqx.field(static=True, default=256)
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "root"
    refuses: ClassVar[Mapping[str, str]] = {
        "unroll": "the midpoints do not move with the parameters, so that the derivative of its loop is zero; use "
        "implicit, adjoint or forward, which need the root alone, or unroll with Newton"
    }

    def method(self, rtol, atol):
        return QuietBisection(rtol, atol)

    def check(self, equation, args):
        if equation.bounds is None:
            raise Unsupported(
                "Bisection needs an interval at whose ends fn has different signs: Root(fn, y0, bounds=(lower, upper)); "
                "or use Newton, Chord, Dogleg or LevenbergMarquardt, which start from y0."
            )
        shapes = [jnp.shape(x) for x in jax.tree.leaves((equation.y0, equation.bounds))]
        if not eqx.is_array(equation.y0) or any(shape != () for shape in shapes):
            raise Unsupported(
                f"Bisection finds one number, with a lower and an upper bound, but y0 and bounds have the shapes "
                f"{shapes}; use Newton, Chord, Dogleg or LevenbergMarquardt, or jax.vmap for many roots of one number."
            )


class Picard(AbstractIteration):
    """The plain iteration y <- fn(y, args), for contractions; damped, y <- y + damping (fn(y, args) - y).

    Damping below 1 converges where a derivative of fn is below -1, and is slower elsewhere.
    """

    rtol: Tolerance = None
    atol: Tolerance = None
    max_steps: int = eqx.field(static=True, default=10_000)
    damping: Any = 1.0
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "fixed_point"

    def method(self, rtol, atol):
        # Optimistix compares the step with the tolerance. Here the residual counts, of which the step is a share: else
        # a small damping would pass for convergence.
        return optx.FixedPointIteration(rtol * self.damping, atol * self.damping, damp=1 - self.damping)


class NewtonFixedPoint(AbstractIteration):
    """Newton's method for fn(y, args) - y = 0: few iterations, a dense Jacobian each, and no contraction is needed."""

    rtol: Tolerance = None
    atol: Tolerance = None
    max_steps: int = eqx.field(static=True, default=256)
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "fixed_point"

    def method(self, rtol, atol):
        return optx.Newton(rtol, atol, linear_solver=StaticPivots())


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
