"""Second derivatives through the continuous adjoints: forward mode to any order, over reverse mode for ForwardSensitivity."""

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from continuous_cases import (
    FORWARDS,
    PID,
    STEPPED,
    arrays,
    assert_close,
    exact,
    name,
    number,
    solve,
)

from implicitexp import solving, strategies
from implicitexp.adjoints.continuous.backsolve_adjoint import Backsolve
from implicitexp.adjoints.continuous.forward_sensitivity import ForwardSensitivity
from implicitexp.adjoints.continuous.gauss_adjoint import Gauss
from implicitexp.adjoints.continuous.interpolating import Interpolating
from implicitexp.equations import ODE
from implicitexp.errors import Unsupported

TWICE = 10 * STEPPED  # second derivatives of `number(sin 3 y)` are up to ten times the first ones
ORDERS = {"forward over forward": (jax.jacfwd, jax.jacfwd), "forward over reverse": (jax.jacfwd, jax.jacrev)}


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("order", ORDERS)
def test_hessian(order):
    """By y0, a, t0, t1 and every ts, mixed ones included; with a function of the state."""
    outer, inner = ORDERS[order]

    def loss(p):
        sub = dfx.SubSaveAt(ts=p["ts"], fn=lambda t, y, a: t * a * y)
        ys = solve(p, ForwardSensitivity(), dfx.SaveAt(subs=[sub, dfx.SubSaveAt(t0=True, t1=True)])).ys
        return number(ys[0]) + number(ys[1])

    def exact_loss(p):
        ends = jnp.stack([p["t0"], p["t1"]])
        return number(p["ts"] * p["a"] * exact(p, p["ts"])) + number(exact(p, ends))

    p = arrays({**FORWARDS, "ts": [0.2, 0.5, 1.1, 1.9]})
    found, wanted = jax.jit(outer(inner(loss)))(p), jax.hessian(exact_loss)(p)
    for key in p:
        assert_close(found[key], wanted[key], TWICE)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("adjoint", [Gauss(), Backsolve()], ids=name)
def test_forward_over_forward(adjoint):
    """Of the logistic equation, whose field is not linear: every class has the sensitivities of the sensitivities."""

    def value(r):
        term = dfx.ODETerm(lambda t, y, r: r * y * (1 - y))
        return dfx.diffeqsolve(term, dfx.Tsit5(), 0.0, 1.0, None, 0.3, r, stepsize_controller=PID, adjoint=adjoint).ys[
            0
        ]

    def closed_form(r):
        return 1 / (1 + (1 / 0.3 - 1) * jnp.exp(-r))

    r = jnp.array(1.3)
    np.testing.assert_allclose(
        jax.jit(jax.jacfwd(jax.jacfwd(value)))(r), jax.hessian(closed_form)(r), rtol=TWICE, atol=TWICE
    )


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_the_trap_in_second_order():
    """Lotka-Volterra at its equilibrium, x' = (1 + p) x - x y, y' = -y + x y, p = 0, L = x(T) + y(T). With x = 1 + p u + p^2 v/2,
    y = 1 + p w + p^2 z/2: u' = 1 - w, w' = u, so u = sin t, w = 1 - cos t; v' = 2 u - z - 2 u w, z' = v + 2 u w, which is solved
    here as it stands. The steps of the state alone grow without bound."""

    def loss(p):
        def field(t, y, p):
            return jnp.stack([(1 + p) * y[0] - y[0] * y[1], -y[1] + y[0] * y[1]])

        return dfx.diffeqsolve(
            dfx.ODETerm(field), dfx.Tsit5(), 0.0, 10.0, None, jnp.ones(2), p, stepsize_controller=PID,
            adjoint=ForwardSensitivity(),
        ).ys.sum()  # fmt: skip

    def by_hand(t, s, args):
        u, w = jnp.sin(t), 1 - jnp.cos(t)
        return jnp.stack([2 * u - s[1] - 2 * u * w, s[0] + 2 * u * w])

    tight = dfx.PIDController(rtol=1e-10, atol=1e-10)
    ode = dfx.ODETerm(by_hand)
    wanted = dfx.diffeqsolve(ode, dfx.Tsit5(), 0.0, 10.0, None, jnp.zeros(2), stepsize_controller=tight).ys.sum()
    np.testing.assert_allclose(jax.jit(jax.jacfwd(jax.jacfwd(loss)))(jnp.array(0.0)), wanted, rtol=TWICE)


@pytest.mark.slow  # that of Gauss runs all day: test_what_is_refused
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("adjoint", [Interpolating(), Backsolve()], ids=name)
def test_forward_over_reverse_is_refused(adjoint):
    p = arrays(FORWARDS)
    with pytest.raises(RuntimeError, match="first derivatives"):
        jax.hessian(lambda a: solve({**p, "a": a}, adjoint).ys[0])(p["a"])


@pytest.mark.parametrize(
    "strategy",
    [
        strategies.Adjoint(),
        pytest.param(strategies.Adjoint(method="backsolve"), marks=pytest.mark.slow),
        pytest.param(strategies.Forward(), marks=pytest.mark.slow),
    ],
)
def test_reverse_over_reverse_in_the_framework_is_refused_in_words(strategy):
    def gradient(rate):
        equation = ODE(lambda t, y, rate: -rate * y, 1.0, 0.0, 1.0)
        return jax.grad(lambda rate: solving.solve(equation, rate, gradient=strategy).value)(rate)

    with pytest.raises(Unsupported, match=r"use jax.hessian"):
        jax.make_jaxpr(jax.grad(gradient))(0.5)
