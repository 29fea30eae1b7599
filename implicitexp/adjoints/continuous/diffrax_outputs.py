"""What a solve saved, as the adjoint sees it: rows, each a time, the state there, and a cotangent."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from implicitexp.adjoints.continuous.diffrax_event import Ending
from implicitexp.adjoints.continuous.diffrax_problem import Problem
from implicitexp.adjoints.continuous.trees import count, dot, normalized, scaled
from implicitexp.adjoints.continuous.walk import Outputs


class Rows(eqx.Module):
    """What one SubSaveAt saved: rows 0, ..., in the order of time; rows that are not valid are padding, which holds the
    time and the state of the start.

    A time is t0, an entry of `ts`, the end of the solve (t1, or an event), or the end of a step; the last is a constant
    unless it is the end of the solve.
    """

    times: Float[Array, " rows"]
    states: PyTree  # leading axis: rows
    valid: Bool[Array, " rows"]
    at_t0: Bool[Array, " rows"]
    at_end: Bool[Array, " rows"]
    at_ts: Int[Array, " rows"]  # index into ts; -1: none

    @classmethod
    def of(cls, sub: Any, saved: Any, states: PyTree, problem: Problem, ts: Any, end: Array) -> "Rows":
        """`sub`: with the flags t0, t1, steps; `saved`: Diffrax's SaveState; `states`: y at its rows; `end`: t1, or the time
        of an event, after which no `ts` are saved."""
        rows = jnp.arange(saved.ts.size)
        # With every n-th step saved, Diffrax counts the row of t1 also where it leaves it empty.
        valid = (rows < saved.save_index) & jnp.isfinite(saved.ts)
        at_t0 = rows < int(sub.t0)
        at_ts = jnp.full(saved.ts.shape, -1)
        if ts is not None:
            # With steps saved between them, an entry of ts stands after the steps that ended before it.
            before = jnp.sum((valid & ~at_t0) & (saved.ts < ts[:, None]), axis=1) - jnp.searchsorted(ts, ts)
            index = jnp.arange(ts.size)
            places = int(sub.t0) + index + (before if sub.steps else 0)
            at_ts = at_ts.at[jnp.where(ts <= end, places, rows.size)].set(index, mode="drop")
        at_end = valid & ~at_t0 & (at_ts < 0) & (saved.ts == end)
        return cls(
            jnp.where(valid, saved.ts, problem.t0),
            jax.tree.map(lambda ys, y: jnp.where(like_rows(valid, ys), ys, y), states, problem.y0),
            valid,
            at_t0,
            at_end,
            at_ts,
        )

    @classmethod
    def of_end(cls, ending: Ending) -> "Rows":
        """One row, of the end."""
        yes, no = jnp.array([True]), jnp.array([False])
        state = jax.tree.map(lambda y: y[None], ending.state)
        return cls(ending.time[None], state, yes, no, yes, jnp.array([-1]))

    def moved(self, t0: Array, end: Array, ts: Array | None) -> Array:
        """The times, as functions of those of the start, the end and `ts`."""
        times = jnp.where(self.at_t0, t0, jnp.where(self.at_end, end, self.times))
        return times if ts is None else jnp.where(self.at_ts >= 0, ts[self.at_ts], times)

    def masked(self, cotangent: PyTree) -> PyTree:
        """Zero in the padding, where a loss may well have left NaN."""
        return jax.tree.map(lambda c: jnp.where(like_rows(self.valid, c), c, 0), cotangent)


def floats(tree: PyTree) -> PyTree:
    return eqx.filter(tree, eqx.is_inexact_array)


def like_rows(mask: Array, x: Array) -> Array:
    """A mask of rows, broadcastable to x."""
    return jnp.reshape(mask, mask.shape + (1,) * (x.ndim - mask.ndim))


class Saved(eqx.Module):
    """The rows of every SubSaveAt, and the cotangents that they got: of what was saved, of its time, of y."""

    rows: list[Rows]
    ending: Ending
    by_value: list[PyTree]
    by_time: list[Array]
    by_state: list[PyTree]
    at_event: PyTree = None  # of y at the end, through the time of an event

    @classmethod
    def of(cls, solved: Any, ys: list[PyTree], ts: list[Array], problem: Problem) -> "Saved":
        """The cotangents `ys` of the values and `ts` of their times, pulled back to y through what was saved of it.
        `solved`: a `Solved`."""
        rows = solved.rows
        by_value = [r.masked(y) for r, y in zip(rows, ys, strict=True)]
        by_time = [r.masked(t) for r, t in zip(rows, ts, strict=True)]

        def pull(row: Rows, fn: Any, value: PyTree) -> PyTree:
            if fn is None:
                return value

            def one(t, y, c):
                return jax.vjp(lambda y: floats(fn(t, y, problem.args)), y)[1](c)[0]

            return jax.vmap(one)(row.times, row.states, value)

        by_state = [pull(*x) for x in zip(rows, problem.fns, by_value, strict=True)]
        saved = cls(rows, solved.ending, by_value, by_time, by_state)
        return saved._with_event(problem) if solved.ending.met else saved

    def _with_event(self, problem: Problem) -> "Saved":
        """The cotangent of the end's time goes to the state there."""
        end = self.ending
        by_end = jax.grad(lambda time: self._over_rows(problem, problem, time))(end.time)
        (at_event,) = jax.vjp(lambda y: end.moved(problem, problem, y), end.state)[1](by_end)
        return dataclasses.replace(self, at_event=at_event)

    def normalized(self, like: PyTree) -> tuple["Saved", Array]:
        """With the cotangents of y at norm sqrt(numbers of y): -> that, and the factor that undoes it."""
        (by_state, at_event), size = normalized((self.by_state, self.at_event), count(like))
        by_value, by_time = scaled((self.by_value, self.by_time), 1 / size)
        return Saved(self.rows, self.ending, by_value, by_time, by_state, at_event), size

    def outputs(self, like: PyTree) -> Outputs:
        """Where y's cotangents are, in the order of time. `like`: y."""
        rows, by_state = self.rows, self.by_state
        if self.ending.met:
            rows = [*rows, Rows.of_end(self.ending)]
            by_state = [*by_state, jax.tree.map(lambda c: c[None], self.at_event)]
        order, times, valid = in_order(rows)
        together = jax.tree.map(lambda _, *cs: jnp.concatenate(cs)[order], like, *by_state)
        return Outputs(times, together, valid)

    def boundary(self, problem: Problem, moved: Problem, adjoint: PyTree) -> Array:
        """What the start, the times and the functions that saved contribute, as a function of the problem `moved`:
        <lambda, y0> - t0 <lambda, F(t0)> + sum of <c_y, F> t + <c, fn(t, y, args)> + c_t t over the rows."""
        start = dot(adjoint, moved.y0) - moved.t0 * dot(adjoint, problem.slope(problem.t0, problem.y0))
        return start + self._over_rows(problem, moved, self.ending.moved(problem, moved, self.ending.state))

    def _over_rows(self, problem: Problem, moved: Problem, end: Array) -> Array:
        """The part of the rows, as a function of the time of the end besides."""
        total = jnp.zeros(())
        for row, fn, ts, value, by_time, state in zip(
            self.rows, moved.fns, moved.ts, self.by_value, self.by_time, self.by_state, strict=True
        ):
            times = row.moved(moved.t0, end, ts)
            slopes = jax.vmap(problem.slope)(row.times, row.states)
            total = total + jnp.sum(times * (jax.vmap(dot)(state, slopes) + by_time))
            if fn is not None:
                saved = jax.vmap(lambda t, y, fn=fn: floats(fn(t, y, moved.args)))(times, row.states)
                total = total + dot(value, saved)
        return total


def in_order(rows: list[Rows]) -> tuple[Array, Array, Array]:
    """-> the order of all rows in time with the padding last, their times, how many are valid."""
    times = jnp.concatenate([jnp.where(r.valid, r.times, jnp.inf) for r in rows])
    valid = jnp.sum(jnp.concatenate([r.valid for r in rows])).astype(jnp.int32)
    order = jnp.arange(times.size) if len(rows) == 1 else jnp.argsort(times, stable=True)
    return order, times[order], valid
