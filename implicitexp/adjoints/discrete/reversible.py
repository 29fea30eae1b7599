"""An algebraically reversible solve of an ODE: its gradient is exact, and hardly a state of the forward pass is kept.

Backwards the states are made again from the last ones, and each step is transposed by the way: the same two increments serve
both. `coupled.py` has the method.

Source: S. McCallum and J. Foster 2024, "Efficient, Accurate and Stable Gradients for Neural ODEs", arXiv 2410.11648.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp

from implicitexp.adjoints.diffrax_private import AbstractPlugin, Passed, Solve, is_none
from implicitexp.adjoints.discrete.clock import Clock, leaves_gaps
from implicitexp.adjoints.discrete.cotangents import as_solve, judged, once
from implicitexp.adjoints.discrete.coupled import Coupled, coupling_of
from implicitexp.adjoints.discrete.events import end_is_located, refuse_unlocated
from implicitexp.adjoints.discrete.outputs import Model, saved_outputs
from implicitexp.adjoints.discrete.record import Recording, run, traced_once
from implicitexp.adjoints.discrete.reversible_walk import RegularEnds, ReversibleWalk
from implicitexp.adjoints.discrete.setup import around, bounded, checked, tied, with_forward_mode
from implicitexp.adjoints.discrete.tableau import Scheme
from implicitexp.errors import Unsupported


class Reversible(AbstractPlugin):
    """Solve by the reversible form of the solver, and backpropagate without any stored state.

    Use as `diffrax.diffeqsolve(..., adjoint=Reversible())`, with an explicit Runge-Kutta solver. The solution is that of the
    reversible method, which has the order of the solver and is not the same number: the gradient is that of what is returned,
    to rounding. A step costs two of the solver's, forwards and backwards. Memory: 2 `checkpoints` states, whatever the number of
    steps; under an error control the times and couplings of the steps besides, 3 `max_steps` numbers (with constant steps they
    are known).

    `coupling` c lies in (0, 1]; the method needs one that is not larger than what a step leaves of a component of the solution,
    and backwards rounding grows by up to 1/c a step. None: each step has the c that keeps the two solutions of the method
    together to 0.3 of the controller's tolerance; with constant steps, c = exp(-32/N) for N of them, at least 0.1; up to an event
    with constant steps, 0.95. A number is taken for every step: 0.999 is McCallum and Foster's, and on Lotka-Volterra at
    rtol = 1e-6 its gradient would be off by 0.4, that of the default is by 1.3e-3 and that of `Replay` by 2.3e-4. Where the two
    solutions are more than 1000 tolerances apart, neither is one, and the gradient is NaN.

    `checkpoints`: so many states are kept, evenly among the steps, and taken up again when the walk comes to them, so that
    rounding grows over the steps between two of them only. Where the walk comes to one and is off by more than the square root
    of the rounding, the gradient is NaN: the field contracts by too much for its steps to be undone, and `Replay` is the
    adjoint to take (or more `checkpoints`).

    `SaveAt`, events, t0, t1, args and second derivatives are as for `Replay`. A solver state that is passed in must come from
    a solve with this adjoint.

    Source: S. McCallum and J. Foster 2024, arXiv 2410.11648, equations 3 to 5, where c is one number and nothing is kept.

    Raises:
        Unsupported: a stochastic equation, an implicit solver, a solver without a tableau; the time of an event as for `Replay`.
        ValueError: `coupling` outside (0, 1]; `checkpoints` below 2; `max_steps=None` with steps that have to be recorded.
    """

    coupling: float | None = None
    checkpoints: int = 16

    def __check_init__(self):
        if self.coupling is not None and not 0 < self.coupling <= 1:
            raise ValueError(f"coupling={self.coupling!r} has to lie in (0, 1], or to be None, which chooses it")
        if self.checkpoints < 2:
            raise ValueError(f"checkpoints={self.checkpoints!r}: keep at least 2 states")

    def solve(self, given: Solve, passed: Passed, throw: bool) -> tuple[Any, dict]:
        """As for `Replay`, the solver's state being z."""
        del throw
        scheme = checked(given.solver, given.terms, given.init_state.y, "Reversible")
        if scheme.implicit:
            raise Unsupported(
                f"Reversible has no form of {type(given.solver).__name__}, whose steps are solved for: use Replay, or an "
                "explicit solver"
            )
        coupled = Coupled(with_forward_mode(given.solver), coupling_of(given, self.coupling))
        y0 = given.init_state.y
        state = given.init_state.solver_state if passed.solver_state else (y0, jnp.ones_like(given.t0))
        given = eqx.tree_at(lambda s: (s.solver, s.init_state.solver_state), given, (coupled, state), is_leaf=is_none)
        plan = _Plan(scheme, self.checkpoints + self.checkpoints % 2, end_is_located(given))
        return around(given, scheme, lambda solve: _steps(solve, plan=plan))


class _Plan(eqx.Module):
    scheme: Scheme = eqx.field(static=True)
    count: int = eqx.field(static=True)
    located: bool = eqx.field(static=True)

    def recording(self, clock: Clock | None, solve: Solve) -> Recording:
        known = clock is None and RegularEnds.fit(solve)
        gaps = leaves_gaps(solve.stepsize_controller)
        return Recording(self.count, clock, stages=not known, carries_state=True, ends=not known, gaps=gaps)


# -- the loop over the steps, and its derivative --------------------------------------------------------------------------


@eqx.filter_custom_vjp
def _steps(solve: Solve, *, plan: _Plan) -> Any:
    """The state after the last step. The record is not used, as in `Replay`."""
    recording = plan.recording(None, solve)
    if recording.ends and solve.max_steps is None:
        return tied(run(solve, None).final, solve)
    return tied(traced_once(solve, recording).final, solve)


@_steps.def_fwd
def _forward(perturbed: Any, solve: Solve, *, plan: _Plan) -> tuple[Any, Any]:
    clock = Clock.of(solve, perturbed)
    recording = plan.recording(clock, solve)
    if recording.ends:
        bounded(solve, "Reversible")
    taped = traced_once(solve if clock is None else clock.started(solve), recording)
    final = taped.final
    if clock is not None:
        final = eqx.tree_at(lambda s: s.controller_state, final, final.controller_state[0], is_leaf=is_none)
    return tied(final, solve), (final, taped.record, clock, perturbed)


@_steps.def_bwd
def _backward(residuals: Any, cotangent: Any, perturbed: Any, solve: Solve, *, plan: _Plan) -> Any:
    del perturbed  # arrays by now; in the residuals they are still known while this is traced
    if not plan.located:
        refuse_unlocated(cotangent, "Reversible")
    final, record, clock, perturbed = residuals
    model, theta = Model.split(solve, perturbed)
    saved = saved_outputs(solve, final, cotangent)
    *moved, right = ReversibleWalk(solve, plan.scheme, model, theta, record, final, cotangent, saved)()
    y, z, total = judged(moved, right, solve, final, cotangent)
    return once(as_solve(solve, y, total, clock, cotangent, (z, None)), "Reversible")
