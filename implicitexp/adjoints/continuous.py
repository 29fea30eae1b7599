"""The continuous adjoint of an ODE: lambda' = -(dF/dz)^T lambda backwards, dL/dtheta = integral of (dF/dtheta)^T lambda.

`gauss`: z comes from the forward solve's dense output, the backward solve carries lambda only, and the parameters'
integral is taken by Gauss-Legendre nodes inside each of its steps (A. C. Norcliffe and M. P. Deisenroth 2023, "Faster
Training of Neural ODEs Using Gauss-Legendre Quadrature"). `backsolve`: z, lambda and the integral are solved backwards
together (R. T. Q. Chen et al. 2018): no memory, and wrong where the ODE backwards is unstable.
"""

from typing import Any, Literal

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from implicitexp.solvers.base import all_finite
from implicitexp.solvers.ode import succeeded

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


def dense_solve(call: Any) -> tuple[PyTree, Any, Array, Array]:
    """The forward solve with dense output up to t1 -> value, interpolation, converged, steps."""
    equation = call.equation
    at = {} if equation.ts is None else {"ts": equation.ts}
    saveat = dfx.SaveAt(dense=True, t1=equation.ts is None, **at)
    sol = call.solver.integrate(equation.field, equation.y0, equation.t0, equation.t1, call.args, saveat=saveat)
    value = jax.tree.map(lambda y: y[0], sol.ys) if equation.ts is None else sol.ys
    return value, sol.interpolation, succeeded(sol), sol.stats["num_steps"]


def outputs(equation: Any, value: PyTree, cotangent: PyTree) -> tuple[Array, PyTree, PyTree]:
    """Output times in the order of time, and value and cotangent there: one kind of output, t1 or ts."""
    if equation.ts is not None:
        return equation.ts, value, cotangent
    return jax.tree.map(lambda x: x[None], (equation.t1, value, cotangent))


def backward(call: Any, split: Any, method: MethodName, tolerances: Tolerances, at: Any, interpolation: Any) -> Backward:
    """Integrate backwards from the last output to t0, output by output; `at` is what `outputs` returned."""
    times, values, cotangents = at
    below = jnp.concatenate([call.equation.t0[None], times[:-1]])
    segment = {"gauss": _gauss, "backsolve": _backsolve}[method]

    def step(carry, x):
        upper, lower, value, cotangent = x
        adjoint, theta, converged, steps = carry
        adjoint = jax.tree.map(jnp.add, adjoint, cotangent)
        adjoint, part, ok, n = segment(call, split, tolerances, upper, lower, value, adjoint, interpolation)
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


def _gauss(call, split, tolerances, upper, lower, value, adjoint, interpolation):
    """One segment: lambda by the solver, theta's integral by Gauss-Legendre nodes in its accepted steps."""
    del value
    solver = call.solver

    def field(t, w, args):
        call, interpolation = args
        z = interpolation.evaluate(t)
        pullback = jax.vjp(lambda z: call.equation.field(t, z, call.args), z)[1]
        return jax.tree.map(jnp.negative, pullback(w)[0])

    # Of the mesh only the times: what is saved at steps is padded with inf up to max_steps, its last entry too.
    mesh = dfx.SubSaveAt(t0=True, steps=True, fn=lambda t, w, args: t)
    sol = solver.integrate(
        field,
        adjoint,
        upper,
        lower,
        (call, interpolation),
        saveat=dfx.SaveAt(subs=(dfx.SubSaveAt(t1=True), mesh), dense=True),
        rtol=tolerances.rtol,
        atol=tolerances.atol,
        max_steps=tolerances.max_steps,
    )
    _, mesh_times = sol.ts
    accepted = sol.stats["num_accepted_steps"]
    nodes, weights = _gauss_legendre(solver.order, upper.dtype)

    def integrand(t):
        z, w = interpolation.evaluate(t), sol.interpolation.evaluate(t)
        return jax.vjp(lambda theta: _slope(split, theta, t, z), split.theta)[1](w)[0]

    def add(i, total):
        a, b = mesh_times[i], mesh_times[i + 1]
        parts = jax.vmap(integrand)(a + nodes * (b - a))
        return jax.tree.map(
            lambda x, p: x - jnp.tensordot((weights * (b - a)).astype(p.dtype), p, 1), total, parts
        )

    theta = jax.lax.fori_loop(0, accepted, add, jax.tree.map(jnp.zeros_like, split.theta))
    final = jax.tree.map(lambda y: y[0], sol.ys[0])
    same = upper == lower
    final = jax.tree.map(lambda a, b: jnp.where(same, a, b), adjoint, final)
    return final, theta, succeeded(sol), jnp.asarray(sol.stats["num_steps"], jnp.int32)


def _backsolve(call, split, tolerances, upper, lower, value, adjoint, interpolation):
    """One segment: z, lambda and theta's integral in one system, all in the error test."""
    del interpolation

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


def _gauss_legendre(order: int, dtype: Any) -> tuple[Array, Array]:
    """Nodes and weights on [0, 1], exact to the order of the solver and two more."""
    x, w = np.polynomial.legendre.leggauss(order // 2 + 2)
    return jnp.asarray((x + 1) / 2, dtype), jnp.asarray(w / 2, dtype)
