"""The forward pass of `Replay`: Diffrax's loop over the steps, with a record of those that were accepted."""

import functools
import math
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PyTree

from implicitexp.adjoints.diffrax_private import AbstractAround, Solve
from implicitexp.adjoints.discrete.clock import Clock

plain_loop = functools.partial(eqxi.while_loop, kind="lax")


class Everything(eqx.Module):
    """Every entry kept: `values[i]` belongs to step i. Entries that no step has filled hold what the first one does, so that
    a step replayed there by a lane that has fewer steps is a harmless one."""

    values: PyTree

    @classmethod
    def like(cls, value: PyTree, length: int) -> "Everything":
        return cls(jax.tree.map(lambda x: jnp.broadcast_to(x, (length, *jnp.shape(x))), value))

    @property
    def buffers(self) -> list[Any]:
        return [self.values]

    def written(self, i: Any, value: PyTree) -> "Everything":
        return Everything(jax.tree.map(lambda x, all_: all_.at[i].set(x), value, self.values))

    def read(self, i: Any) -> PyTree:
        return jax.tree.map(lambda x: x[i], self.values)


class Thinned(eqx.Module):
    """At most `count` entries kept, an even number: those of the steps 0, s, 2 s, ...; where they are all taken, s is doubled
    and every other place becomes free.

    Step i = m s lies in place i mod (count - 1), and in the last one for m = count - 1. Since s is a power of two and count - 1
    is odd, all of these differ; and when s is doubled, those with an even m stay where they are. The place after the last is
    for waste.
    """

    values: PyTree
    stride: Int[Array, ""]
    count: int = eqx.field(static=True)

    @classmethod
    def like(cls, value: PyTree, count: int) -> "Thinned":
        values = jax.tree.map(lambda x: jnp.broadcast_to(x, (count + 1, *jnp.shape(x))), value)
        return cls(values, jnp.array(1), count)

    @property
    def buffers(self) -> list[Any]:
        return [self.values]

    def written(self, i: Any, value: PyTree) -> "Thinned":
        stride = jnp.where(i == self.stride * self.count, 2 * self.stride, self.stride)
        place = jnp.where(i % stride == 0, self._place(i, stride), self.count)
        values = jax.tree.map(lambda x, all_: all_.at[place].set(x), value, self.values)
        return Thinned(values, stride, self.count)

    def kept(self, i: Any) -> Array:
        return i % self.stride == 0

    def read(self, i: Any) -> PyTree:
        """The entry of step i, if it is kept."""
        place = self._place(i, self.stride)
        return jax.tree.map(lambda x: x[place], self.values)

    def _place(self, i: Any, stride: Array) -> Array:
        last = self.count - 1
        return jnp.where(i == stride * last, last, i % last)


class Ends(eqx.Module):
    """Where each step starts and stops. Without `stops` it stops where the next one starts."""

    starts: Everything
    stops: Everything | None

    @classmethod
    def like(cls, time: Any, length: int, gaps: bool) -> "Ends":
        return cls(Everything.like(time, length), Everything.like(time, length) if gaps else None)

    @property
    def buffers(self) -> list[Any]:
        return [x for part in (self.starts, self.stops) if part is not None for x in part.buffers]

    def written(self, i: Any, start: Any, stop: Any) -> "Ends":
        return Ends(self.starts.written(i, start), None if self.stops is None else self.stops.written(i, stop))

    def read(self, i: Any) -> tuple[Array, Array]:
        """Of no length after the last step, where the next entry is the first one's again."""
        start = self.starts.read(i)
        return start, jnp.maximum(start, self.starts.read(i + 1)) if self.stops is None else self.stops.read(i)


def chunk_length(count: int, max_steps: int) -> int:
    """The largest stride of `Thinned`: a power of two, so that every multiple of it is kept whatever the stride came to."""
    return 2 ** max(0, math.ceil(math.log2(max_steps / count)))


class Record(eqx.Module):
    """Of each accepted step, on demand: its two ends, the state it started from, whether there was a jump before it, what the
    solver left in the second part of its state (its stages, or its coupling), and how its ends move with the times that the
    solve was given. After the last step comes the end of the solve."""

    ends: Ends | None
    states: Everything | Thinned
    jumps: Everything | None
    stages: Everything | None
    moves: Everything | None

    @property
    def buffers(self) -> list[Any]:
        parts = (self.ends, self.states, self.jumps, self.stages, self.moves)
        return [buffer for part in parts if part is not None for buffer in part.buffers]


