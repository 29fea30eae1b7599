"""Methods with fixed steps: their order, energy that does not drift, and the ground truth of a model made of them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicitexp import solvers
from implicitexp.equations import ODE
from implicitexp.solvers.explicit import EXPLICIT
from implicitexp.solving import solve
from implicitexp.strategies import Unroll
from implicitexp.truth.written_out import WrittenOut

ROUND_OFF = 1e-11  # float64: the same operations in another order, over ten steps
ORDERS = {"euler": 1, "midpoint": 2, "heun": 2, "dopri5": 5, "tsit5": 5, "dopri8": 8}
STEPS = {"dopri5": (0.1, 0.05), "tsit5": (0.1, 0.05), "dopri8": (0.5, 0.25)}  # else rounding is all that is left
METHODS = [*(solvers.FixedStep(method=name) for name in EXPLICIT), solvers.Leapfrog()]


def oscillator(t1, ts=None):
    """q' = 2 p, p' = -cos(t) q: a different time in each stage counts."""
    return ODE(lambda t, y, a: (a * y[1], -jnp.cos(t) * y[0]), (1.0, 0.5), 0.0, t1, ts)


def name(method):
    return getattr(method, "method", type(method).__name__)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("method", METHODS, ids=name)
def test_order(method):
    """Half the step: the error is 2^order times smaller, somewhat more where the next order's term still counts."""
    exact = jnp.stack(solve(oscillator(2.0), 2.0, solver=solvers.Dopri8(rtol=1e-13, atol=1e-13)).value)

    @jax.jit
    def error(dt0):
        chosen = dataclasses.replace(method, dt0=dt0)
        return jnp.linalg.norm(jnp.stack(solve(oscillator(2.0), 2.0, solver=chosen).value) - exact)

    coarse, fine = (float(error(h)) for h in STEPS.get(name(method), (0.02, 0.01)))
    order = ORDERS.get(name(method), 2)
    assert order - 0.2 < np.log2(coarse / fine) < order + 1.1


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "method", [solvers.Euler(), *(m for m in METHODS if name(m) not in ("midpoint", "tsit5"))], ids=name
)
def test_written_out_for_the_ground_truth(method):
    """The same steps without Diffrax's loop and tableau code: values at ts and gradients agree to rounding."""
    ts = jnp.array([0.3, 0.7, 1.0])

    def loss(a, solver):
        value = solve(oscillator(1.0, ts), a, solver=solver, gradient=Unroll()).value
        return jnp.sum(value[0] * ts) + jnp.sum(value[1])

    chosen = dataclasses.replace(method, dt0=0.13)
    pairs = [jax.jit(jax.value_and_grad(lambda a, s=s: loss(a, s)))(2.0) for s in (chosen, WrittenOut(fixed=chosen))]
    np.testing.assert_allclose(pairs[0], pairs[1], rtol=ROUND_OFF)


@pytest.mark.slow
def test_energy_does_not_drift():
    """A planet over 30 turns, float32: leapfrog's energy errs by the step's square, as often up as down; Heun's grows."""

    def energy(solver):
        def field(t, y, args):
            q, p = y
            return p, -q / jnp.sum(q**2) ** 1.5

        start = (jnp.array([1.0, 0.0]), jnp.array([0.0, 1.1]))
        ts = jnp.linspace(0.0, 200.0, 41)
        q, p = solve(ODE(field, start, 0.0, 200.0, ts), solver=solver).value
        return jnp.sum(p**2, 1) / 2 - 1 / jnp.linalg.norm(q, axis=1)

    leapfrog, heun = (
        np.abs(e / e[0] - 1) for e in map(energy, (solvers.Leapfrog(0.05), solvers.FixedStep("heun", 0.05)))
    )
    assert leapfrog.max() < 2e-3
    assert leapfrog[-5:].max() < 2 * leapfrog[:5].max() + 1e-4
    assert heun[-5:].max() > 10 * leapfrog.max()
