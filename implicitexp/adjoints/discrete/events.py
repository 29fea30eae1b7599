"""Where the time at which an event ended a solve has no derivative, and is asked for one."""

from typing import Any

import jax
import jax.numpy as jnp

from implicitexp.adjoints.diffrax_private import Solve, save_states
from implicitexp.errors import Unsupported


def end_is_located(given: Solve) -> bool:
    """Whether the end of the solve is t1, or the root of an event's condition: without a root finder, or where the condition is
    true or false, Diffrax ends at the end of a step, wherever the event was."""
    if given.event is None:
        return True
    if given.event.root_finder is None:
        return False
    names = ("terms", "solver", "t0", "t1", "dt0", "saveat", "stepsize_controller", "max_steps")
    rest = {name: getattr(given, name) for name in names}

    def is_boolean(fn: Any) -> bool:
        value = jax.eval_shape(lambda: jnp.asarray(fn(given.t0, given.init_state.y, given.args, **rest)))
        return value.dtype == jnp.bool_

    return not any(is_boolean(fn) for fn in jax.tree.leaves(given.event.cond_fn, is_leaf=callable))


def refuse_unlocated(cotangent: Any, name: str) -> None:
    """Refuse the cotangent of a final state that has one of a time. For a solve whose end is not located."""
    times = [cotangent.tprev, *(saved.ts for saved in save_states(cotangent))]
    if any(time is not None for time in times):
        raise Unsupported(
            f"{name} has no derivative of the time at which this event ended the solve, since that is the end of a step and "
            "not the event's (Diffrax's own derivative there is a silent zero): give the event a condition that changes its "
            "sign and a root finder, diffrax.Event(condition, optimistix.Newton(1e-8, 1e-8)), or take the times of the "
            "solution as constants, jax.lax.stop_gradient(solution.ts)"
        )
