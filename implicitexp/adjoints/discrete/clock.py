"""How the ends of the steps move with the times that a solve was given.

The step sizes of an adaptive controller are constants of Diffrax's derivative (it stops the gradient of the factor by which
a step grows); still the ends of the steps depend on t0, t1, dt0 and on times that the controller holds: with constant steps
t_n = t0 + n (t1 - t0)/N, with adaptive ones t_n = t0 + constant except for the last, which is t1. `Moving` carries the
derivatives along, one column for each of those times, exactly as Diffrax's own loop would differentiate them.
"""

from typing import Any

import diffrax as dfx
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from implicitexp.adjoints.diffrax_private import Solve, clip_to_end

ROUND_TO_END = 100  # units in the last place: as near to t1 as this, Diffrax's loop steps to t1


def floats(tree: PyTree) -> PyTree:
    return eqx.filter(tree, eqx.is_inexact_array)


def leaves_gaps(controller: Any) -> bool:
    """Whether a step may start later than the one before it stopped, as after a jump of the field."""
    if type(controller) is dfx.ClipStepSizeController:
        return controller.jump_ts is not None or leaves_gaps(controller.controller)
    return type(controller) not in (dfx.PIDController, dfx.ConstantStepSize, dfx.StepTo)


class Times(eqx.Module):
    """The times that a solve is given: its first two step ends, t1, and what the controller holds."""

    tprev: Any
    tnext: Any
    end: Any
    state: PyTree
    controller: PyTree

    @classmethod
    def of(cls, solve: Solve) -> "Times":
        state = solve.init_state
        held = floats((state.controller_state, solve.stepsize_controller))
        return cls(state.tprev, state.tnext, solve.t1, *held)


class Clock(eqx.Module):
    """The times that are differentiated, as one vector, and the identity as columns."""

    columns: Times
    size: int = eqx.field(static=True)
    unravel: Any = eqx.field(static=True)

    @classmethod
    def of(cls, solve: Solve, perturbed: Solve) -> "Clock | None":
        """None where no time is differentiated. `perturbed`: which leaves are."""
        times, moved = Times.of(solve), _marks(solve, perturbed)
        moving, fixed = eqx.partition(times, moved)
        flat, unravel = ravel_pytree(moving)
        if not flat.size:
            return None
        zero = jax.tree.map(lambda x: jnp.zeros((flat.size, *jnp.shape(x)), jnp.result_type(x)), fixed)
        return cls(eqx.combine(jax.vmap(unravel)(jnp.eye(flat.size, dtype=flat.dtype)), zero), flat.size, unravel)

    def cotangents(self, total: Array) -> Times:
        """Of the times, from a cotangent for each column; None where a time is not differentiated."""
        return self.unravel(total)

    def started(self, solve: Solve) -> Solve:
        """The same solve with a controller that carries the columns."""
        columns = self.columns
        moving = Moving(solve.stepsize_controller, solve.t1, columns.controller, columns.end)
        carried = (solve.init_state.controller_state, (columns.tprev, columns.tnext, columns.state))
        return eqx.tree_at(
            lambda s: (s.stepsize_controller, s.init_state.controller_state),
            solve,
            (moving, carried),
            is_leaf=lambda x: x is None,
        )

    @staticmethod
    def motion(state: Any) -> tuple[Array, Array]:
        """d(tprev)/d(times), d(tnext)/d(times) of the step that comes next."""
        tprev, tnext, _ = state.controller_state[1]
        return tprev, tnext


def _marks(solve: Solve, perturbed: Solve) -> Times:
    """`Times` of booleans."""
    held = (solve.init_state.controller_state, solve.stepsize_controller)
    flags = (perturbed.init_state.controller_state, perturbed.stepsize_controller)
    marks = jax.tree.map(lambda x, flag: flag if eqx.is_inexact_array(x) else None, held, flags)
    state = perturbed.init_state
    return Times(state.tprev, state.tnext, perturbed.t1, *marks)


class Moving(eqx.Module):
    """A step size controller whose state carries the columns of the step's two ends and of its own numbers."""

    controller: Any
    end: Array
    of_controller: PyTree
    of_end: Array

    def adapt_step_size(self, t0, t1, y0, y1_candidate, args, y_error, error_order, controller_state):
        state, moves = controller_state
        fixed = (y0, y1_candidate, args, y_error, error_order)
        keep, start, stop, jump, new, result = self.controller.adapt_step_size(t0, t1, *fixed, state)
        moves = self._moved(fixed, (t0, t1, state), moves)
        return keep, start, stop, jump, (new, moves), result

    def _moved(self, fixed: Any, before: Any, moves: PyTree) -> PyTree:
        """The columns after the step, with what Diffrax's loop does to the controller's answer."""
        t0, t1, state = before
        held, rest = eqx.partition((state, self.controller), eqx.is_inexact_array)

        def advance(t0, t1, end, held):
            state, controller = eqx.combine(held, rest)
            keep, start, stop, _, new, _ = controller.adapt_step_size(t0, t1, *fixed, state)
            start = jnp.minimum(start, end)
            stop = clip_to_end(start, stop, end, floor(end), keep)
            return start, stop, floats(new)

        def push(of_t0, of_t1, of_state, of_end, of_controller):
            tangents = (of_t0, of_t1, of_end, (of_state, of_controller))
            return jax.jvp(advance, (t0, t1, self.end, held), tangents)[1]

        of_t0, of_t1, of_state = moves
        return jax.vmap(push)(of_t0, of_t1, of_state, self.of_end, self.of_controller)


def floor(end: Array) -> Array:
    """Where the end of a step counts as t1."""
    end = jax.lax.stop_gradient(end)
    for _ in range(ROUND_TO_END):
        end = eqxi.prevbefore(end)
    return end
