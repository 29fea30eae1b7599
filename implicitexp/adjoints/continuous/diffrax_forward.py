"""The forward solve of a continuous adjoint: Diffrax's loop, with what the derivative needs recorded beside it."""

import dataclasses
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from implicitexp.adjoints.continuous.diffrax_event import Ending
from implicitexp.adjoints.continuous.diffrax_keeping import Keeping
from implicitexp.adjoints.continuous.diffrax_outputs import Rows
from implicitexp.adjoints.continuous.diffrax_problem import Chosen, Problem
from implicitexp.adjoints.continuous.trajectory import plain
from implicitexp.adjoints.diffrax_private import SaveState, Solve, outputs, save_states, save_y
from implicitexp.adjoints.discrete.record import plain_loop


class Recording(eqx.Module):
    """What else the forward solve has to save."""

    subs: list[dfx.SubSaveAt]
    states: list[Any]  # Diffrax's SaveStates: their buffers
    infos: PyTree = None  # the buffer of every step's interpolation
    checkpoints: int = eqx.field(static=True, default=0)  # states to keep among those of the steps


class Setup(eqx.Module):
    """How a problem is solved: everything of the call that is not differentiated."""

    adjoint: Any
    solve: Solve  # without what stands in the problem
    throw: bool = eqx.field(static=True)

    @classmethod
    def of(cls, adjoint: Any, solve: Solve, throw: bool) -> "Setup":
        blank = jax.tree.map(lambda sub: _with(sub, None, None), solve.saveat.subs, is_leaf=_is_sub)
        state = eqx.tree_at(lambda s: s.y, solve.init_state, None)
        event = _with_conditions(solve.event, None)
        blanks = {"args": None, "terms": None, "t0": None, "t1": None, "event": event}
        solve = dataclasses.replace(solve, **blanks, saveat=_saving(solve.saveat, blank), init_state=state)
        adjoint, solve = _without_derivative((adjoint, dataclasses.replace(solve, solver=plain(solve.solver))))
        return cls(adjoint, solve, throw)

    def run(self, problem: Problem, recording: Recording | None = None) -> tuple[Any, list[Any]]:
        """-> Diffrax's final state as if nothing else had been recorded, and what was, as SaveStates and `Kept`."""
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
            event=_with_conditions(self.solve.event, problem.conditions),
            saveat=saveat,
            init_state=self._start(problem, recording),
        )
        keeping = Keeping(recording.checkpoints)
        final, _ = solve.run(plain_loop, keeping if recording.checkpoints else plain_loop)
        own, others = final.save_state
        others = [*others, *keeping.kept(final.num_accepted_steps)]
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
    ending: Ending
    recorded: list[Any]  # SaveStates of the recording, `Kept` of its checkpoints
    infos: tuple[Array, PyTree] | None  # ends of steps, what interpolates inside them
    accepted: Array
    succeeded: Array

    @property
    def places(self) -> list[Rows]:
        """Where y has a cotangent: what was saved, and the end, if that is an event's."""
        return [*self.rows, Rows.of_end(self.ending)] if self.ending.met else self.rows


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

    def noted(self, solved: "Solved") -> "Solved":
        """The arrays of it, without the problem."""
        arrays, self.plain = eqx.partition(dataclasses.replace(solved, chosen=Chosen.of(None, ())), eqx.is_array)
        return arrays

    def known(self, arrays: "Solved") -> "Solved":
        """What was noted."""
        return eqx.combine(arrays, self.plain)

    def closed(self, parts: tuple) -> Any:
        """The final state again."""
        ys, ts, others, rest = parts
        found = {**self.static, **rest, **others}
        for sub, values, times in zip(self.numbered, ys, ts, strict=True):
            found[sub.ts] = times
            pairs = zip(jax.tree.leaves(sub.ys), jax.tree.leaves(values, is_leaf=_is_none), strict=True)
            found |= {i: x for i, x in pairs if x is not None}
        return self.treedef.unflatten([found[i] for i in range(len(found))])


def solve_and_record(setup: Setup, problem: Problem) -> tuple[Solved, Any]:
    """Solve, and record what the derivative needs: -> that, and the final state that the user gets."""
    own = setup.adjoint.recording(problem, setup)
    saved = save_states(setup.solve.init_state)
    beside = [  # y at the times of every SubSaveAt that saves something else
        buffered(_with(sub, ts, None), state.ts, problem.y0)
        for sub, state, ts, fn in zip(setup.subs, saved, problem.ts, problem.fns, strict=True)
        if fn is not None
    ]
    end = [] if problem.conditions is None else [buffered(dfx.SubSaveAt(t1=True), problem.t1[None], problem.y0)]
    first = [*beside, *end]
    subs, states = [x[0] for x in first] + own.subs, [x[1] for x in first] + own.states
    recording = Recording(subs, states, own.infos, own.checkpoints)
    final, others = setup.run(problem, recording)
    ending = _ending(problem, final, others[len(beside)] if end else None)
    states = iter(others[: len(beside)])
    rows = [
        Rows.of(sub, saved, next(states).ys if fn is not None else saved.ys, problem, ts, ending.time)
        for sub, saved, fn, ts in zip(setup.subs, save_states(final), problem.fns, problem.ts, strict=True)
    ]
    infos = None if final.dense_infos is None else (final.dense_ts, final.dense_infos)
    if not setup.keeps_infos:
        final = eqx.tree_at(
            lambda s: (s.dense_ts, s.dense_infos, s.dense_save_index), final, (None, None, None), is_leaf=_is_none
        )
    succeeded = (final.result == dfx.RESULTS.successful) | (final.result == dfx.RESULTS.event_occurred)
    accepted = jnp.asarray(final.num_accepted_steps, jnp.int32)
    recorded = others[len(first) :]
    chosen = Chosen.of(problem, ())
    return Solved(chosen, setup.solved(), rows, ending, recorded, infos, accepted, jnp.asarray(succeeded)), final


def _ending(problem: Problem, final: Any, saved: Any) -> Ending:
    """`saved`: the SaveState of y at the end; None: no event."""
    stepped = jnp.asarray(final.num_accepted_steps) > 0
    if saved is None:
        return Ending(problem.t1, None, [], stepped)
    state = jax.tree.map(lambda y: y[0], saved.ys)
    return Ending(saved.ts[0], state, [jnp.asarray(x) for x in jax.tree.leaves(final.event_mask)], stepped)


def buffered(sub: Any, ts: Array, like: PyTree) -> tuple[Any, Any]:
    """A SubSaveAt that saves something like `like`, and its buffer of the length of `ts`."""
    ys = jax.tree.map(lambda y: jnp.full((ts.size, *y.shape), jnp.inf, y.dtype), like)
    return sub, SaveState(saveat_ts_index=0, ts=ts, ys=ys, save_index=0)


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


def _with_conditions(event: Any, conditions: PyTree) -> Any:
    return None if event is None else eqx.tree_at(lambda e: e.cond_fn, event, conditions, is_leaf=_is_none)


def _is_sub(x: Any) -> bool:
    return isinstance(x, dfx.SubSaveAt)


def _is_none(x: Any) -> bool:
    return x is None


def _without_derivative(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jax.lax.stop_gradient(x) if eqx.is_inexact_array(x) else x, tree)
