"""The discrete adjoint of an ODE solve: the accepted steps are recorded, and walked backwards one by one.

`diffrax.diffeqsolve(..., adjoint=Replay())` gives the derivative that backpropagation through the solver gives, to rounding:
that of the computed solution with every accepted step held fixed. The loop of the solve is not differentiated: neither the
rejected steps, nor the error estimate, nor the root finder of an implicit stage is part of the backward pass.
"""

from typing import Any, Literal

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp

from implicitexp.adjoints.diffrax_private import AbstractPlugin, Passed, Solve, is_none
from implicitexp.adjoints.discrete.clock import Clock, leaves_gaps
from implicitexp.adjoints.discrete.cotangents import as_solve, judged, once
from implicitexp.adjoints.discrete.events import end_is_located, refuse_unlocated
from implicitexp.adjoints.discrete.outputs import Model, saved_outputs
from implicitexp.adjoints.discrete.record import Recording, Taped, run, traced_once
from implicitexp.adjoints.discrete.setup import around, bounded, checked, plain, tied, with_stages
from implicitexp.adjoints.discrete.tableau import Scheme
from implicitexp.adjoints.discrete.walk import Walk

# What `auto` keeps. Each lane of a vmap keeps as much, so it is little unless the user has counted the steps.
STATES, COUNTED_STATES, STAGES = 2**17, 2**23, 2**20  # bytes
KEPT = 128  # states, where not all of them fit
DEFAULT_MAX_STEPS = 4096  # of diffeqsolve


class Replay(AbstractPlugin):
    """Backpropagate by walking the accepted steps backwards, each by the transpose of one Runge-Kutta step.

    Use as `diffrax.diffeqsolve(..., adjoint=Replay())`. For n states, p parameters, N accepted steps of s stages the backward
    pass costs N s evaluations of the vector field (twice that where n + p <= 1024, for a program that compiles sooner) and N s
    products with its transposed Jacobian; for an implicit method besides, in each stage, its Jacobian and the LU
    factorisation of I - h a_ii J, or, for n > 48, one in each step, which serves its stages by refinement to rounding. Memory:
    2 `max_steps` times, and

    - `store="auto"`: the state at the start of each step, if `max_steps` of them fit into 128 KiB, else 128, and where there are
      more steps they are done again between them: all arrays of JAX have a fixed length, each lane of a `vmap` has its own, and
      to fill `max_steps` large states takes longer than a solve of few steps. With steps of given lengths and a `max_steps` of
      the user's, who has then counted the steps, 8 MiB. The stages of an implicit method too, if all of them fit into 1 MiB;
    - `store="steps"`: the state at the start of each step, `max_steps` n numbers;
    - `store="stages"`: the stages too, `max_steps` (s + 1) n numbers; an implicit method's are then not solved for again;
    - `store=k`: k states (rounded up to an even number) and max_steps/k besides; what lies between is computed again.

    Differentiated are y0, args, the arrays that the vector field and the functions of `saveat` hold or close over, t0, t1,
    dt0, `saveat.ts` and the controller's own times. Terms are `ODETerm`, `ControlTerm` of a path that is no Brownian motion,
    and `MultiTerm` of these; solvers are the Runge-Kutta methods with one tableau, Euler and ImplicitEuler. A solver state
    that is passed in is taken for the slope at the start, as it is after a solve that ended there.

    Second order is forward over reverse: `jax.hessian`, `jvp` of `vjp`; reverse over reverse is refused in words. Forward mode
    alone is refused by JAX.

    Source: A. Sandu 2006, "On the properties of Runge-Kutta discrete adjoints", ICCS, with the step sizes held fixed.

    Raises:
        Unsupported: a stochastic equation, a solver without a tableau, complex states of an implicit method; a derivative of
            the time at which an event ended the solve, where the event has no root finder or a condition without sign.
        ValueError: `max_steps=None`, where the number of steps to record has no bound; `store` not as above.
    """

    store: Literal["auto", "steps", "stages"] | int = "auto"

    def __check_init__(self):
        number = isinstance(self.store, int) and not isinstance(self.store, bool) and self.store >= 1
        if self.store not in ("auto", "steps", "stages") and not number:
            raise ValueError(
                f'store={self.store!r}: give "auto", "steps", "stages" or the number of states to keep, at least 1'
            )

    def solve(self, given: Solve, passed: Passed, throw: bool) -> tuple[Any, dict]:
        """The loop over the steps is `_steps`, with a derivative of its own; what Diffrax does before and after it, such as
        finding the time of an event, is differentiated as it stands."""
        del throw, passed
        scheme = checked(given.solver, given.terms, given.init_state.y, "Replay")
        plan = _Plan(scheme, self.store, end_is_located(given))
        return around(given, scheme, lambda solve: _steps(solve, plan=plan))