class Recording(eqx.Module):
    """How to record: `count` states, or all of them (None); `stages` or not; with `clock`, the motion of the steps' ends.
    `carries_state`: with each state the solver's own; `jumps`: whether there was a jump before the step; `gaps`: whether it may
    start later than the one before it stopped."""

    count: int | None = eqx.field(static=True)
    clock: Clock | None = None
    stages: bool = eqx.field(static=True, default=False)
    carries_state: bool = eqx.field(static=True, default=False)
    jumps: bool = eqx.field(static=True, default=False)
    ends: bool = eqx.field(static=True, default=True)
    gaps: bool = eqx.field(static=True, default=True)

    def entry(self, state: Any) -> PyTree:
        """What is kept of the state before a step. An implicit method's first stage is the last of the step before, as its
        root finder left it: to do the step again, that has to be at hand."""
        return (state.y, state.solver_state) if self.carries_state else state.y

    def start(self, state: Any, max_steps: int | None) -> Record:
        length = 0 if max_steps is None else max_steps + 1  # without a bound, nothing of that length is kept
        entry = jax.tree.map(jnp.asarray, self.entry(state))
        stages = state.solver_state[1] if self.stages else None
        return Record(
            ends=Ends.like(state.tprev, length, self.gaps) if self.ends else None,
            states=self._states(entry, length),
            jumps=Everything.like(jnp.asarray(state.made_jump), length) if self.jumps else None,
            stages=None if stages is None else Everything.like(stages, length),
            moves=None if self.clock is None else Everything.like(self.clock.motion(state), length),
        )

    def _states(self, entry: PyTree, length: int) -> Everything | Thinned:
        return Everything.like(entry, length) if self.count is None else Thinned.like(entry, self.count)

    def before(self, state: Any, record: Record) -> Record:
        """Write the attempted step; one that is rejected is overwritten by the next."""
        i = state.num_accepted_steps
        return Record(
            ends=None if record.ends is None else record.ends.written(i, state.tprev, state.tnext),
            states=record.states.written(i, self.entry(state)),
            jumps=None if record.jumps is None else record.jumps.written(i, state.made_jump),
            stages=record.stages,
            moves=None if record.moves is None else record.moves.written(i, self._motion(state)),
        )

    def after(self, i: Any, state: Any, record: Record) -> Record:
        """Write the stages that the attempt came to; those of a rejected step are overwritten too."""
        if record.stages is None:
            return record
        stages = record.stages.written(i, state.solver_state[1])
        return Record(record.ends, record.states, record.jumps, stages, record.moves)

    def at_end(self, state: Any, record: Record) -> Record:
        """The times of the end in the entry after the last step's; there may be a rejected step there."""
        i = state.num_accepted_steps
        moves = None if record.moves is None else record.moves.written(i, self._motion(state))
        stages = record.stages
        if stages is not None:
            stages = stages.written(i, jax.tree.map(jnp.zeros_like, state.solver_state[1]))
        ends = None if record.ends is None else record.ends.written(i, state.tprev, state.tprev)
        return Record(ends, record.states, record.jumps, stages, moves)

    def _motion(self, state: Any) -> PyTree:
        assert self.clock is not None
        return self.clock.motion(state)


class WithStages(AbstractAround):
    """A solver that leaves the stages of its last accepted step in its state."""

    solver: Any

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        y1, error, dense, state, result = self.solver.step(terms, t0, t1, y0, args, solver_state[0], made_jump)
        return y1, error, dense, (state, stages_of(dense)), result


def stages_of(dense: dict[str, PyTree]) -> PyTree:
    """The k_i of a step, leading axis i, from what Diffrax interpolates with; a method of one stage has none there."""
    if "k" in dense:
        return dense["k"]
    return jax.tree.map(lambda y1, y0: (y1 - y0)[None], dense["y1"], dense["y0"])


class Taped(eqx.Module):
    """The final state of the loop, and the record."""

    final: Any
    record: Record | None


def run(solve: Solve, recording: Recording | None) -> Taped:
    """Diffrax's loop up to the end of its steps; what it does after them is for the caller.

    With a recording, the solver is `WithStages` where stages are kept, and the controller is `Moving` where times are.
    """
    taped: list[Taped] = []

    def outer(cond_fun, body_fun, init_val, *, max_steps, buffers):
        del init_val  # `solve.init_state` holds the first output already
        start = solve.init_state
        if recording is None:
            final = plain_loop(cond_fun, body_fun, start, max_steps=max_steps, buffers=buffers)
            taped.append(Taped(final, None))
            return final

        def body(carry, recording=recording):
            state, record = carry
            i = state.num_accepted_steps
            record = recording.before(state, record)
            state = body_fun(state)
            return state, recording.after(i, state, record)

        final, record = plain_loop(
            lambda carry: cond_fun(carry[0]),
            body,
            (start, recording.start(start, max_steps)),
            max_steps=max_steps,
            buffers=lambda carry: [*buffers(carry[0]), *carry[1].buffers],
        )
        taped.append(Taped(final, recording.at_end(final, record)))
        return final

    solve.run(plain_loop, outer)
    return taped[0]


traced_once = eqx.filter_jit(run)  # a solve of the same kind is not traced again
