"""What the continuous adjoints for Diffrax share: the forward solve, its derivative rule, cotangents in and out.

`diffeqsolve(..., adjoint=Gauss())` comes to `AbstractContinuous.loop`. The solve is a function of a `Problem` with a
derivative of its own (`linear_map`): forward mode solves sensitivities, reverse mode what the class says. The tolerances,
dt0 and the step controller's numbers have no derivative: those of the ODE's solution do not depend on them.
"""

import abc
import dataclasses
import functools
from typing import Any

import diffrax as dfx
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from implicitexp.errors import Unsupported

from .diffrax_outputs import Rows, Saved
from .diffrax_private import SaveState, Solve, outputs, save_states, save_y
from .diffrax_problem import Chosen, Problem, is_moving
from .diffrax_tangents import tangents_of
from .linear_map import linear_map
from .trajectory import plain
from .trees import scaled
from .walk import Backward, Outputs

plain_loop = functools.partial(eqxi.while_loop, kind="lax")
Tap = list[Array]
ONLY_ONCE = (
    "A continuous adjoint gives first derivatives, and is not itself differentiated. For second derivatives use Replay() or "
    "diffrax.DirectAdjoint."
)
ONLY_OUTPUTS = (
    "A continuous adjoint differentiates sol.ys and sol.ts only, not dense output, solver_state or controller_state. Save "
    "at `ts` instead, or use diffrax.RecursiveCheckpointAdjoint."
)


class Recording(eqx.Module):
    """What else the forward solve has to save."""

    subs: list[dfx.SubSaveAt]
    states: list[Any]  # Diffrax's SaveStates: their buffers
    infos: PyTree = None  # the buffer of every step's interpolation


class Setup(eqx.Module):
    """How a problem is solved: everything of the call that is not differentiated."""

    adjoint: Any
    solve: Solve  # without what stands in the problem
    throw: bool = eqx.field(static=True)

    @classmethod
    def of(cls, adjoint: Any, solve: Solve, throw: bool) -> "Setup":
        blank = jax.tree.map(lambda sub: _with(sub, None, None), solve.saveat.subs, is_leaf=_is_sub)
        state = eqx.tree_at(lambda s: s.y, solve.init_state, None)
        solve = dataclasses.replace(
            solve, args=None, terms=None, t0=None, t1=None, saveat=_saving(solve.saveat, blank), init_state=state
        )
        adjoint, solve = _without_derivative((adjoint, dataclasses.replace(solve, solver=plain(solve.solver))))
        return cls(adjoint, solve, throw)

    def run(self, problem: Problem, recording: Recording | None = None) -> tuple[Any, list[Any]]:
        """-> Diffrax's final state as if nothing else had been recorded, and the SaveStates of what was."""
        recording = Recording([], []) if recording is None else recording
        subs, treedef = jax.tree.flatten(self.solve.saveat.subs, is_leaf=_is_sub)
        subs = [_with(*x) for x in zip(subs, problem.ts, problem.fns, strict=True)]
        saveat = _saving(
            self.solve.saveat,
            (treedef.unflatten(subs), recording.subs),
            dense=self.keeps_infos or recording.infos is not None,
        )
        solve = dataclasses.replace(
            self.solve,
            args=problem.args,
            terms=problem.terms(),
            t0=problem.t0,
            t1=problem.t1,
            saveat=saveat,
            init_state=self._start(problem, recording),
        )
        final, _ = solve.run(plain_loop, plain_loop)
        own, others = final.save_state
        return eqx.tree_at(lambda s: s.save_state, final, own, is_leaf=_is_none), others

    def _start(self, problem: Problem, recording: Recording) -> Any:
        state = self.solve.init_state
        both = (state.save_state, recording.states)
        state = eqx.tree_at(lambda s: (s.y, s.save_state), state, (problem.y0, both), is_leaf=_is_none)
        if recording.infos is None or self.keeps_infos:
            return state
        length = jax.tree.leaves(recording.infos)[0].shape[0] + 1
        dense = (jnp.full(length, jnp.inf, problem.t0.dtype), recording.infos, 0)
        return eqx.tree_at(lambda s: (s.dense_ts, s.dense_infos, s.dense_save_index), state, dense, is_leaf=_is_none)

    def solved(self) -> "Setup":
        """What a backward solve needs of it: no buffers."""
        return dataclasses.replace(self, solve=dataclasses.replace(self.solve, init_state=None, progress_meter=None))

    @property
    def keeps_infos(self) -> bool:
        """Whether the user asked for dense output."""
        return self.solve.saveat.dense

    @property
    def subs(self) -> list[Any]:
        return outputs(self.solve.saveat)


class Solved(eqx.Module):
    """A forward solve, as the derivative needs it."""

    chosen: Chosen
    setup: Setup
    rows: list[Rows]
    recorded: list[Any]  # SaveStates of the recording
    infos: tuple[Array, PyTree] | None  # ends of steps, what interpolates inside them
    accepted: Array
    succeeded: Array