class _Plan(eqx.Module):
    scheme: Scheme = eqx.field(static=True)
    store: Literal["auto", "steps", "stages"] | int = eqx.field(static=True)
    located: bool = eqx.field(static=True)

    def recording(self, clock: Clock | None, solve: Solve) -> Recording:
        """Euler's one stage is not worth keeping; to do an implicit step again takes the solver's own state."""
        implicit, store = self.scheme.implicit, self.store
        number = sum(x.nbytes for x in jax.tree.leaves(solve.init_state.y))
        if store == "auto" and implicit and (len(self.scheme) + 1) * number * (solve.max_steps or 0) <= STAGES:
            store = "stages"
        stages = store == "stages" and (self.scheme.keeps_stages or implicit)
        count = None if isinstance(store, str) else store + store % 2
        if store == "auto" and (solve.max_steps or 0) * number > _room(solve):
            count = KEPT
        again = implicit and not stages
        gaps = leaves_gaps(solve.stepsize_controller)
        return Recording(count, clock, stages, carries_state=again, jumps=again, gaps=gaps)

    def run(self, solve: Solve, clock: Clock | None) -> Taped:
        """The steps, recorded; the final state is as the solver and the controller alone would leave it."""
        recording = self.recording(clock, solve)
        started = plain(solve) if clock is None else clock.started(plain(solve))
        if recording.stages:
            started = with_stages(started, self.scheme)
        taped = traced_once(started, recording)
        final = taped.final
        if recording.stages:
            final = eqx.tree_at(lambda s: s.solver_state, final, final.solver_state[0], is_leaf=is_none)
        if clock is not None:
            final = eqx.tree_at(lambda s: s.controller_state, final, final.controller_state[0], is_leaf=is_none)
        return Taped(final, taped.record)


def _room(solve: Solve) -> int:
    """Bytes for all states."""
    counted = solve.max_steps != DEFAULT_MAX_STEPS and type(solve.stepsize_controller) in (
        dfx.ConstantStepSize,
        dfx.StepTo,
    )
    return COUNTED_STATES if counted else STATES


# -- the loop over the steps, and its derivative --------------------------------------------------------------------------


@eqx.filter_custom_vjp
def _steps(solve: Solve, *, plan: _Plan) -> Any:
    """The state after the last step. The record is not used, so the compiler leaves it out; it is made because the program
    with it, traced here, is the one that a derivative asks for next."""
    taped = run(plain(solve), None) if solve.max_steps is None else plan.run(solve, None)
    return tied(taped.final, solve)


@_steps.def_fwd
def _forward(perturbed: Any, solve: Solve, *, plan: _Plan) -> tuple[Any, Any]:
    bounded(solve, "Replay")
    clock = Clock.of(solve, perturbed)
    taped = plan.run(solve, clock)
    return tied(taped.final, solve), (taped.final, taped.record, clock, perturbed)


@_steps.def_bwd
def _backward(residuals: Any, cotangent: Any, perturbed: Any, solve: Solve, *, plan: _Plan) -> Any:
    del perturbed  # arrays by now; in the residuals they are still known while this is traced
    if not plan.located:
        refuse_unlocated(cotangent, "Replay")
    final, record, clock, perturbed = residuals
    solve_ = plain(solve)
    model, theta = Model.split(solve_, perturbed)
    saved = saved_outputs(solve_, final, cotangent)
    moved = Walk(solve_, plan.scheme, model, theta, record, final, cotangent, saved)()
    y, total = judged(moved, jnp.array(True), solve_, final, cotangent)
    return once(as_solve(solve, y, total, clock, cotangent), "Replay")
