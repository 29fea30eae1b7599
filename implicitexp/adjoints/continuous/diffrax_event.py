"""Where a solve by Diffrax ended: at t1, or at an event, whose time moves with all that moves the solution there.

An event stops the solve at the time T where g(T, y(T), args) = 0. By the implicit function theorem

    dT = -(<g_y, dy(T)> + <g_args, dargs>) / (g_t + <g_y, F>),

dy(T) at a time held fixed; so a cotangent c of T is a cotangent -c g_y / (g_t + <g_y, F>) of y(T), and the solution there
moves by dy(T) + F dT. (S. Galan, W. F. Feehery and P. I. Barton 1999, "Parametric sensitivity functions for hybrid
discrete/continuous systems", Applied Numerical Mathematics 31.)
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from implicitexp.adjoints.continuous.diffrax_problem import Problem

NO_TIME = (
    "The condition of this event is a boolean, which says nothing of how the event's time moves: its derivative is not known. "
    "Return a number that changes its sign there (y[0], not y[0] < 0), or leave the time out of the loss."
)


class Ending(eqx.Module):
    """The time of the end, the state there, and which condition was met there (in the order of their tree, at most one).

    A condition that is a number and no root finder: the solve ends with the step in which the sign changed, and T is the
    time at which the condition passes through the level that it has there. A boolean: T is held fixed.
    """

    time: Float[Array, ""]
    state: PyTree
    met: list[Bool[Array, ""]]
    stepped: Bool[Array, ""]  # if not, the condition held at the start, and the end is the start

    @property
    def by_event(self) -> Array:
        return jnp.any(jnp.stack([jnp.array(False), *self.met]))

    def held(self, problem: Problem) -> Array:
        """Whether a boolean ended it, so that the derivative of its time is not known."""
        booleans = [m for m, g in zip(self.met, _conditions(problem), strict=True) if not self._is_number(problem, g)]
        return jnp.any(jnp.stack([jnp.array(False), *booleans])) & self.stepped

    def moved(self, problem: Problem, other: Problem, state: PyTree) -> Array:
        """The time of the end as a function of `other` and of the state at `self.time`; right to first order."""
        if not self.met:
            return other.t1
        slope = problem.slope(self.time, self.state)
        one = jnp.ones_like(self.time)
        level, rate = jax.jvp(lambda t, y: self._condition(problem, t, y), (self.time, self.state), (one, slope))
        passes = self.by_event & ~self.held(problem) & self.stepped
        late = (self._condition(other, self.time, state) - level) / jnp.where(passes, rate, 1)
        fixed = jnp.where(self.stepped, self.time, other.t0)
        return jnp.where(self.by_event, jnp.where(passes, self.time - late, fixed), other.t1)

    def _condition(self, problem: Problem, t: Array, y: PyTree) -> Array:
        """The one that was met, if it is a number."""
        total = jnp.zeros_like(self.time)
        for met, condition in zip(self.met, _conditions(problem), strict=True):
            if not self._is_number(problem, condition):
                continue

            def value(t, y, condition=condition):
                return condition(t, y, problem.args).astype(self.time.dtype)

            # The derivative of another condition may not be finite here. In lanes, where a branch is a choice between both
            # results, its infinity times zero would be NaN: such a condition is looked at in the start.
            at = jax.tree.map(lambda x, start, met=met: jnp.where(met, x, start), (t, y), (problem.t0, problem.y0))
            total = total + jax.lax.cond(met, value, lambda t, y: jnp.zeros_like(t), *at)
        return total

    def _is_number(self, problem: Problem, condition: Callable) -> bool:
        value: Any = jax.eval_shape(condition, self.time, self.state, problem.args)
        return jnp.issubdtype(value.dtype, jnp.inexact)


def _conditions(problem: Problem) -> list[Callable]:
    return jax.tree.leaves(problem.conditions, is_leaf=callable)
