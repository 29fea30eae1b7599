"""What Gauss and Interpolating share: the forward solve's steps, and a backward solve over them."""

import abc
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from implicitexp.adjoints.continuous.diffrax_forward import Recording, Setup, Solved, buffered
from implicitexp.adjoints.continuous.diffrax_outputs import Saved
from implicitexp.adjoints.continuous.diffrax_problem import Problem
from implicitexp.adjoints.continuous.diffrax_rule import AbstractContinuous
from implicitexp.adjoints.continuous.forward_sensitivity import ForwardSensitivity
from implicitexp.adjoints.continuous.linear_stages import for_linear
from implicitexp.adjoints.continuous.trajectory import Mesh, Trajectory, plain, storage
from implicitexp.adjoints.continuous.walk import AbstractParameters, Backward, Outputs, Walk, for_state
from implicitexp.errors import Unsupported


class AbstractOverSteps(AbstractContinuous):
    """A continuous adjoint that goes back over the steps of the forward solve."""

    rtol: eqx.AbstractVar[Any]
    atol: eqx.AbstractVar[Any]
    solver: eqx.AbstractVar[dfx.AbstractSolver | None]
    stepsize_controller: eqx.AbstractVar[dfx.AbstractStepSizeController | None]
    max_steps: eqx.AbstractVar[int | None]
    store: eqx.AbstractVar[str | None]

    @abc.abstractmethod
    def parameters(self) -> AbstractParameters:
        """How the integral over the parameters is taken."""

    def recording(self, problem: Problem, setup: Setup) -> Recording:
        steps, name = setup.solve.max_steps, type(self).__name__
        if self.store not in ("stages", "steps", "times", None):
            raise Unsupported(f"{name}(store={self.store!r}) is not one of stages, steps, times, None.")
        if steps is None:
            raise Unsupported(
                f"{name} keeps the forward solve's steps, and max_steps=None gives no bound for them; set max_steps, or "
                "use Backsolve(checkpoints=...)."
            )
        info = _step_info(problem, setup)
        store = storage(setup.solve.solver, steps, info, problem.y0) if self.store is None else self.store
        if store == "stages":
            infos = jax.tree.map(lambda x: jnp.zeros((steps, *x.shape), x.dtype), info)
            return Recording([], [], infos)
        ends = jnp.full(steps + 1, jnp.inf, problem.t0.dtype)
        fn, like = (_state, {"state": problem.y0}) if store == "steps" else (_time, {"time": problem.t0})
        sub, state = buffered(dfx.SubSaveAt(t0=True, steps=1, fn=fn), ends, like)
        return Recording([sub], [state])

    def tangents(self, solved: Solved, moving: list[Array]) -> tuple[list[PyTree], list[Array]]:
        return ForwardSensitivity().tangents(solved, moving)

    def backward(self, solved: Solved, ahead: Outputs, saved: Saved) -> tuple[Backward, list[Array]]:
        solve, problem = solved.setup.solve, solved.chosen.problem()
        jumps = jumps_of(solve.stepsize_controller)
        if not solved.recorded:
            assert solved.infos is not None
            times, infos = solved.infos
            mesh = Mesh.of(times, solved.accepted, jumps, infos=infos)
        else:
            (record,) = solved.recorded
            mesh = Mesh.of(record.ts, solved.accepted, jumps, states=record.ys.get("state"))
        trajectory = Trajectory(solved.chosen.flow(), plain(solve.solver), mesh, problem.y0)
        method = for_linear(solve.solver if self.solver is None else self.solver)
        controller = for_state(backward_controller(self, solve.stepsize_controller))
        return Walk(trajectory, ahead, method, controller, self.parameters(), self.max_steps)(), []


def backward_controller(adjoint: Any, forward: Any) -> Any:
    """The adjoint's own step size control; else the forward solve's, with the tolerances that the adjoint has."""
    if adjoint.stepsize_controller is not None:
        return adjoint.stepsize_controller
    given = {name: x for name in ("rtol", "atol") if (x := getattr(adjoint, name)) is not None}
    if not given:
        return forward
    if isinstance(forward, dfx.ClipStepSizeController):
        return eqx.tree_at(lambda c: c.controller, forward, backward_controller(adjoint, forward.controller))
    if isinstance(forward, dfx.AbstractAdaptiveStepSizeController):
        names, values = zip(*given.items(), strict=True)
        return eqx.tree_at(lambda c: [getattr(c, name) for name in names], forward, list(values))
    both = {"rtol": next(iter(given.values())), "atol": next(iter(given.values()))}
    return dfx.PIDController(**{**both, **given})


def jumps_of(controller: Any) -> Array | None:
    """Where the field is said to jump."""
    if not isinstance(controller, dfx.ClipStepSizeController):
        return None
    inner, own = jumps_of(controller.controller), controller.jump_ts
    if inner is None or own is None:
        return inner if own is None else own
    return jnp.sort(jnp.concatenate([inner, own]))


def _step_info(problem: Problem, setup: Setup) -> PyTree:
    """Shapes of what a step leaves for its interpolation."""
    solver, state = setup.solve.solver, setup.solve.init_state

    def info():
        terms, y, args = problem.terms(), problem.y0, problem.args
        return solver.step(terms, problem.t0, problem.t1, y, args, state.solver_state, state.made_jump)[2]

    return eqx.filter_eval_shape(info)


def _state(t: Any, y: PyTree, args: PyTree) -> PyTree:
    return {"state": y}


def _time(t: Any, y: PyTree, args: PyTree) -> PyTree:
    return {"time": t}
