"""What a solve saved, in the backward pass of `Replay`: the cotangents of its outputs, step by step."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from implicitexp.adjoints.diffrax_private import Solve, outputs, save_states
from implicitexp.adjoints.discrete.trees import add


class Model(eqx.Module):
    """The functions of a solve, as functions of what is differentiated: theta, the moving part of (args, terms, fns), fns
    being the functions that make the outputs."""

    fixed: PyTree
    interpolation: Any

    @classmethod
    def split(cls, solve: Solve, perturbed: Solve) -> tuple["Model", PyTree]:
        theta, fixed = eqx.partition(_parts(solve), _parts(perturbed))
        return cls(fixed, solve.solver.interpolation_cls), theta

    def slope(self, theta: PyTree, t: Array, z: PyTree, control: PyTree) -> PyTree:
        args, terms, _ = eqx.combine(theta, self.fixed)
        return terms.vf_prod(t, z, args, control)

    def control(self, theta: PyTree, t0: Array, t1: Array) -> PyTree:
        _, terms, _ = eqx.combine(theta, self.fixed)
        return terms.contr(t0, t1)

    def output(self, which: int, theta: PyTree, t: Array, y: PyTree) -> PyTree:
        """What output number `which` saves of the state y at t."""
        args, _, fns = eqx.combine(theta, self.fixed)
        return fns[which](t, y, args)

    def inside(self, which: int, theta: PyTree, t: Array, t0: Array, t1: Array, dense: dict) -> PyTree:
        """What it saves at a time inside a step."""
        return self.output(which, theta, t, self.interpolation(t0=t0, t1=t1, **dense).evaluate(t))


def _parts(solve: Solve) -> tuple[PyTree, PyTree, list[Any]]:
    return solve.args, solve.terms, [out.fn for out in outputs(solve.saveat)]


class Output(eqx.Module):
    """One `SubSaveAt` of a solve, with the cotangents of what it saved."""

    which: int = eqx.field(static=True)
    at_start: bool = eqx.field(static=True)
    every: int = eqx.field(static=True)
    ts: Array | None
    of_ts: Array
    of_ys: PyTree

    def at(self, place: Array, there: Any) -> tuple[Array, PyTree]:
        """Cotangents of the entry at `place`, zero unless `there`."""
        return jax.tree.map(lambda x: jnp.where(there, x[place], 0), (self.of_ts, self.of_ys))

    def place(self, step: Array, j: Array) -> Array:
        """Where the output at ts[j], inside this step, was saved: after the ends of steps saved before it."""
        return self.at_start + j + (step // self.every if self.every else 0)

    def before(self, t: Array) -> Array:
        """How many of its times lie at or before t."""
        assert self.ts is not None
        return jnp.sum(self.ts <= t)


class Totals(eqx.Module):
    """What is summed over the steps: cotangents of theta, of the solve's times (a number for each column), of every
    output's `ts`; and how many outputs inside steps are still to come."""

    theta: PyTree
    clock: Array | None
    ts: dict[int, Array]
    left: dict[int, Array]


class Step(eqx.Module):
    """Where the walk stands: step i from t0 to t1, the time from which the next one started, and the times' columns."""

    i: Array
    t0: Array
    t1: Array
    after: Array
    previous_end: Array
    moves: Any

    def moved(self, clock: Array | None, t0: Any, t1: Any, after: Any) -> Array | None:
        """The clock's cotangent with those of the three times added."""
        if clock is None:
            return None
        start, end, after_ = self.moves
        return clock + t0 * start + t1 * end + after * after_


