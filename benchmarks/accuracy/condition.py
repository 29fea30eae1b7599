"""How strongly an error of the solution moves the gradient, computed: what `condition` of a case states.

Nothing here uses a strategy's backward pass on the case as it is: the derivatives of the equation are moved, or integrated by
SciPy.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate
from jax.flatten_util import ravel_pytree

from benchmarks.accuracy.subjects import kind_of, truth_cases
from implicitexp import solvers, strategies
from implicitexp.equations import ODE, FixedPoint, Root
from implicitexp.solving import solve
from implicitexp.truth.doubles import flat

STATED = 0.05  # relative, of a condition that is stated with two digits
AT_MOST = 1.2  # times the error on the way that is stated: it depends on the last digits of the steps


def condition(case: Any) -> float:
    """How many times its own size, relative, an error of the solution is in the gradient; at least one.

    Root, fixed point, ODE: |dG/dy| |y| / |G| in the spectral norm, G(y) being the gradient that the derivatives of the
    equation and of the loss give when they are taken at y and not at the solution; of an ODE y is the whole path, and each
    component is moved by the same part of |y(t)| at all times. Integral: that of the sum which its derivative is, the
    integral of |dg/da| and the boundary terms' sizes over the size of the derivative.
    """
    with jax.enable_x64(True):
        return max(1.0, _of_integral(case) if kind_of(case) == "integral" else _of_solution(case))


def misstated(case: Any) -> str | None:
    """In words, where the row of a case states what is not so."""
    found = condition(case)
    if abs(found - case.condition) > STATED * found:
        return f"the condition is {found:.3g}, not {case.condition:.3g}"
    if (
        case.on_the_way
        and not case.on_the_way / AT_MOST <= (on_the_way := path_error(case)) <= AT_MOST * case.on_the_way
    ):
        return f"the error on the way is {on_the_way:.2g}, not {case.on_the_way:.2g}"
    return None


# -- root, fixed point, ODE -------------------------------------------------------------------------------------------


def _of_solution(case: Any) -> float:
    p = case.init(None)
    equation, _ = case.equation(p)
    n, h = ravel_pytree(equation.y0)[0].size, 1e-3 if equation.kind == "ode" else 1e-7
    gradient = jax.jit(jax.grad(lambda p, shift: _loss(case, p, shift)))
    g = flat(gradient(p, jnp.zeros(n)))
    columns = [flat(gradient(p, h * e)) - flat(gradient(p, -h * e)) for e in jnp.eye(n)]
    return float(np.linalg.norm(np.stack(columns), 2) / (2 * h) / np.linalg.norm(g))


def _loss(case: Any, p: Any, shift: Any) -> Any:
    """The loss, whose derivative is taken at y + shift |y|."""
    equation, args = case.equation(p)
    solver: Any = solvers.for_kind(case.solver, equation.kind)
    if equation.kind == "ode":
        field = equation.field
        away = ODE(lambda t, y, p: moved(lambda y, p: field(t, y, p), shift)(y, p), *_ends(equation))
    else:
        away = {"root": Root, "fixed_point": FixedPoint}[equation.kind](moved(equation.fn, shift), equation.y0)
    value = solve(away, args, solver=solver, gradient=strategies.Forward()).value
    outcome = moved(case.outcome, shift) if ravel_pytree(value)[0].size == shift.size else case.outcome
    return outcome(value)


def moved(fn: Any, shift: Any) -> Any:
    """fn(y, *rest) with its own value, and its derivatives at y + shift |y|."""

    def value_here(y, *rest):
        held = jax.lax.stop_gradient(y)
        vector, unravel = ravel_pytree(held)
        away = unravel(vector + shift * jnp.linalg.norm(vector))
        there = fn(jax.tree.map(lambda a, y, h: a + (y - h), away, y, held), *rest)
        here = jax.lax.stop_gradient(fn(y, *rest))
        return jax.tree.map(lambda here, there: here + (there - jax.lax.stop_gradient(there)), here, there)

    return value_here


def _ends(equation: Any) -> tuple:
    return equation.y0, equation.t0, equation.t1, equation.ts


# -- integral ---------------------------------------------------------------------------------------------------------


def _of_integral(case: Any) -> float:
    p = case.init(None)
    equation, _ = case.equation(p)
    slope = jax.jit(jax.grad(lambda p, x: case.outcome(case.equation(p)[0].integrand(x, p))))
    total = []
    for name in p:
        inside = _absolute(lambda x, name=name: float(abs(slope(p, x)[name])), equation)
        total.append(inside + sum(_edge(case, p, name, limit) for limit in ("lower", "upper")))
    return float(np.linalg.norm(total) / np.linalg.norm(flat(truth_cases.exact_gradient(case))))


def _absolute(f: Callable[[float], float], equation: Any) -> float:
    value = scipy.integrate.quad(f, float(equation.lower), float(equation.upper), limit=500, epsabs=0, epsrel=1e-4)
    return float(value[0])


def _edge(case: Any, p: Any, name: str, limit: str) -> float:
    """|g da| at an end that moves."""
    end = getattr(case.equation(p)[0], limit)
    speed = jax.grad(lambda p: jnp.asarray(getattr(case.equation(p)[0], limit), float))(p)[name]
    if not speed:
        return 0.0
    return float(abs(case.outcome(case.equation(p)[0].integrand(end, p)) * speed))


# -- an ODE's error before its end ------------------------------------------------------------------------------------

SAMPLES = 8  # ends to which an ODE is solved, at equal distances
TRUE = 1e-11  # tolerance of the solve that stands for the truth
MAX_STEPS = 65_536


def path_error(case: Any) -> float:
    """ODE: how far the solution is off at the worst of SAMPLES times, relative to |y(t)|, in float64. Each is the end of a solve
    of its own, so that no interpolation's error counts; the same method at the tolerance TRUE stands for the truth."""
    with jax.enable_x64(True):
        method: Any = solvers.for_kind(case.solver, "ode")

        @jax.jit
        def ends(p, tolerance):
            equation, args = case.equation(p)
            solver = type(method)(rtol=tolerance, atol=tolerance, max_steps=MAX_STEPS)

            def end(part):
                t = equation.t0 + part * (equation.t1 - equation.t0)
                return ravel_pytree(solve(ODE(equation.field, equation.y0, equation.t0, t), args, solver=solver).value)[
                    0
                ]

            return jax.vmap(end)(jnp.arange(1, SAMPLES + 1) / SAMPLES)

        p = case.init(None)
        own, true = (np.asarray(ends(p, tolerance)) for tolerance in (method.noise(jnp.zeros(())), TRUE))
    return float(np.max(np.linalg.norm(own - true, axis=1) / np.linalg.norm(true, axis=1)))
