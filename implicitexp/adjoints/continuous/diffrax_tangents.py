"""Forward mode of a solve by Diffrax: its state and tangents solved together, and what was saved of them."""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from implicitexp.adjoints.continuous.diffrax_outputs import Rows, floats, in_order, like_rows
from implicitexp.adjoints.continuous.sensitivity import along, at_moving_times, largest_column
from implicitexp.adjoints.continuous.trajectory import as_terms


def tangents_of(solved: Any, moving: list[Array], in_error_test: bool) -> tuple[list[PyTree], list[Array]]:
    """Tangents of what every SubSaveAt saved, and of its times; NaN where the solve failed.

    `solved`: a `Solved`; `moving`: tangents of its theta. Leading axis, of the result too: direction.
    """
    chosen = solved.chosen
    problem, flow = chosen.problem(), chosen.flow()

    def moved(of: Any) -> Any:
        return jax.vmap(lambda t: jax.jvp(lambda theta: of(chosen.problem(theta)), (chosen.theta,), (t,))[1])(moving)

    start = moved(lambda p: (p.y0, p.t0))
    fields, state = along(flow, problem.y0, problem.t0, start, moving[: chosen.own])
    order, times, _ = in_order(solved.rows)
    sol = _integrate(solved.setup.solve, fields, problem, state, jnp.clip(times, problem.t0, problem.t1), in_error_test)
    place = jnp.zeros_like(order).at[order].set(jnp.arange(order.size))
    columns = jax.tree.map(lambda x: x[place], sol.ys[1])
    factor = jnp.where((sol.result == dfx.RESULTS.successful) & solved.succeeded, 1, jnp.nan)
    ys, ts, first = [], [], 0
    for i, row in enumerate(solved.rows):
        own = jax.tree.map(lambda x, a=first, b=first + row.times.size: x[a:b], columns)
        first += row.times.size
        moved_times = moved(lambda p, row=row, i=i: row.moved(p.t0, p.t1, p.ts[i]))
        states = at_moving_times(flow, row.times, row.states, own, moved_times)
        values = states if problem.fns[i] is None else _values(chosen, i, row, moving, moved_times, states)
        ys.append(jax.tree.map(lambda x, row=row: _masked(row, x * factor.astype(x.dtype)), values))
        ts.append(_masked(row, moved_times))
    return ys, ts


def _masked(row: Rows, x: Array) -> Array:
    """Zero in the padding; axes: direction, row."""
    return jnp.where(like_rows(row.valid, x[0]), x, 0)


def _values(chosen: Any, i: int, row: Rows, moving: list[Array], times: Array, states: PyTree) -> PyTree:
    """Tangents of fn(t, y, args)."""

    def value(theta, t, y):
        problem = chosen.problem(theta)
        return jax.vmap(lambda t, y: floats(problem.fns[i](t, y, problem.args)))(t, y)

    def one(*tangents):
        return jax.jvp(value, (chosen.theta, row.times, row.states), tangents)[1]

    return jax.vmap(one)(moving, times, states)


def _integrate(solve: Any, fields: list, problem: Any, state: PyTree, times: Array, in_error_test: bool) -> Any:
    return dfx.diffeqsolve(
        as_terms(fields),
        solve.solver,
        problem.t0,
        problem.t1,
        solve.dt0,
        state,
        saveat=dfx.SaveAt(ts=times),
        stepsize_controller=_for_both(solve.stepsize_controller, in_error_test),
        adjoint=dfx.ForwardMode(),
        max_steps=solve.max_steps,
        throw=False,
    )


def _for_both(controller: Any, in_error_test: bool) -> Any:
    """The controller of y for (y, tangents)."""
    if isinstance(controller, dfx.ClipStepSizeController):
        return eqx.tree_at(lambda c: c.controller, controller, _for_both(controller.controller, in_error_test))
    if isinstance(controller, dfx.PIDController):
        return eqx.tree_at(lambda c: c.norm, controller, largest_column(controller.norm, in_error_test))
    return controller
