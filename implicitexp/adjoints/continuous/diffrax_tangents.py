"""Forward mode of a solve by Diffrax: its state and tangents solved together, and what was saved of them."""

from typing import Any

import diffrax as dfx
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from implicitexp.adjoints.continuous.diffrax_outputs import Rows, floats, in_order, like_rows
from implicitexp.adjoints.continuous.sensitivity import along, at_moving_times, largest_column
from implicitexp.adjoints.continuous.trajectory import as_terms
from implicitexp.adjoints.continuous.trees import Packing

EVENT_ONCE = (
    "The continuous adjoints give first derivatives of the time of an event. For second derivatives use Replay() or "
    "diffrax.DirectAdjoint."
)


def tangents_of(solved: Any, moving: list[Array], adjoint: Any) -> tuple[list[PyTree], list[Array]]:
    """Tangents of what every SubSaveAt saved, and of its times; NaN where the solve failed.

    `solved`: a `Solved`; `moving`: tangents of its theta. Leading axis, of the result too: direction. `adjoint`: the
    `ForwardSensitivity` that says how, and that differentiates the result once more: all of it is a function of the problem
    and of `moving`, the rest of `solved` (which row is what) being constants.
    """
    if not solved.rows:
        return [], []
    if solved.ending.met:
        solved = eqxi.nondifferentiable(solved, msg=EVENT_ONCE)
    chosen = solved.chosen
    problem, flow = chosen.problem(), chosen.flow()
    start = _pushed(chosen, lambda p: (p.y0, p.t0), moving)
    fields, state = along(flow, problem.y0, problem.t0, start, moving[: chosen.own])
    end = solved.ending.moved(problem, problem, solved.ending.state)
    sol, states, columns = _at_rows(solved, fields, problem, end, state, adjoint)
    factor = jnp.where((sol.result == dfx.RESULTS.successful) & solved.succeeded, 1, jnp.nan)
    moved_end = _moved_end(solved, moving, jax.tree.map(lambda x: x[0], columns[-1]))
    unknown = solved.ending.held(problem)
    ys, ts = [], []
    for i, row in enumerate(solved.rows):
        times = row.moved(problem.t0, end, problem.ts[i])
        moved_times = _pushed(chosen, lambda p, row=row, i=i: row.moved(p.t0, end, p.ts[i]), moving)
        moved_times = jnp.where(row.at_end, moved_end[:, None], moved_times)
        values = at_moving_times(flow, times, states[i], columns[i], moved_times)
        if problem.fns[i] is not None:
            values = _values(chosen, i, (times, states[i]), moving, moved_times, values)
        ys.append(jax.tree.map(lambda x, row=row: _masked(row, x * factor.astype(x.dtype)), values))
        ts.append(_masked(row, jnp.where(row.at_end & unknown, jnp.nan, moved_times)))
    return ys, ts


def _pushed(chosen: Any, of: Any, moving: list[Array]) -> Any:
    """Tangents of a function of the problem."""
    return jax.vmap(lambda t: jax.jvp(lambda theta: of(chosen.problem(theta)), (chosen.theta,), (t,))[1])(moving)


def _at_rows(solved: Any, fields: list, problem: Any, end: Array, state: PyTree, adjoint: Any) -> tuple:
    """-> the solution of the augmented system, y and its columns at the rows of every place."""
    places, ts = solved.places, [*problem.ts, None]
    if not any(sub.steps or times is not None for sub, times in zip(solved.setup.subs, problem.ts, strict=True)):
        return _at_ends(solved, fields, problem, end, state, adjoint)
    order, _, _ = in_order(places)
    moved = [row.moved(problem.t0, end, t) for row, t in zip(places, ts, strict=False)]
    times = jnp.concatenate([jnp.where(row.valid, t, end) for row, t in zip(places, moved, strict=True)])[order]
    saveat = dfx.SaveAt(ts=_within(times, problem.t0, end))
    sol, ys = _integrate(solved.setup.solve, fields, problem, end, state, saveat, adjoint)
    place = jnp.zeros_like(order).at[order].set(jnp.arange(order.size))
    cuts = [0]
    for row in places:
        cuts.append(cuts[-1] + row.times.size)
    parts = [jax.tree.map(lambda x, a=a, b=b: x[place[a:b]], ys) for a, b in zip(cuts, cuts[1:], strict=False)]
    return sol, [states for states, _ in parts], [columns for _, columns in parts]


