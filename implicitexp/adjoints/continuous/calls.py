"""The framework's continuous adjoints: a solve by one of its solvers (`Call`), cut by a strategy (`Split`), as what the
adjoints of this folder take.

`gauss`: the state comes from the forward solve's steps, see `trajectory.py`, `walk.py`, `gauss.py`. `backsolve`: the
state is solved backwards as well, see `backsolve.py`. Forward mode: `sensitivity.py`.
"""

from typing import Any, Literal

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from implicitexp.adjoints.continuous.backsolve import Nodes, backsolve
from implicitexp.adjoints.continuous.gauss import ByNodes
from implicitexp.adjoints.continuous.linear_stages import for_linear
from implicitexp.adjoints.continuous.sensitivity import along, at_moving_times
from implicitexp.adjoints.continuous.trajectory import Flow, Mesh, Trajectory, plain, storage
from implicitexp.adjoints.continuous.walk import Backward, Outputs, Walk, for_state
from implicitexp.solvers.ode import succeeded

MethodName = Literal["gauss", "backsolve"]
AtOutputs = tuple[Array, PyTree, PyTree]  # times, values, cotangents


class Tolerances(eqx.Module):
    """Of the backward solve; None: those of the forward solver."""

    rtol: Any = None
    atol: Any = None
    max_steps: int | None = eqx.field(static=True, default=None)

    def given(self) -> dict[str, Any]:
        return {"rtol": self.rtol, "atol": self.atol}


class _Field(eqx.Module):
    """dy/ds of a split call, s = direction t."""

    split: Any
    direction: Array

    def __call__(self, theta: list[Array], s: Any, y: PyTree) -> PyTree:
        call = self.split.call(theta)
        slope = call.equation.field(self.direction * s, y, call.args)
        return jax.tree.map(lambda f: self.direction.astype(f.dtype) * f, slope)


def direction_of(equation: Any) -> Array:
    return jnp.where(equation.t1 < equation.t0, -1, 1).astype(equation.t0.dtype)


def flow_of(split: Any) -> Flow:
    return Flow((_Field(split, direction_of(split.call().equation)),), split.theta)


def outputs(equation: Any, value: PyTree, cotangent: PyTree) -> AtOutputs:
    """Output times in the order of time, and value and cotangent there: one kind of output, t1 or ts."""
    if equation.ts is not None:
        return equation.ts, value, cotangent
    return jax.tree.map(lambda x: x[None], (equation.t1, value, cotangent))


def solve_with_mesh(call: Any) -> tuple[PyTree, Mesh, Array, Array]:
    """-> value, mesh, converged, steps."""
    equation, solver = call.equation, call.solver
    method, direction = solver.stepper(equation.y0), direction_of(equation)
    store = storage(method, solver.max_steps, _step_info(call, method), equation.y0)
    saved = dfx.SubSaveAt(t1=True) if equation.ts is None else dfx.SubSaveAt(ts=equation.ts)
    kept = dfx.SubSaveAt(t0=True, steps=True, fn=_state if store == "steps" else _time)
    dense = store == "stages"
    saveat = dfx.SaveAt(subs=(saved,) if dense else (saved, kept), dense=dense)
    sol = solver.integrate(equation.field, equation.y0, equation.t0, equation.t1, call.args, saveat=saveat)
    value = jax.tree.map(lambda y: y[0], sol.ys[0]) if equation.ts is None else sol.ys[0]
    if dense:
        times, held = sol.interpolation.ts, {"infos": sol.interpolation.infos}
    else:
        times, held = direction * sol.ts[1], {"states": sol.ys[1]} if store == "steps" else {}
    return value, Mesh.of(times, sol.stats["num_accepted_steps"], **held), succeeded(sol), sol.stats["num_steps"]


def _step_info(call: Any, method: Any) -> PyTree:
    """Shapes of what a step leaves for its interpolation."""

    def info():
        equation = call.equation
        terms, y, t0, t1 = dfx.ODETerm(equation.field), equation.y0, equation.t0, equation.t1
        state = method.init(terms, t0, t1, y, call.args)
        return method.step(terms, t0, t1, y, call.args, state, jnp.array(False))[2]

    return jax.eval_shape(info)


def _state(t: Any, y: PyTree, args: PyTree) -> PyTree:
    return y


def _time(t: Any, y: PyTree, args: PyTree) -> Any:
    return t


def by_gauss(split: Any, tolerances: Tolerances, at: AtOutputs, mesh: Mesh) -> Backward:
    """The adjoint by `gauss`; `at` is what `outputs` returned."""
    call = split.call()
    y0, solver, given = call.equation.y0, call.solver, tolerances.given()
    times, _, cotangents = at
    ahead = Outputs(direction_of(call.equation) * times, cotangents, jnp.array(times.size, jnp.int32))
    trajectory = Trajectory(flow_of(split), plain(solver.stepper(y0)), mesh, y0)
    method, controller = solver.stepper(y0, **given), solver.controller(y0, **given)
    return Walk(trajectory, ahead, for_linear(method), for_state(controller), ByNodes(), tolerances.max_steps)()


def by_backsolve(split: Any, tolerances: Tolerances, at: AtOutputs) -> Backward:
    """Integrate backwards from the last output to t0, output by output."""
    call = split.call()
    equation, direction = call.equation, direction_of(call.equation)
    times, values, cotangents = at

    def integrate(fields, state, upper, lower):
        sol = call.solver.integrate(
            lambda s, state, _: fields[0](s, state),
            state,
            upper,
            lower,
            None,
            rtol=tolerances.rtol,
            atol=tolerances.atol,
            max_steps=tolerances.max_steps,
        )
        return jax.tree.map(lambda y: y[0], sol.ys), succeeded(sol), sol.stats["num_steps"]

    nodes = Nodes(direction * times, values, cotangents)
    return backsolve(flow_of(split), direction * equation.t0, equation.y0, nodes, integrate)[0]


def sensitivities(split: Any, tangents: list[Array]) -> tuple[PyTree, Array, Array]:
    """-> tangents of the value (leading axis: direction), converged, steps. `tangents`: leading axis a direction."""
    flow, call = flow_of(split), split.call()
    equation, solver, direction = call.equation, call.solver, direction_of(call.equation)

    def moved(of: Any) -> Any:
        return jax.vmap(lambda t: jax.jvp(lambda theta: of(split.call(theta).equation), (split.theta,), (t,))[1])(
            tangents
        )

    s0, s1 = direction * equation.t0, direction * equation.t1
    start = moved(lambda e: (e.y0, direction * e.t0))
    fields, state = along(flow, equation.y0, s0, start, tangents)
    times, moved_times = (
        (s1[None], moved(lambda e: e.t1[None]))
        if equation.ts is None
        else (direction * equation.ts, moved(lambda e: e.ts))
    )
    saveat = dfx.SaveAt(t1=True) if equation.ts is None else dfx.SaveAt(ts=times)
    sol = solver.integrate(lambda s, state, _: fields[0](s, state), state, s0, s1, None, saveat=saveat)
    states, columns = sol.ys
    columns = at_moving_times(flow, times, states, columns, direction * moved_times)
    value = jax.tree.map(lambda x: x[:, 0], columns) if equation.ts is None else columns
    return value, succeeded(sol), sol.stats["num_steps"]
