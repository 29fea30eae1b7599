"""The continuous adjoint of an ODE: lambda' = -(dF/dz)^T lambda backwards, dL/dtheta = integral (dF/dtheta)^T lambda.

`gauss`: z comes from the forward solve's steps, see `gauss.py`. `backsolve`: z, lambda and the integral are solved
backwards together (R. T. Q. Chen et al. 2018): no memory, and wrong where the ODE backwards is unstable.
"""

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from implicitexp.solvers.base import all_finite
from implicitexp.solvers.ode import succeeded

from .gauss import GaussWalk, Mesh, Outputs

MethodName = Literal["gauss", "backsolve"]


class Tolerances(eqx.Module):
    """Of the backward solve; None: those of the forward solver."""

    rtol: Any = None
    atol: Any = None
    max_steps: int | None = eqx.field(static=True, default=None)


class Backward(eqx.Module):
    """The adjoint state at t0, the parameters' part, and what is known of the backward solves."""

    adjoint: PyTree
    theta: list[Array]
    converged: Array
    steps: Array


def outputs(equation: Any, value: PyTree, cotangent: PyTree) -> Outputs:
    """Output times in the order of time, and value and cotangent there: one kind of output, t1 or ts."""
    if equation.ts is not None:
        return equation.ts, value, cotangent
    return jax.tree.map(lambda x: x[None], (equation.t1, value, cotangent))


def by_gauss(split: Any, tolerances: Tolerances, at: Outputs, mesh: Mesh) -> Backward:
    """The adjoint by `gauss`; `at` is what `outputs` returned."""
    return Backward(*GaussWalk(split, mesh, at, tolerances)())


def by_backsolve(split: Any, tolerances: Tolerances, at: Outputs) -> Backward:
    """Integrate backwards from the last output to t0, output by output."""
    call = split.call()
    times, values, cotangents = at
    below = jnp.concatenate([call.equation.t0[None], times[:-1]])

    def step(carry, x):
        upper, lower, value, cotangent = x
        adjoint, theta, converged, steps = carry
        adjoint = jax.tree.map(jnp.add, adjoint, cotangent)
        adjoint, part, ok, n = _segment(call, split, tolerances, upper, lower, value, adjoint)
        return (adjoint, jax.tree.map(jnp.add, theta, part), converged & ok, steps + n), None

    start = (
        jax.tree.map(jnp.zeros_like, call.equation.y0),
        jax.tree.map(jnp.zeros_like, split.theta),
        jnp.array(True),
        jnp.array(0, jnp.int32),
    )
    final, _ = jax.lax.scan(step, start, (times, below, values, cotangents), reverse=True)
    adjoint, theta, converged, steps = final
    return Backward(adjoint, theta, converged & all_finite((adjoint, theta)), steps)


def _segment(call, split, tolerances, upper, lower, value, adjoint):
    """One segment: z, lambda and theta's integral in one system, all in the error test."""

    def field(t, state, args):
        call, split = args
        z, w, _ = state
        slope, pullback = jax.vjp(lambda z, theta: _slope(split, theta, t, z), z, split.theta)
        by_z, by_theta = pullback(w)
        return slope, jax.tree.map(jnp.negative, by_z), jax.tree.map(jnp.negative, by_theta)

    sol = call.solver.integrate(
        field,
        (value, adjoint, jax.tree.map(jnp.zeros_like, split.theta)),
        upper,
        lower,
        (call, split),
        rtol=tolerances.rtol,
        atol=tolerances.atol,
        max_steps=tolerances.max_steps,
    )
    _, adjoint, theta = jax.tree.map(lambda y: y[0], sol.ys)
    return adjoint, theta, succeeded(sol), jnp.asarray(sol.stats["num_steps"], jnp.int32)


def _slope(split: Any, theta: list[Array], t: Array, z: PyTree) -> PyTree:
    """F(t, z) with the parameters theta."""
    call = split.call(theta)
    return call.equation.field(t, z, call.args)
