"""The backward pass of `Reversible`: the states are made again step by step, each step transposed by the way."""

from typing import Any

import diffrax as dfx
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from implicitexp.adjoints.diffrax_private import Solve, clip_to_end
from implicitexp.adjoints.discrete.clock import floor
from implicitexp.adjoints.discrete.coupled import like, unmixed
from implicitexp.adjoints.discrete.outputs import Step, Totals, materialized
from implicitexp.adjoints.discrete.record import Thinned
from implicitexp.adjoints.discrete.step import take
from implicitexp.adjoints.discrete.trees import add
from implicitexp.adjoints.discrete.walk import AbstractWalk, dense_of, started, step_of

APART = 1e3  # tolerances between the two solutions, which the coupling is to keep at 0.3: none of them is one then


class RegularEnds(eqx.Module):
    """The two ends of step i with constant steps, from the controller instead of a record."""

    controller: dfx.ConstantStepSize
    state: Any
    first: Array
    second: Array
    end: Array

    @staticmethod
    def fit(solve: Solve) -> bool:
        """Whether all ends follow from the first two: constant steps up to t1, so without an event that may lie anywhere."""
        return type(solve.stepsize_controller) is dfx.ConstantStepSize and solve.event is None

    @classmethod
    def of(cls, solve: Solve) -> "RegularEnds":
        start = solve.init_state
        return cls(solve.stepsize_controller, start.controller_state, start.tprev, start.tnext, solve.t1)

    def read(self, i: Array) -> tuple[Array, Array]:
        return jnp.where(i <= 0, self.first, self._end(i - 1)), self._end(i)

    def _end(self, i: Array) -> Array:
        """As the controller and Diffrax's loop come to it."""
        state = (i.astype(self.state[0].dtype), *self.state[1:])
        stop = self.controller.adapt_step_size(self.first, self.second, None, None, None, None, None, state)[2]
        stop = clip_to_end(self.first, stop, self.end, floor(self.end), True)
        return jnp.where(i <= 0, self.second, stop)


