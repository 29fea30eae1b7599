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
from implicitexp.adjoints.discrete.outputs import Collected, Model, Output, Totals, materialized
from implicitexp.adjoints.discrete.record import Everything
from implicitexp.adjoints.discrete.step import take
from implicitexp.adjoints.discrete.tableau import Scheme
from implicitexp.adjoints.discrete.trees import add
from implicitexp.adjoints.discrete.walk import dense_of, started, step_of


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


class ReversibleWalk(eqx.Module):
    """The walk over one solve, as `Walk` of `Replay`; `ends` and `moves` are those of the steps."""

    solve: Solve
    scheme: Scheme = eqx.field(static=True)
    model: Model
    theta: PyTree
    ends: Everything | RegularEnds
    moves: Everything | None
    final: Any
    cotangent: Any
    saved: list[Output]

    @property
    def count(self) -> Array:
        return self.final.num_accepted_steps

    def __call__(self) -> tuple[PyTree, PyTree, Totals, Array]:
        """-> cotangents of y0 and z0, totals, whether the walk came back to where the solve had started."""
        last = eqxi.unvmap_max(self.count) - 1
        zero = jax.tree.map(jnp.zeros_like, self.final.y)
        total = started(self.theta, self.saved, self._read(self.count - 1)[1], self.count, self.moves)
        states = (self.final.y, self.final.solver_state)

        def back(carry):
            i, states, cotangents, total = carry
            return i - 1, *self._back(i, states, cotangents, total)

        carry = (last, states, (zero, zero), total)
        _, states, (y, z), total = jax.lax.while_loop(lambda carry: carry[0] >= 0, back, carry)
        none = self.count == 0
        y, z = jax.tree.map(lambda x, c: x + jnp.where(none, c, 0), (y, z), self._of_end())
        if total.clock is not None and self.moves is not None and self.cotangent.tprev is not None:
            clock = total.clock + jnp.where(none, self.cotangent.tprev, 0) * self.moves.values[0][0]
            total = Totals(total.theta, clock, total.ts, total.left)
        return y, z, total, self._came_back(states)

    def _came_back(self, states: Any) -> Array:
        """Up to the square root of the rounding, relative to the largest number at either end."""
        start = self.solve.init_state
        was, end = (start.y, start.solver_state), (self.final.y, self.final.solver_state)
        flat = [ravel_pytree(x)[0] for x in (states, was, end)]
        if not flat[0].size:
            return jnp.array(True)
        size = jnp.maximum(jnp.max(jnp.abs(flat[1])), jnp.max(jnp.abs(flat[2])))
        return jnp.max(jnp.abs(flat[0] - flat[1])) <= jnp.finfo(flat[0].dtype).eps ** 0.5 * size

    def _of_end(self) -> tuple[PyTree, PyTree]:
        c = self.cotangent
        return materialized((c.y, c.solver_state), (self.final.y, self.final.solver_state))

    def _read(self, i: Array) -> tuple[Array, Array]:
        """The ends of step i; of no length after the last one, where only lanes with more steps have any."""
        t0, t1 = self.ends.read(i)
        there, end = i < self.count, self.final.tprev
        return jnp.where(there, t0, end), jnp.where(there, t1, end)

    def _back(self, i: Array, states: Any, cotangents: Any, total: Totals) -> Any:
        """From the states after step i and their cotangents to those before it."""
        c, (y1, z1) = self._coupling, states
        step = step_of(i, self._read, self.moves)
        outs = Collected(self.model, self.theta, self.count, self.cotangent, self.saved)
        last, there = i == self.count - 1, i < self.count
        of_y, of_z = jax.tree.map(lambda x, end: x + jnp.where(last, end, 0), cotangents, self._of_end())

        second = take(self.scheme, self.model, self.theta, step.t1, step.t0, y1, None, self.scheme.needed())
        z0 = jax.tree.map(lambda z, v, y: z + (v - y), z1, second.y1, y1)
        count = len(self.scheme) if outs.interpolates else self.scheme.needed()
        first = take(self.scheme, self.model, self.theta, step.t0, step.t1, z0, None, count)
        y0 = jax.tree.map(lambda y, z, w: (y - (1 - c) * z - (w - z)) / c, y1, z0, first.y1)

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
        of_z = jax.tree.map(lambda z, w, y: z + (w - c * y), of_z, by_first.y0, of_y)
        of_y = add(of.get("y0"), jax.tree.map(lambda y: c * y, of_y))

        times = (edges[0] + by_first.t0 + by_second.t1, edges[1] + by_first.t1 + by_second.t0, edges[2])
        theta = add(total.theta, add(by_first.theta, by_second.theta))
        total = Totals(theta, step.moved(total.clock, *times), total.ts, total.left)
        kept = jax.tree.map(lambda new, old: jnp.where(there, new, old), (y0, z0), states)
        return kept, (of_y, of_z), total

    @property
    def _coupling(self) -> float:
        return self.solve.solver.coupling
