"""y' = -a t y by Diffrax, as a function of all that can be differentiated, and the adjoints that are tested on it."""

from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicitexp.adjoints.continuous.backsolve_adjoint import Backsolve
from implicitexp.adjoints.continuous.forward_sensitivity import ForwardSensitivity
from implicitexp.adjoints.continuous.gauss_adjoint import Gauss
from implicitexp.adjoints.continuous.interpolating import Interpolating

PID = dfx.PIDController(rtol=1e-8, atol=1e-8)
STEPPED = 1e-7  # at tolerance 1e-8: the errors of the steps add up
CONSTANT = 1e-11  # 170 steps of 0.01 of a method of order 5
SINGLE = 1e-4  # float32 at tolerance 1e-5
ADJOINTS: list[Any] = [Gauss(), Gauss(store="steps"), Gauss(store="times"), Interpolating(), Backsolve(checkpoints=2),
                       Backsolve(), ForwardSensitivity()]  # fmt: skip
OVER_STEPS = [Gauss(), Interpolating()]
CLASSES = [Gauss(), Interpolating(), Backsolve(checkpoints=2), ForwardSensitivity()]


def name(adjoint) -> str:
    return (
        type(adjoint).__name__ + str(getattr(adjoint, "store", None) or "") + str(getattr(adjoint, "checkpoints", ""))
    )


def rows(adjoints):
    """The first all day, the others when there is time."""
    return [pytest.param(a, id=name(a), marks=[] if i == 0 else [pytest.mark.slow]) for i, a in enumerate(adjoints)]


FORWARDS = {"y0": 1.3, "a": 0.8, "t0": 0.2, "t1": 1.9, "ts": [0.2, 0.5, 0.5, 0.51, 1.1, 1.9]}  # the ends, twice, near
BACKWARDS = {"y0": 1.3, "a": 0.8, "t0": 1.5, "t1": 0.3, "ts": [1.4, 0.9, 0.3]}
NO_LENGTH = {"y0": 1.3, "a": 0.8, "t0": 0.7, "t1": 0.7, "ts": [0.7, 0.7]}


def arrays(p):
    return {key: jnp.asarray(np.asarray(x), jnp.result_type(float)) for key, x in p.items()}


def solve(p, adjoint, saveat=None, controller: Any = PID, **options):
    """y' = -a t y; a is closed over, and comes in through args as well."""
    half = p["a"] / 2

    def field(t, y, a):
        return -(half + a / 2) * t * y

    return dfx.diffeqsolve(
        dfx.ODETerm(field), options.pop("solver", dfx.Tsit5()), p["t0"], p["t1"], options.pop("dt0", None), p["y0"], p["a"],
        saveat=dfx.SaveAt(t1=True) if saveat is None else saveat, stepsize_controller=controller, adjoint=adjoint, **options,
    )  # fmt: skip


def exact(p, t):
    return p["y0"] * jnp.exp(-p["a"] * (t**2 - p["t0"] ** 2) / 2)


def number(y):
    """A nonlinear loss in which every entry has another weight."""
    return jnp.sum(jnp.sin(3 * y) * jnp.linspace(1.0, 2.0, y.size))


def assert_close(gradient, expected, bound):
    for key in expected:
        np.testing.assert_allclose(gradient[key], expected[key], rtol=bound, atol=bound, err_msg=key)


def check(p, adjoint, loss, exact_loss, bound=STEPPED):
    p = arrays(p)
    assert_close(jax.jit(jax.grad(loss))(p), jax.grad(exact_loss)(p), bound)
