"""Implicit differentiation to a tolerance: `implicit`, `iterated`, and `adjoint` for every kind of equation."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optimistix as optx
from algebra import TIGHT, contracting, exact, exact_bent, loss, residual, slope
from panels import Panel, over, relative
from problems import peak, predators

import implicitexp
from implicitexp.adjoints import Iterated, OneStep
from implicitexp.solvers import GaussKronrod, Newton, Picard, Tsit5

ERROR = "relative error of the gradient"


def implicit() -> list[Panel]:
    """A fixed point of contraction 0.9, stopped earlier and earlier."""
    eigenvalues = contracting(0.9)
    tolerances = [10.0**-k for k in range(1, 13)]
    adjoints = {
        "implicit": optx.ImplicitAdjoint(),
        "unroll": optx.RecursiveCheckpointAdjoint(),
        "one_step": OneStep(),
    }

    def both(adjoint):
        def of(tolerance):
            solver = optx.FixedPointIteration(tolerance, tolerance)
            return jax.value_and_grad(loss)(jnp.array(0.0), eigenvalues, solver, adjoint)

        return jax.jit(of)

    found = {name: [both(adjoint)(t) for t in tolerances] for name, adjoint in adjoints.items()}
    value = jnp.sum(1 / eigenvalues)
    errors = [relative(v, value) for v, _ in found["implicit"]]
    curves = {name: [relative(g, exact(eigenvalues)) for _, g in rows] for name, rows in found.items()}
    title = "A fixed point of contraction 0.9, 20 unknowns, stopped early"
    return [Panel(title, "relative error of the solution", ERROR, errors, curves, {"equal": errors})]


def iterated() -> list[Panel]:
    """Iterations of the adjoint equation until the residual is eps^(3/4), by its own report."""
    contractions = [0.5, 0.8, 0.9, 0.95, 0.99, 0.999]
    solver = optx.Newton(1e-12, 1e-12)
    taken: list[int] = []
    tolerance = float(jnp.finfo(jnp.float64).eps) ** 0.75

    def record(residual, steps):
        del residual
        taken.append(int(steps))

    def iterations(accelerate):
        gradient = slope(solver, Iterated(accelerate=accelerate, max_steps=100_000, preconditioner=1.0, record=record))

        def count(contraction):
            taken.clear()
            jax.block_until_ready(gradient(contracting(contraction)))
            jax.effects_barrier()
            return max(taken)

        return over(contractions, count)

    rates = [-math.log(c) for c in contractions]
    curves = {"accelerate=None": iterations(None), 'accelerate="anderson"': iterations("anderson")}
    guides = {"log(tolerance) / log(contraction)": [-math.log(tolerance) / r for r in rates]}
    title = "Iterated(): 20 unknowns"
    panel = Panel(title, "1 - contraction", "iterations", [1 - c for c in contractions], curves, guides)
    return [panel]


def adjoint() -> list[Panel]:
    """`rtol` and `atol` of the adjoint solve, for each kind of equation, the forward solve being tight."""
    tolerances = [10.0**-k for k in range(2, 12)]
    bend, width = 0.01, 0.01
    f, b = residual(contracting(0.9), bend)
    straight, _ = residual(contracting(0.9))
    start = jnp.linalg.solve(jax.jacfwd(straight)(b, 0.0), b)  # of the problem without its cubic term

    def root(theta, strategy):
        equation = implicitexp.Root(f, start)
        return b @ implicitexp.solve(equation, theta, solver=Newton(rtol=1e-12, atol=1e-12), gradient=strategy).value

    def fixed_point(theta, strategy):
        equation = implicitexp.FixedPoint(lambda y, theta: y - straight(y, theta), start)
        return b @ implicitexp.solve(equation, theta, solver=Picard(rtol=TIGHT, atol=TIGHT), gradient=strategy).value

    def ode(a, strategy):
        """At rest, so that the forward solve takes three steps and is exact."""
        equation = implicitexp.ODE(predators, jnp.ones(2), 0.0, 10.0)
        return implicitexp.solve(equation, a, solver=Tsit5(rtol=1e-3, atol=1e-3), gradient=strategy).value.sum()

    def integral(a, strategy):
        equation = implicitexp.Integral(lambda x, a: 1 / ((x - a) ** 2 + width**2), 0.0, 1.0)
        return implicitexp.solve(equation, a, solver=GaussKronrod(rtol=1e-12, atol=1e-12), gradient=strategy).value

    cases: dict[str, tuple[Callable, float, Any]] = {
        "root, from the start's factors": (root, 0.0, exact_bent(contracting(0.9), bend)),
        "fixed point": (fixed_point, 0.0, exact(contracting(0.9))),
        "ODE": (ode, 1.0, 2 - 2 * jnp.cos(10.0)),
        "integral": (integral, 0.3, jax.grad(peak)(0.3, width)),
    }
    curves = {}
    for name, (value, at, reference) in cases.items():
        gradient = jax.jit(
            lambda t, value=value, at=at: jax.grad(value)(
                jnp.array(at), implicitexp.Adjoint(rtol=t, atol=t, preconditioner="start")
            )
        )
        curves[name] = [relative(gradient(t), reference) for t in tolerances]
    title = "Adjoint(rtol=tolerance, atol=tolerance)"
    return [Panel(title, "tolerance of the adjoint solve", ERROR, tolerances, curves, {"equal": tolerances})]
