"""What the continuous adjoints for Diffrax share: the derivative rule, cotangents in and out.

`diffeqsolve(..., adjoint=Gauss())` comes to `AbstractContinuous.loop`. The solve is a function of a `Problem` with a
derivative of its own (`linear_map`): forward mode solves sensitivities, reverse mode what the class says. The tolerances,
dt0 and the step controller's numbers have no derivative: those of the ODE's solution do not depend on them.
"""

import abc
import dataclasses
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from implicitexp.adjoints.continuous.diffrax_event import NO_TIME
from implicitexp.adjoints.continuous.diffrax_forward import Frame, Recording, Setup, Solved, solve_and_record
from implicitexp.adjoints.continuous.diffrax_outputs import Saved
from implicitexp.adjoints.continuous.diffrax_problem import Chosen, Problem, is_moving
from implicitexp.adjoints.continuous.trees import scaled
from implicitexp.adjoints.continuous.walk import Backward, Outputs
from implicitexp.adjoints.diffrax_private import AbstractPlugin, Passed, Solve
from implicitexp.adjoints.implicit.linear_map import linear_map

Tap = list[Array]
ONLY_ONCE = (
    "Reverse mode of a continuous adjoint gives first derivatives, and is not itself differentiated. For second derivatives "
    "use ForwardSensitivity(), Replay() or diffrax.DirectAdjoint."
)
ONLY_OUTPUTS = (
    "A continuous adjoint differentiates sol.ys and sol.ts only, not dense output, solver_state or controller_state. Save "
    "at `ts` instead, or use diffrax.RecursiveCheckpointAdjoint."
)


class AbstractContinuous(AbstractPlugin):
    """An adjoint for `diffrax.diffeqsolve` that solves the ODE's own adjoint or sensitivity equations.

    Differentiated: `y0`, `args`, whatever the terms hold or close over, `t0`, `t1`, `SaveAt(ts=...)`, and what the `fn` of
    a `SaveAt` holds. Every form of `SaveAt`: `t0`, `t1`, `ts`, `subs`, `fn`, and `steps` (whose times are constants but for
    the last, t1); `dense` may be saved, and is not differentiated. Where forward or backward solve fail and `throw` is
    false, the gradient of that lane is NaN, unless its cotangent is zero.

    Events: what is saved at the end moves with the event's time, by y0, args, t0 and all that the condition holds or closes
    over (`diffrax_event`). With a root finder the time is that of the root. Without one the solve ends with the step in which
    the condition changed its sign, and the derivative is that of the time at which the condition passes through the level
    that it has there: right to first order in the step. Of a condition that is a boolean the time has no derivative: what is
    saved at the end moves as at a fixed time (right for a steady state), and a loss that looks at `sol.ts` there raises, or
    is NaN without `throw`; forward mode makes its tangent NaN.

    Second derivatives: forward mode of `jax.jvp` and `jax.jacfwd`, to any order, by sensitivities of the sensitivities.
    Forward mode of `jax.grad`: see `ForwardSensitivity`; of the others it raises.

    **Raises** `Unsupported` for SDEs, and solvers of another structure than one ODE; `RuntimeError` for second derivatives
    in reverse mode, or with an event.
    """

    @abc.abstractmethod
    def recording(self, problem: Problem, setup: Setup) -> Recording:
        """What the backward solve needs of the forward one, besides y at the outputs."""

    @abc.abstractmethod
    def tangents(self, solved: Solved, moving: list[Array]) -> tuple[list[PyTree], list[Array]]:
        """Of what every SubSaveAt saved, and of its times. Leading axis, of `moving` too: direction."""

    @abc.abstractmethod
    def backward(self, solved: Solved, ahead: Outputs, saved: Saved) -> tuple[Backward, list[Array]]:
        """lambda(t0) and the integral over the field's theta; and the cotangents of `tap`."""

    def pull(self, solved: Solved, ys: list[PyTree], ts: list[Array]) -> tuple[list[Array], Tap]:
        """Cotangents of theta and of the tap."""
        return pull_back(self, eqxi.nondifferentiable(solved, msg=ONLY_ONCE), ys, ts)

    def check_reverse(self, numbers: int) -> None:  # noqa: B027 (most refuse nothing)
        """Called when reverse mode is asked for, of that many numbers. **Raises** `Unsupported` where it is refused."""

    def tap(self) -> Tap:
        """Inputs whose cotangents are what is to be known of the backward solve."""
        return []

    def solve(self, given: Solve, passed: Passed, throw: bool) -> tuple[Any, dict]:
        name, saveat = type(self).__name__, given.saveat
        given = dataclasses.replace(given, init_state=_passed(name, given.init_state, *passed))
        problem = Problem.of(name, given)
        frame = Frame(saveat.dense or saveat.solver_state or saveat.controller_state)
        final = frame.closed(_solve(problem, self.tap(), setup=Setup.of(self, given, throw), frame=frame))
        return final, {}


@eqx.filter_custom_jvp
def _solve(problem: Problem, tap: Tap, *, setup: Setup, frame: Frame) -> tuple:
    del tap
    return frame.opened(setup.run(problem)[0])


@_solve.def_jvp
def _solve_jvp(primals, tangents, *, setup: Setup, frame: Frame):
    problem, tap = primals
    watched = [jnp.zeros_like(x) if t is None else t for x, t in zip(tap, tangents[1], strict=True)]
    out, known = _recorded(problem, setup=setup, frame=frame)
    return out, _moved(problem, tangents[0], watched, out, frame.known(known))