class ReversibleWalk(AbstractWalk):
    """The walk over the steps that are made again."""

    def __call__(self) -> tuple[PyTree, PyTree, Totals, Array]:
        """-> cotangents of y0 and z0, totals, whether the walk came back to every state that had been kept, and the two solutions
        had not left each other."""
        last = eqxi.unvmap_max(self.count) - 1
        zero, moves = jax.tree.map(jnp.zeros_like, self.final.y), self.record.moves
        total = started(self.theta, self.saved, self._read(self.count - 1)[1], self.count, moves)
        states = (self.final.y, self.final.solver_state[0])

        def back(carry):
            i, states, cotangents, total, right = carry
            right = right & (self.solve.solver.coupling.apart(*states) <= APART)
            states, cotangents, total, here = self._back(i, states, cotangents, total)
            return i - 1, states, cotangents, total, right & here

        carry = (last, states, (zero, zero), total, jnp.array(True))
        _, _, (y, z), total, right = jax.lax.while_loop(lambda carry: carry[0] >= 0, back, carry)
        none = self.count == 0
        y, z = jax.tree.map(lambda x, c: x + jnp.where(none, c, 0), (y, z), self._of_end())
        if total.clock is not None and moves is not None and self.cotangent.tprev is not None:
            clock = total.clock + jnp.where(none, self.cotangent.tprev, 0) * moves.values[0][0]
            total = Totals(total.theta, clock, total.ts, total.left)
        return y, z, total, right

    def _taken_up(self, i: Array, states: Any) -> tuple[Any, Array]:
        """The kept states before step i, if there are any, else these; whether these are those, to the square root of rounding
        of the largest number there or at either end of the solve."""
        kept_states, there = self.record.states, (i >= 0) & (i < self.count)
        assert isinstance(kept_states, Thinned)
        y, (z, _) = kept_states.read(jnp.maximum(i, 0))
        kept = there & kept_states.kept(i)
        ends = (self.final.y, self.solve.init_state.y)
        size = jnp.max(jnp.stack([_largest(x) for x in (*ends, y)]))
        off = _largest(jax.tree.map(jnp.subtract, states, (y, z)))
        states = jax.tree.map(lambda new, old: jnp.where(kept, new, old), (y, z), states)
        return states, ~kept | self._single | (off <= jnp.finfo(size.dtype).eps ** 0.5 * size)

    @property
    def _single(self) -> Array:
        """Whether every state was kept: then nothing depends on how far one is off."""
        assert isinstance(self.record.states, Thinned)
        return self.record.states.stride == 1

    def _of_end(self) -> tuple[PyTree, PyTree]:
        c = self.cotangent
        return materialized((c.y, c.solver_state[0]), (self.final.y, self.final.solver_state[0]))

    def _read(self, i: Array) -> tuple[Array, Array]:
        """The ends of step i; of no length after the last one, where only lanes with more steps have any."""
        ends = RegularEnds.of(self.solve) if self.record.ends is None else self.record.ends
        t0, t1 = ends.read(i)
        there, end = i < self.count, self.final.tprev
        return jnp.where(there, t0, end), jnp.where(there, t1, end)

    def _back(self, i: Array, states: Any, cotangents: Any, total: Totals) -> Any:
        """From the states after step i and their cotangents to those before it."""
        y1, z1 = states
        step = step_of(i, self._read, self.record.moves)
        c = self._coupling(i, step)
        outs = self.collected
        last, there = i == self.count - 1, i < self.count
        of_y, of_z = jax.tree.map(lambda x, end: x + jnp.where(last, end, 0), cotangents, self._of_end())

        second = take(self.scheme, self.model, self.theta, step.t1, step.t0, y1, None, self.scheme.needed())
        z0 = jax.tree.map(lambda z, v, y: z + (v - y), z1, second.y1, y1)
        count = len(self.scheme) if outs.interpolates else self.scheme.needed()
        first = take(self.scheme, self.model, self.theta, step.t0, step.t1, z0, None, count)
        y0 = jax.tree.map(lambda y, z, w: unmixed(c, y - (w - z), z), y1, z0, first.y1)
        (y0, kept_z0), same = self._taken_up(i, (y0, z0))

        of_y, total = outs.at_end(step, y1, of_y, total)
        edges, of = outs.edges(step, last), {}
        if outs.interpolates:
            dense = {**dense_of(self.scheme, y0, first), "y1": y1}
            of, edges, total = outs.inside(step, last, dense, edges, total)
            of_y = add(of_y, of["y1"])
        # z1 = z0 - (v - y1), v the end of the step back from y1; then y1 = c y0 + (1 - c) z0 + (w - z0), w that from z0.
        minus = jax.tree.map(jnp.negative, of_z)
        by_second = second.transposed(minus, None)
        of_y = jax.tree.map(lambda y, v, m: y + (v - m), of_y, by_second.y0, minus)
        by_first = first.transposed(of_y, of.get("k"))
        of_z = jax.tree.map(lambda z, w, y: z + (w - like(c, y) * y), of_z, by_first.y0, of_y)
        of_y = add(of.get("y0"), jax.tree.map(lambda y: like(c, y) * y, of_y))

        times = (edges[0] + by_first.t0 + by_second.t1, edges[1] + by_first.t1 + by_second.t0, edges[2])
        theta = add(total.theta, add(by_first.theta, by_second.theta))
        total = Totals(theta, step.moved(total.clock, *times), total.ts, total.left)
        states = jax.tree.map(lambda new, old: jnp.where(there, new, old), (y0, kept_z0), states)
        return states, (of_y, of_z), total, same

    def _coupling(self, i: Array, step: Step) -> Array:
        """c of step i: recorded, or a function of the step's length."""
        if self.record.stages is not None:
            return jnp.where(i < self.count, self.record.stages.read(i), 1)
        y, (z, _) = self.final.y, self.final.solver_state
        return self.solve.solver.coupling(step.t0, step.t1, y, z)


def _largest(tree: PyTree) -> Array:
    flat = ravel_pytree(tree)[0]
    return jnp.max(jnp.abs(flat)) if flat.size else jnp.zeros((), jnp.finfo(flat.dtype).dtype)