class AbstractContinuous(dfx.AbstractAdjoint):
    """An adjoint for `diffrax.diffeqsolve` that solves the ODE's own adjoint or sensitivity equations.

    Differentiated: `y0`, `args`, whatever the terms hold or close over, `t0`, `t1`, `SaveAt(ts=...)`, and what the `fn` of
    a `SaveAt` holds. Every form of `SaveAt`: `t0`, `t1`, `ts`, `subs`, `fn`, and `steps` (whose times are constants but for
    the last, t1); `dense` may be saved, and is not differentiated. Where forward or backward solve fail and `throw` is
    false, the gradient of that lane is NaN, unless its cotangent is zero.

    **Raises** `Unsupported` for events, SDEs, and solvers of another structure than one ODE.
    """

    @abc.abstractmethod
    def recording(self, problem: Problem, setup: Setup) -> Recording:
        """What the backward solve needs of the forward one, besides y at the outputs."""

    @abc.abstractmethod
    def backward(self, solved: Solved, ahead: Outputs, saved: Saved) -> tuple[Backward, list[Array]]:
        """lambda(t0) and the integral over the field's theta; and the cotangents of `tap`."""

    def tangents(self, solved: Solved, moving: list[Array]) -> tuple[list[PyTree], list[Array]]:
        """Of what every SubSaveAt saved, and of its times. Leading axis, of `moving` too: direction."""
        return tangents_of(solved, moving, in_error_test=True)

    def pull(self, solved: Solved, ys: list[PyTree], ts: list[Array]) -> tuple[list[Array], Tap]:
        """Cotangents of theta and of the tap."""
        return pull_back(self, solved, ys, ts)

    def check_reverse(self, numbers: int) -> None:  # noqa: B027 (most refuse nothing)
        """Called when reverse mode is asked for, of that many numbers. **Raises** `Unsupported` where it is refused."""

    def tap(self) -> Tap:
        """Inputs whose cotangents are what is to be known of the backward solve."""
        return []

    def loop(
        self, *, args, terms, solver, stepsize_controller, event, saveat, t0, t1, dt0, max_steps, throw, init_state,
        passed_solver_state, passed_controller_state, progress_meter,
    ):  # fmt: skip
        name = type(self).__name__
        if event is not None:
            raise Unsupported(
                f"{name} does not differentiate the time of an event; use diffrax.RecursiveCheckpointAdjoint."
            )
        init_state = _passed(name, init_state, passed_solver_state, passed_controller_state)
        solve = Solve(
            args, terms, solver, stepsize_controller, None, saveat, t0, t1, dt0, init_state, progress_meter, max_steps
        )
        problem = Problem.of(name, solve)
        frame = Frame(saveat.dense or saveat.solver_state or saveat.controller_state)
        final = frame.closed(_solve(problem, self.tap(), setup=Setup.of(self, solve, throw), frame=frame))
        return final, {}


class Frame:
    """Takes Diffrax's final state apart: what can be differentiated, what must not be, the rest. `guarded`: whether the
    user gets anything of what must not be."""

    def __init__(self, guarded: bool):
        self.guarded = guarded

    def opened(self, final: Any) -> tuple[list[PyTree], list[Array], dict, dict]:
        """-> values of every SubSaveAt, their times, other floating point numbers, other arrays."""
        leaves, self.treedef = jax.tree.flatten(final)
        self.numbered = save_states(self.treedef.unflatten(range(len(leaves))))

        def floating(i):
            return leaves[i] if eqx.is_inexact_array(leaves[i]) else None

        ys = [jax.tree.map(floating, sub.ys) for sub in self.numbered]
        ts = [leaves[sub.ts] for sub in self.numbered]
        saved = {i for sub in self.numbered for i in jax.tree.leaves((sub.ts, sub.ys)) if floating(i) is not None}
        arrays = {i: x for i, x in enumerate(leaves) if i not in saved and eqx.is_array(x)}
        others = {i: x for i, x in arrays.items() if self.guarded and eqx.is_inexact_array(x)}
        rest = {i: x for i, x in arrays.items() if i not in others}
        self.static = {i: x for i, x in enumerate(leaves) if not eqx.is_array(x)}
        return ys, ts, others, rest

    def closed(self, parts: tuple) -> Any:
        """The final state again."""
        ys, ts, others, rest = parts
        found = {**self.static, **rest, **others}
        for sub, values, times in zip(self.numbered, ys, ts, strict=True):
            found[sub.ts] = times
            pairs = zip(jax.tree.leaves(sub.ys), jax.tree.leaves(values, is_leaf=_is_none), strict=True)
            found |= {i: x for i, x in pairs if x is not None}
        return self.treedef.unflatten([found[i] for i in range(len(found))])


@eqx.filter_custom_jvp
def _solve(problem: Problem, tap: Tap, *, setup: Setup, frame: Frame) -> tuple:
    del tap
    return frame.opened(setup.run(problem)[0])