def _at_ends(solved: Any, fields: list, problem: Any, end: Array, state: PyTree, adjoint: Any) -> tuple:
    """The same where only the start and the end were saved: nothing is interpolated."""
    sol, ys = _integrate(solved.setup.solve, fields, problem, end, state, dfx.SaveAt(t0=True, t1=True), adjoint)
    which = [[0] * bool(sub.t0) + [1] * bool(sub.t1) for sub in solved.setup.subs] + [[1]] * bool(solved.ending.met)
    parts = [jax.tree.map(lambda x, rows=rows: x[np.array(rows, int)], ys) for rows in which]
    return sol, [states for states, _ in parts], [columns for _, columns in parts]


def _within(times: Array, low: Array, high: Array) -> Array:
    """Rounding aside the times themselves; unlike `clip`, with their own derivative at the ends."""
    return jnp.where(times < low, low, jnp.where(times > high, high, times))


def _moved_end(solved: Any, moving: list[Array], columns: PyTree) -> Array:
    """Tangents of the time of the end. `columns`: of y there, where it ended at an event."""
    chosen, ending = solved.chosen, solved.ending
    problem = chosen.problem()
    if not ending.met:
        return _pushed(chosen, lambda p: p.t1, moving)

    def one(tangents, column):
        def end(theta, state):
            return ending.moved(problem, chosen.problem(theta), state)

        return jax.jvp(end, (chosen.theta, ending.state), (tangents, column))[1]

    return jax.vmap(one)(moving, columns)


def _masked(row: Rows, x: Array) -> Array:
    """Zero in the padding; axes: direction, row."""
    return jnp.where(like_rows(row.valid, x[0]), x, 0)


def _values(chosen: Any, i: int, at: tuple[Array, PyTree], moving: list[Array], times: Array, states: PyTree) -> PyTree:
    """Tangents of fn(t, y, args) at `at`: t and y, which move by `times` and `states`."""

    def value(theta, t, y):
        problem = chosen.problem(theta)
        return jax.vmap(lambda t, y: floats(problem.fns[i](t, y, problem.args)))(t, y)

    def one(*tangents):
        return jax.jvp(value, (chosen.theta, *at), tangents)[1]

    return jax.vmap(one)(moving, times, states)


def _integrate(
    solve: Any, fields: list, problem: Any, end: Array, state: PyTree, saveat: dfx.SaveAt, adjoint: Any
) -> tuple[dfx.Solution, PyTree]:
    """-> the solution, and what it saved."""
    packing = Packing.of(state)
    sol = dfx.diffeqsolve(
        as_terms([packing.field(field) for field in fields]),
        solve.solver,
        problem.t0,
        end,
        solve.dt0,
        packing.pack(state),
        saveat=saveat,
        stepsize_controller=_for_both(solve.stepsize_controller, adjoint.in_error_test, packing),
        adjoint=adjoint,
        max_steps=solve.max_steps,
        throw=False,
    )
    return sol, jax.vmap(packing.unpack)(sol.ys)


def _for_both(controller: Any, in_error_test: bool, packing: Packing) -> Any:
    """The controller of y for (y, tangents)."""
    if isinstance(controller, dfx.ClipStepSizeController):
        return eqx.tree_at(lambda c: c.controller, controller, _for_both(controller.controller, in_error_test, packing))
    if isinstance(controller, dfx.PIDController):
        norm = largest_column(controller.norm, in_error_test)
        return eqx.tree_at(lambda c: c.norm, controller, packing.norm(norm))
    return controller