@eqx.filter_custom_jvp
def _recorded(problem: Problem, *, setup: Setup, frame: Frame) -> tuple:
    """`_solve`, and what was recorded, which is a constant of every derivative: those of `problem` are in `_moved`."""
    solved, final = solve_and_record(setup, problem)
    return frame.opened(final), frame.noted(solved)


@_recorded.def_jvp
def _recorded_jvp(primals, tangents, *, setup: Setup, frame: Frame):
    (problem,) = primals
    out, known = _recorded(problem, setup=setup, frame=frame)
    moved = _moved(problem, tangents[0], [], out, frame.known(known))
    return (out, known), (moved, jax.tree.map(lambda _: None, known))


def _moved(problem: Problem, tangents: Problem, watched: Tap, out: tuple, solved: Solved) -> tuple:
    """Tangents of `out`. `solved`: of the problem, all but `chosen`."""
    where = is_moving(tangents, problem)
    flat = jax.tree.structure(problem).flatten_up_to(tangents)
    solved = dataclasses.replace(solved, chosen=Chosen.of(problem, where))
    moved = _tangent_map(solved, out[:3], [flat[i] for i in where], watched)
    return (*moved, jax.tree.map(lambda _: None, out[3]))


def _tangent_map(solved: Solved, like: tuple, moving: list[Array], watched: Tap) -> tuple:
    """The derivative of `like`, linear in `moving` and `watched`."""
    arrays, static = eqx.partition(solved, eqx.is_array)
    opaque = {i: (x.shape, x.dtype) for i, x in like[2].items()}

    def push(arrays, tangents):
        solved = eqx.combine(arrays, static)
        ys, ts = jax.tree.map(lambda x: x[0], solved.setup.adjoint.tangents(solved, [t[None] for t in tangents[0]]))
        return ys, ts, {i: jnp.full(shape, jnp.nan, dtype) for i, (shape, dtype) in opaque.items()}

    def pull(arrays, cotangents):
        solved = eqx.combine(arrays, static)
        ys, ts, others = cotangents
        moved, tap = solved.setup.adjoint.pull(solved, ys, ts)
        lost = _refused(solved, ts, list(others.values()))
        return jax.tree.map(lambda x: jnp.where(lost, jnp.nan, x), moved), tap

    def check():
        static.setup.adjoint.check_reverse(sum(x.size for x in moving))

    return linear_map(push, pull, arrays, (moving, watched), like=like, check=check)


def _refused(solved: Solved, by_time: list[Array], others: list[Array]) -> Array:
    """Whether there is a cotangent of what has no derivative: an error, if errors are raised."""
    whole = [jnp.any(c != 0) for c in others]
    booleans = []
    if solved.ending.met:
        held = solved.ending.held(solved.chosen.problem())
        booleans = [held & jnp.any(row.at_end & (c != 0)) for row, c in zip(solved.rows, by_time, strict=True)]
    refused = jnp.array(False)
    for found, message in ((whole, ONLY_OUTPUTS), (booleans, NO_TIME)):
        if found:
            lost = jnp.any(jnp.stack(found))
            refused = refused | (eqx.error_if(lost, lost, message) if solved.setup.throw else lost)
    return refused


def pull_back(adjoint: Any, solved: Solved, ys: list[PyTree], ts: list[Array]) -> tuple[list[Array], Tap]:
    """By the adjoint state: its cotangents are brought to norm one, `backward` solves, the boundary terms are added."""
    chosen, theta = solved.chosen, solved.chosen.theta
    problem = chosen.problem()
    if not solved.rows:
        return jax.tree.map(jnp.zeros_like, theta), adjoint.tap()
    saved, size = Saved.of(solved, ys, ts, problem).normalized(problem.y0)
    result, tap = adjoint.backward(solved, saved.outputs(problem.y0), saved)
    edge, pullback = jax.vjp(lambda theta: saved.boundary(problem, chosen.problem(theta), result.adjoint), theta)
    (at_edge,) = pullback(jnp.ones_like(edge))
    inside = [*result.theta, *(0 for _ in at_edge[len(result.theta) :])]
    good = solved.succeeded & result.converged
    if solved.setup.throw:
        good = eqx.error_if(good, solved.succeeded & ~result.converged, _failed(adjoint))
    # A lane whose outputs the loss does not use has the gradient zero, whether it failed or not.
    unused = ~jnp.any(jnp.stack([jnp.any(c != 0) for c in jax.tree.leaves((saved.by_value, saved.by_time))]))
    factor = jnp.where(unused, 0, jnp.where(good, size, jnp.nan))
    moved = [jnp.where(unused, 0, a + b) for a, b in zip(at_edge, inside, strict=True)]
    return scaled(moved, factor), tap


def _failed(adjoint: Any) -> str:
    return (
        f"The backward solve of {type(adjoint).__name__} failed: too many steps, or numbers that are not finite. Try "
        "looser tolerances (rtol, atol), a larger max_steps of the adjoint, or Replay()."
    )


def _passed(name: str, state: Any, solver_state: bool, controller_state: bool) -> Any:
    """States that the user passed must not be differentiated: that would be lost."""
    for given, field in ((solver_state, "solver_state"), (controller_state, "controller_state")):
        if given:
            value = eqxi.nondifferentiable(getattr(state, field), name=f"With adjoint={name}(), {field}")
            state = eqx.tree_at(lambda s, field=field: getattr(s, field), state, value, is_leaf=lambda x: x is None)
    return state