@_solve.def_jvp
def _solve_jvp(primals, tangents, *, setup: Setup, frame: Frame):
    problem, tap = primals
    where = is_moving(tangents[0], problem)
    problem = eqxi.nondifferentiable(problem, msg=ONLY_ONCE)
    solved, final = _solved(setup, Chosen.of(problem, where))
    out = frame.opened(final)
    flat = jax.tree.structure(problem).flatten_up_to(tangents[0])
    watched = [jnp.zeros_like(x) if t is None else t for x, t in zip(tap, tangents[1], strict=True)]
    moved = _tangent_map(solved, out[:3], [flat[i] for i in where], watched)
    return out, (*moved, jax.tree.map(lambda _: None, out[3]))


def _solved(setup: Setup, chosen: Chosen) -> tuple[Solved, Any]:
    """Solve, and record what the derivative needs: -> that, and the final state that the user gets."""
    problem = chosen.problem()
    own = setup.adjoint.recording(problem, setup)
    saved = save_states(setup.solve.init_state)
    beside = [  # y at the times of every SubSaveAt that saves something else
        buffered(_with(sub, ts, None), state.ts, problem.y0)
        for sub, state, ts, fn in zip(setup.subs, saved, problem.ts, problem.fns, strict=True)
        if fn is not None
    ]
    recording = Recording([x[0] for x in beside] + own.subs, [x[1] for x in beside] + own.states, own.infos)
    final, others = setup.run(problem, recording)
    states = iter(others[: len(beside)])
    rows = [
        Rows.of(sub, saved, next(states).ys if fn is not None else saved.ys, problem, ts)
        for sub, saved, fn, ts in zip(setup.subs, save_states(final), problem.fns, problem.ts, strict=True)
    ]
    infos = None if final.dense_infos is None else (final.dense_ts, final.dense_infos)
    if not setup.keeps_infos:
        final = eqx.tree_at(
            lambda s: (s.dense_ts, s.dense_infos, s.dense_save_index), final, (None, None, None), is_leaf=_is_none
        )
    succeeded = final.result == dfx.RESULTS.successful
    accepted = jnp.asarray(final.num_accepted_steps, jnp.int32)
    recorded = others[len(beside) :]
    return Solved(chosen, setup.solved(), rows, recorded, infos, accepted, jnp.asarray(succeeded)), final


def buffered(sub: Any, ts: Array, like: PyTree) -> tuple[Any, Any]:
    """A SubSaveAt that saves something like `like`, and its buffer of the length of `ts`."""
    ys = jax.tree.map(lambda y: jnp.full((ts.size, *y.shape), jnp.inf, y.dtype), like)
    return sub, SaveState(saveat_ts_index=0, ts=ts, ys=ys, save_index=0)


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
        if others:  # not the zeros that they should be: an error, or NaN
            lost = jnp.any(jnp.stack([jnp.any(c != 0) for c in others.values()]))
            lost = eqx.error_if(lost, lost, ONLY_OUTPUTS) if solved.setup.throw else lost
            moved = jax.tree.map(lambda x: jnp.where(lost, jnp.nan, x), moved)
        return moved, tap

    def check():
        static.setup.adjoint.check_reverse(sum(x.size for x in moving))

    return linear_map(push, pull, arrays, (moving, watched), like=like, check=check)


def pull_back(adjoint: Any, solved: Solved, ys: list[PyTree], ts: list[Array]) -> tuple[list[Array], Tap]:
    """By the adjoint state: its cotangents are brought to norm one, `backward` solves, the boundary terms are added."""
    chosen, theta = solved.chosen, solved.chosen.theta
    problem = chosen.problem()
    if not solved.rows:
        return jax.tree.map(jnp.zeros_like, theta), adjoint.tap()
    saved, size = Saved.of(solved.rows, ys, ts, problem).normalized(problem.y0)
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


def _with(sub: Any, ts: Any, fn: Any) -> Any:
    """The SubSaveAt with other times and function (None: y)."""
    return eqx.tree_at(lambda s: (s.ts, s.fn), sub, (ts, save_y if fn is None else fn), is_leaf=_is_none)


def _saving(saveat: dfx.SaveAt, subs: PyTree, dense: bool | None = None) -> dfx.SaveAt:
    """With other outputs."""
    return dfx.SaveAt(
        subs=subs,
        dense=saveat.dense if dense is None else dense,
        solver_state=saveat.solver_state,
        controller_state=saveat.controller_state,
        made_jump=saveat.made_jump,
    )


def _is_sub(x: Any) -> bool:
    return isinstance(x, dfx.SubSaveAt)


def _is_none(x: Any) -> bool:
    return x is None


def _without_derivative(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jax.lax.stop_gradient(x) if eqx.is_inexact_array(x) else x, tree)


def _passed(name: str, state: Any, solver_state: bool, controller_state: bool) -> Any:
    """States that the user passed must not be differentiated: that would be lost."""
    for given, field in ((solver_state, "solver_state"), (controller_state, "controller_state")):
        if given:
            value = eqxi.nondifferentiable(getattr(state, field), name=f"With adjoint={name}(), {field}")
            state = eqx.tree_at(lambda s, field=field: getattr(s, field), state, value, is_leaf=_is_none)
    return state