class Collected(eqx.Module):
    """The outputs of a solve of `count` steps. `cotangent`: of its final state, None where there is none."""

    model: Model
    theta: PyTree
    count: Array
    cotangent: Any
    saved: list[Output]

    @property
    def interpolates(self) -> bool:
        """Whether anything but the ends of the steps is asked for."""
        dense = (self.cotangent.dense_infos, self.cotangent.event_dense_info)
        inside = any(out.ts is not None for out in self.saved)
        return inside or bool(jax.tree.leaves(dense))

    def at_end(self, step: Step, y1: PyTree, y: PyTree, total: Totals) -> tuple[PyTree, Totals]:
        """Outputs at the end of the step: the state there, and the time."""
        after, theta = jnp.zeros_like(step.after), total.theta
        for out in (out for out in self.saved if out.every):
            n = step.i + 1
            place = out.at_start + n // out.every - 1
            if out.ts is not None:
                place = place + out.before(step.t1)
            of_t, of_value = out.at(place, (step.i < self.count) & (n % out.every == 0))
            value, pull = jax.vjp(lambda *x, out=out: self.model.output(out.which, *x), self.theta, step.after, y1)
            of_theta, by_value, of_y = pull(materialized(of_value, value))
            after, y, theta = after + of_t + by_value, add(y, of_y), add(theta, of_theta)
        return y, Totals(theta, step.moved(total.clock, 0, 0, after), total.ts, total.left)

    def edges(self, step: Step, last: Array) -> tuple[Array, Array, Array]:
        """Cotangents of (t0, t1, start of the next step) as outputs themselves."""
        c = self.cotangent
        t0, t1, after = (
            jnp.zeros_like(step.t0) if of is None else jnp.where(last, of, 0)
            for of in (c.event_tprev, c.event_tnext, c.tprev)
        )
        if c.dense_ts is not None:
            after = after + jnp.where(step.i < self.count, c.dense_ts[step.i + 1], 0)
        return t0, t1, after

    def inside(self, step: Step, last: Array, dense: dict, edges: Any, total: Totals) -> tuple[dict, Any, Totals]:
        """Outputs inside the step, dense output and the step of an event.

        `dense` is what interpolates inside the step -> its cotangent, those of the edges, totals."""
        carry = (self._dense(step, last, jax.tree.map(jnp.zeros_like, dense)), edges, total)
        for out in (out for out in self.saved if out.ts is not None):
            carry = self._times(step, out, dense, carry)
        return carry

    def _dense(self, step: Step, last: Array, zero: dict) -> dict:
        """Cotangents of what interpolates inside the step, where it is an output itself."""
        c, there = self.cotangent, step.i < self.count
        if c.dense_infos is not None:
            mine = jax.tree.map(lambda x: jnp.where(there, x[step.i], 0), c.dense_infos)
            zero = add(zero, materialized(mine, zero))
        if c.event_dense_info is not None:
            mine = jax.tree.map(lambda x: jnp.where(last, x, 0), c.event_dense_info)
            zero = add(zero, materialized(mine, zero))
        return zero

    def _times(self, step: Step, out: Output, dense: dict, carry: Any) -> Any:
        """The outputs at `ts` that lie inside the step, last to first."""
        w = out.which
        assert out.ts is not None
        ts = out.ts

        def more(state):
            left = state[0]
            inside = ts[jnp.maximum(left - 1, 0)] > step.previous_end
            return (left > 0) & inside & (step.i < self.count)

        def one(state):
            left, of_ts, of_dense, edges, theta = state
            t = ts[left - 1]
            of_time, of_value = out.at(out.place(step.i, left - 1), True)
            value, pull = jax.vjp(lambda *x: self.model.inside(w, *x), self.theta, t, step.t0, step.t1, dense)
            of_theta, of_t, t0, t1, by_dense = pull(materialized(of_value, value))
            of_ts = of_ts.at[left - 1].add(of_t + of_time)
            edges = (edges[0] + t0, edges[1] + t1, edges[2])
            return left - 1, of_ts, add(of_dense, by_dense), edges, add(theta, of_theta)

        of_dense, edges, total = carry
        state = (total.left[w], total.ts[w], of_dense, edges, total.theta)
        left, of_ts, of_dense, edges, theta = jax.lax.while_loop(more, one, state)
        return of_dense, edges, Totals(theta, total.clock, {**total.ts, w: of_ts}, {**total.left, w: left})


def materialized(cotangent: PyTree, like: PyTree) -> PyTree:
    """Zeros where there is no cotangent."""
    return jax.tree.map(lambda x, c: jnp.zeros_like(x) if c is None else c, like, cotangent)


def saved_outputs(solve: Solve, final: Any, cotangent: Any) -> list[Output]:
    """The outputs of the loop over the steps that have a cotangent. `final`: the state, `cotangent`: its own."""
    pairs = zip(outputs(solve.saveat), save_states(final), save_states(cotangent), strict=True)
    return [
        Output(which, bool(out.t0), out.steps, out.ts, materialized(of.ts, kept.ts), materialized(of.ys, kept.ys))
        for which, (out, kept, of) in enumerate(pairs)
        if jax.tree.leaves((of.ts, of.ys)) and (out.steps or out.ts is not None)
    ]
