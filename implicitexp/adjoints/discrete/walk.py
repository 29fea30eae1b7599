"""The backward pass of `Replay`: the recorded steps in reverse, each by the transpose of one Runge-Kutta step."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from implicitexp.adjoints.diffrax_private import Solve
from implicitexp.adjoints.discrete.outputs import Collected, Model, Output, Step, Totals, materialized
from implicitexp.adjoints.discrete.record import Ends, Everything, Record, Thinned, chunk_length, stages_of
from implicitexp.adjoints.discrete.step import forward, take
from implicitexp.adjoints.discrete.tableau import AbstractTaken, Scheme
from implicitexp.adjoints.discrete.trees import add


class AbstractWalk(eqx.Module):
    """A walk over one solve. `final`: the state after its last step; `cotangent`: of that state, None where there is none."""

    solve: Solve
    scheme: Scheme = eqx.field(static=True)
    model: Model
    theta: PyTree
    record: Record
    final: Any
    cotangent: Any
    saved: list[Output]

    @property
    def count(self) -> Array:
        """How many steps were accepted."""
        return self.final.num_accepted_steps

    @property
    def collected(self) -> Collected:
        return Collected(self.model, self.theta, self.count, self.cotangent, self.saved)


class Walk(AbstractWalk):
    """The walk over the recorded steps."""

    @property
    def _ends(self) -> Ends:
        assert self.record.ends is not None
        return self.record.ends

    def __call__(self) -> tuple[PyTree, Totals]:
        """-> cotangent of y0, totals."""
        _, end = self._ends.read(jnp.maximum(self.count - 1, 0))
        total = started(self.theta, self.saved, end, self.count, self.record.moves)
        y = jax.tree.map(jnp.zeros_like, self.final.y)
        last = eqxi.unvmap_max(self.count) - 1
        if isinstance(self.record.states, Thinned):
            y, total = self._by_chunks(last, y, total)
        else:
            y, total = self._range(last, jnp.zeros_like(last), self.record.states, y, total)
        return self._without_steps(y, total)

    def _without_steps(self, y: PyTree, total: Totals) -> tuple[PyTree, Totals]:
        """A solve that took no step ends where it starts."""
        none = self.count == 0
        y = jax.tree.map(lambda y, x: y + jnp.where(none, x, 0), y, materialized(self.cotangent.y, self.final.y))
        if total.clock is None or self.cotangent.tprev is None:
            return y, total
        assert self.record.moves is not None
        clock = total.clock + jnp.where(none, self.cotangent.tprev, 0) * self.record.moves.values[0][0]
        return y, Totals(total.theta, clock, total.ts, total.left)

    # -- which steps --------------------------------------------------------------------------------------------------

    def _range(self, last: Array, first: Array, states: Any, y: PyTree, total: Totals) -> tuple[PyTree, Totals]:
        """The steps last, ..., first; `states.read(i)` gives the state that step i started from."""

        def back(carry):
            i, y, total = carry
            y, total = self._back(i, states.read(i), y, total)
            return i - 1, y, total

        _, y, total = jax.lax.while_loop(lambda carry: carry[0] >= first, back, (last, y, total))
        return y, total

    def _by_chunks(self, last: Array, y: PyTree, total: Totals) -> tuple[PyTree, Totals]:
        """Chunk by chunk: its states are made again from the kept ones, then its steps are walked back."""
        thinned = self.record.states
        assert isinstance(thinned, Thinned)
        length = chunk_length(thinned.count, self.solve.max_steps or 1)

        def back(carry):
            first, y, total = carry
            end = jnp.minimum(first + length - 1, last)
            chunk = _Chunk(first, self._refilled(thinned, first, end, length))
            y, total = self._range(end, first, chunk, y, total)
            return first - length, y, total

        start = last - last % length
        _, y, total = jax.lax.while_loop(lambda carry: carry[0] >= 0, back, (start, y, total))
        return y, total

    def _refilled(self, thinned: Thinned, first: Array, end: Array, length: int) -> PyTree:
        """The states that the steps first, ..., end started from."""
        entry = thinned.read(first)
        values = jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), entry)

        def again(i, carry):
            entry, values = carry
            kept = thinned.kept(i)
            entry = jax.lax.cond(kept, lambda: thinned.read(i), lambda: self._next(i - 1, entry))
            return entry, jax.tree.map(lambda x, all_: all_.at[i - first].set(x), entry, values)

        return jax.lax.fori_loop(first, end + 1, again, (entry, values))[1]

    def _next(self, i: Array, entry: PyTree) -> PyTree:
        """The state after step i, from the state before it."""
        t0, t1 = self._ends.read(i)
        if not self.scheme.implicit:
            return forward(self.scheme, self.model, self.theta, t0, t1, entry)
        y, _, _, state, _ = self._solved_again(i, t0, t1, entry)
        return y, jax.tree.map(jnp.asarray, state)

    def _solved_again(self, i: Array, t0: Array, t1: Array, entry: PyTree) -> Any:
        """An implicit step by the solver itself, from the same state of its own, so with the same result."""
        assert self.record.jumps is not None
        (y, state), solve = entry, self.solve
        return solve.solver.step(solve.terms, t0, t1, y, solve.args, state, self.record.jumps.read(i))

    # -- one step -----------------------------------------------------------------------------------------------------

    def _back(self, i: Array, entry: PyTree, y: PyTree, total: Totals) -> tuple[PyTree, Totals]:
        """From the cotangent of the state after step i to that of the state before it."""
        step, outs, y0, stages = step_of(i, self._ends.read, self.record.moves), self.collected, entry, None
        last = i == self.count - 1
        y = add(y, jax.tree.map(lambda x: jnp.where(last, x, 0), materialized(self.cotangent.y, self.final.y)))
        if self.scheme.implicit or self.record.stages is not None:
            y0, stages = self._known_stages(step, entry)
        count = len(self.scheme) if outs.interpolates or self.scheme.implicit else self.scheme.needed()
        taken = take(self.scheme, self.model, self.theta, step.t0, step.t1, y0, stages, count)
        y, total = outs.at_end(step, taken.y1, y, total)
        edges, of = outs.edges(step, last), {}
        if outs.interpolates:
            of, edges, total = outs.inside(step, last, dense_of(self.scheme, y0, taken), edges, total)
            y = add(y, of["y1"])
        cotangents = taken.transposed(y, of.get("k"))
        clock = step.moved(total.clock, edges[0] + cotangents.t0, edges[1] + cotangents.t1, edges[2])
        theta = add(total.theta, cotangents.theta)
        return add(of.get("y0"), cotangents.y0), Totals(theta, clock, total.ts, total.left)

    def _known_stages(self, step: Step, entry: PyTree) -> tuple[PyTree, PyTree]:
        """The state before the step and the stages of an implicit method: kept, or by doing the step again."""
        if self.record.stages is not None:
            return entry, self.record.stages.read(step.i)
        return entry[0], stages_of(self._solved_again(step.i, step.t0, step.t1, entry)[2])


def started(theta: PyTree, saved: list[Output], end: Array, count: Array, moves: Everything | None) -> Totals:
    """Totals before the first step back. `end`: of the last of `count` steps."""
    inside = [out for out in saved if out.ts is not None]
    return Totals(
        theta=jax.tree.map(jnp.zeros_like, theta),
        clock=None if moves is None else jnp.zeros_like(moves.values[0][0]),
        ts={out.which: jnp.zeros_like(jnp.asarray(out.ts)) for out in inside},
        left={out.which: jnp.where(count > 0, out.before(end), 0) for out in inside},
    )


def step_of(i: Array, read: Callable[[Array], Any], moves: Everything | None) -> Step:
    """Step i; `read` gives the ends of a step."""
    (t0, t1), (after, _), (_, previous) = read(i), read(i + 1), read(jnp.maximum(i - 1, 0))
    columns = None
    if moves is not None:
        (start, end), (next_start, _) = moves.read(i), moves.read(i + 1)
        columns = (start, end, next_start)
    return Step(i, t0, t1, after, jnp.where(i == 0, -jnp.inf, previous), columns)


def dense_of(scheme: Scheme, y0: PyTree, taken: AbstractTaken) -> dict[str, PyTree]:
    """What Diffrax interpolates with inside a step."""
    ends = {"y0": y0, "y1": taken.y1}
    return {**ends, "k": taken.k} if scheme.keeps_stages else ends


class _Chunk(eqx.Module):
    first: Array
    values: PyTree

    def read(self, i: Array) -> PyTree:
        return jax.tree.map(lambda x: x[i - self.first], self.values)
