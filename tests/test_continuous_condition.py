"""The table of closed forms: an exact adjoint is as accurate as the solve itself, up to the condition of the gradient.

The bound is that of the project: the gradient's relative error is within 10 kappa times the relative error of the state at t1, or
1e-10 kappa. kappa, stated in the row, is the condition of the gradient g(p): the relative change of g by relative changes
of p, ||dg/dp diag(p)|| / ||g||, all of y0 and args in p.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax as dfx
import jax
import jax.numpy as jnp
import jax.scipy.linalg
import numpy as np
import pytest
from continuous_cases import name
from jax.flatten_util import ravel_pytree

from implicitexp import solvers, strategies
from implicitexp.adjoints.continuous.backsolve_adjoint import Backsolve
from implicitexp.adjoints.continuous.forward_sensitivity import ForwardSensitivity
from implicitexp.adjoints.continuous.gauss_adjoint import Gauss
from implicitexp.adjoints.continuous.interpolating import Interpolating
from implicitexp.equations import ODE
from implicitexp.solving import solve

FACTOR, FLOOR = 10, 1e-10
TOLERANCES = (1e-6, 1e-8, 1e-10)
STATED = 0.02  # relative, of kappa
SOLVERS = {"tsit5": dfx.Tsit5(), "dopri8": dfx.Dopri8()}


class Row(NamedTuple):
    field: Callable
    exact: Callable  # p, t -> y
    t0: float
    t1: float
    p: dict[str, Any]  # y0 and what the field is given
    kappa: float


def turning(p, t):
    """y'' = -w^2 y."""
    (y, v), w = p["y0"], p["w"]
    return jnp.stack([y * jnp.cos(w * t) + v * jnp.sin(w * t) / w, v * jnp.cos(w * t) - w * y * jnp.sin(w * t)])


MATRIX = [[-0.5, 1.0, 0.2], [-1.0, -0.3, 0.4], [0.1, -0.6, 0.2]]
TABLE = {
    "decay": Row(
        lambda t, y, p: -p["a"] * t * y, lambda p, t: p["y0"] * jnp.exp(-p["a"] * (t**2 - 0.04) / 2),
        0.2, 1.9, {"a": 0.8, "y0": 1.3}, 1.5,
    ),
    "logistic": Row(
        lambda t, y, p: p["r"] * y * (1 - y / p["K"]),
        lambda p, t: p["K"] / (1 + (p["K"] / p["y0"] - 1) * jnp.exp(-p["r"] * t)),
        0.0, 3.0, {"r": 1.3, "K": 2.0, "y0": 0.3}, 8.4,
    ),
    "growth": Row(  # J. Zhuang et al. 2020, with the sine of what it comes to: the phase is what is ill-conditioned
        lambda t, y, p: p["k"] * y, lambda p, t: p["y0"] * jnp.exp(p["k"] * t), 0.0, 5.0, {"k": 0.4, "y0": 1.5}, 283,
    ),
    "linear": Row(
        lambda t, y, p: p["A"] @ y, lambda p, t: jax.scipy.linalg.expm(p["A"] * t) @ p["y0"],
        0.0, 1.0, {"A": MATRIX, "y0": [1.0, -0.5, 0.7]}, 1.36,
    ),
    "oscillator": Row(
        lambda t, y, p: jnp.stack([y[1], -(p["w"] ** 2) * y[0]]), turning, 0.0, 10.0, {"w": 1.3, "y0": [1.0, 0.4]}, 2.35,
    ),
    "riccati": Row(
        lambda t, y, p: -p["a"] * y**2, lambda p, t: 1 / (1 / p["y0"] + p["a"] * t), 0.0, 4.0, {"a": 0.9, "y0": 1.2}, 1.65,
    ),
}  # fmt: skip


def arrays(row):
    return {key: jnp.asarray(np.asarray(x)) for key, x in row.p.items()}


def seen(y):
    return jnp.sum(jnp.sin(y))


def relative(found, exact) -> float:
    a, b = ravel_pytree(found)[0], ravel_pytree(exact)[0]
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


ALL_DAY = ("riccati",)


@pytest.mark.parametrize("case", [pytest.param(x, marks=[] if x in ALL_DAY else [pytest.mark.slow]) for x in TABLE])
def test_condition_is_as_stated(case, float64):
    row = TABLE[case]
    flat, unravel = ravel_pytree(arrays(row))

    def gradient(x):
        return jax.grad(lambda x: seen(row.exact(unravel(x), row.t1)))(x)

    kappa = jnp.linalg.norm(jax.jacfwd(gradient)(flat) * flat) / jnp.linalg.norm(gradient(flat))
    assert abs(kappa / row.kappa - 1) < STATED
    slope = jax.jacfwd(lambda t: row.exact(arrays(row), t))(row.t1)
    np.testing.assert_allclose(slope, row.field(row.t1, row.exact(arrays(row), row.t1), arrays(row)), rtol=1e-12)
    np.testing.assert_allclose(row.exact(arrays(row), row.t0), row.p["y0"], rtol=1e-15)


ROWS = [
    *((case, "tsit5", adjoint) for case in TABLE for adjoint in (Gauss(), ForwardSensitivity())),
    *(
        (case, "tsit5", adjoint)
        for case in ("logistic", "oscillator")
        for adjoint in (Interpolating(), Backsolve(checkpoints=4))
    ),
    *(
        (case, "dopri8", adjoint)
        for case, adjoint in (("oscillator", Gauss()), ("oscillator", Interpolating()), ("logistic", Gauss()))
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "solver", "adjoint"), ROWS, ids=lambda x: x if isinstance(x, str) else name(x))
def test_as_accurate_as_the_solve(case, solver, adjoint, float64):
    row = TABLE[case]
    p = arrays(row)

    @jax.jit
    def both(p, tolerance):
        def loss(p):
            y = dfx.diffeqsolve(
                dfx.ODETerm(row.field), SOLVERS[solver], row.t0, row.t1, None, p["y0"], p, adjoint=adjoint,
                stepsize_controller=dfx.PIDController(rtol=tolerance, atol=tolerance),
            ).ys[0]  # fmt: skip
            return seen(y), y

        return jax.grad(loss, has_aux=True)(p)

    exact = jax.grad(lambda p: seen(row.exact(p, row.t1)))(p)
    for tolerance in TOLERANCES:
        gradient, y = both(p, tolerance)
        primal, error = relative(y, row.exact(p, row.t1)), relative(gradient, exact)
        print(f"{case:10} {solver} {name(adjoint):18} {tolerance:.0e}: primal {primal:.1e}, gradient {error:.1e}, "
              f"gradient / (kappa primal) {error / row.kappa / primal:.2f}")  # fmt: skip
        assert error < row.kappa * max(FACTOR * primal, FLOOR)


@pytest.mark.slow
def test_the_cell_of_the_framework_too(float64):
    """`gradient=adjoint` with Dopri8 at 1e-10, whose own interpolation would make the gradient 26 times worse than the solve."""
    row = TABLE["oscillator"]
    p = arrays(row)
    solver = solvers.Dopri8(rtol=1e-10, atol=1e-10)

    def loss(p):
        equation = ODE(row.field, p["y0"], row.t0, row.t1)
        y = solve(equation, p, solver=solver, gradient=strategies.Adjoint()).value
        return seen(y), y

    gradient, y = jax.jit(jax.grad(loss, has_aux=True))(p)
    exact = jax.grad(lambda p: seen(row.exact(p, row.t1)))(p)
    primal = relative(y, row.exact(p, row.t1))
    assert relative(gradient, exact) < row.kappa * max(FACTOR * primal, FLOOR)
