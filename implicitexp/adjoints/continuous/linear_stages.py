"""Stages of an implicit Runge-Kutta method for a linear ODE: each is one linear solve.

The adjoint equation is linear in its state. Newton's method is then exact after one step, where Diffrax's and
Optimistix's root finders take a second one to see it, and a chord method iterates on a Jacobian of another time.
"""

from collections.abc import Callable
from typing import Any, cast

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
from jaxtyping import Array, Int, PyTree, Scalar

from implicitexp.adjoints.continuous.trajectory import plain


class _State(eqx.Module):
    steps: Int[Array, ""]
    solved: Any


class LinearStage(optx.AbstractRootFinder):
    """The root of a function that is affine in y: y - (df/dy)^-1 f(y). It has no tolerance to keep."""

    rtol: Any = 0.0
    atol: Any = 0.0
    norm: Callable[[PyTree], Scalar] = optx.max_norm
    linear_solver: lx.AbstractLinearSolver = lx.AutoLinearSolver(well_posed=True)

    def init(self, fn, y, args, options, f_struct, aux_struct, tags) -> _State:
        del fn, y, args, options, f_struct, aux_struct, tags
        return _State(jnp.array(0, jnp.int32), jnp.array(True))

    def step(self, fn, y, args, options, state: _State, tags) -> tuple[PyTree, _State, PyTree]:
        del options
        residual, linear, aux = jax.linearize(lambda y: fn(y, args), y, has_aux=True)
        operator = lx.FunctionLinearOperator(linear, jax.eval_shape(lambda: y), tags=tags)
        solution = lx.linear_solve(operator, residual, self.linear_solver, throw=False)
        solved = solution.result == lx.RESULTS.successful
        return jax.tree.map(jnp.subtract, y, solution.value), _State(state.steps + 1, solved), aux

    def terminate(self, fn, y, args, options, state: _State, tags) -> tuple[Array, optx.RESULTS]:
        del fn, y, args, options, tags
        failed = optx.RESULTS.where(state.solved, optx.RESULTS.successful, optx.RESULTS.nonlinear_divergence)
        return state.steps > 0, failed

    def postprocess(self, fn, y, aux, args, options, state, tags, result):
        return y, aux, {}


def for_linear(solver: dfx.AbstractSolver) -> dfx.AbstractSolver:
    """The solver for a linear ODE: itself, an implicit one with `LinearStage`."""
    solver = plain(solver)
    if isinstance(solver, dfx.AbstractWrappedSolver):
        return eqx.tree_at(lambda s: s.solver, solver, for_linear(solver.solver))
    if isinstance(solver, dfx.AbstractImplicitSolver):
        return eqx.tree_at(lambda s: cast(Any, s).root_finder, solver, LinearStage())
    return solver
