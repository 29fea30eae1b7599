"""Both sides of every switch of the continuous adjoints: 0, 1 and 2 steps, `ts` inside one step and at its ends, forms of SaveAt.

y'' = -g: the solution, the interpolation and the adjoint are polynomials of a degree at which Tsit5 is exact, so that one
step of any length gives the closed form to rounding.
"""

from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from continuous_cases import ADJOINTS, CLASSES, FORWARDS, STEPPED, arrays, assert_close, exact, name, rows, solve
from jax.flatten_util import ravel_pytree

from implicitexp.adjoints.continuous import trees
from implicitexp.adjoints.continuous.backsolve_adjoint import Backsolve
from implicitexp.adjoints.continuous.forward_sensitivity import ForwardSensitivity
from implicitexp.adjoints.continuous.gauss_adjoint import Gauss
from implicitexp.adjoints.continuous.interpolating import Interpolating

ROUND_OFF = 1e-12
THROWN = {"y0": [1.0, 0.5], "g": 2.0, "t0": 0.2, "t1": 1.8, "ts": [0.2, 0.5, 0.7, 1.0, 1.0, 1.2, 1.8]}


def throw(p, adjoint, dt0, saveat, max_steps=16):
    """Without a control of the steps."""
    term = dfx.ODETerm(lambda t, y, g: jnp.stack([y[1], -g]))
    return dfx.diffeqsolve(
        term, dfx.Tsit5(), p["t0"], p["t1"], dt0, p["y0"], p["g"], saveat=saveat, adjoint=adjoint, max_steps=max_steps
    )


def thrown(p, t):
    s = jnp.asarray(t)[..., None] - p["t0"]
    height = p["y0"][0] + p["y0"][1] * s - p["g"] * s**2 / 2
    return jnp.concatenate([height, p["y0"][1] - p["g"] * s], -1)


def number(ys):
    return jnp.sum(jnp.sin(ys) * jnp.linspace(1.0, 2.0, ys.size).reshape(ys.shape))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("adjoint", rows(ADJOINTS))
def test_few_steps(adjoint):
    """Times at both ends of a step, inside it, between two, and twice the same one. With no step all are t0 = t1."""

    def loss(p, dt0):
        sol = throw(p, adjoint, dt0, dfx.SaveAt(t0=True, t1=True, ts=p["ts"]))
        return number(sol.ys), sol.stats["num_steps"]

    def exact_loss(p):
        return number(thrown(p, jnp.concatenate([p["t0"][None], p["ts"], p["t1"][None]])))

    gradient = jax.jit(jax.grad(loss, has_aux=True))
    nowhere = {**THROWN, "t1": 0.2, "ts": [0.2] * len(THROWN["ts"])}
    for steps, given, dt0 in ((0, nowhere, 1.0), (1, THROWN, 1.6), (2, THROWN, 0.8)):
        p = arrays(given)
        found, taken = gradient(p, jnp.array(dt0))
        assert taken == steps
        assert_close(found, jax.grad(exact_loss)(p), ROUND_OFF)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("adjoint", [Gauss(), Backsolve(checkpoints=2), ForwardSensitivity()], ids=name)
def test_as_many_steps_as_there_may_be(adjoint):
    """A full buffer: max_steps is what the solve takes."""
    p = arrays(THROWN)

    def loss(p):
        return number(throw(p, adjoint, 0.8, dfx.SaveAt(steps=True, t0=True), max_steps=2).ys)

    def exact_loss(p):
        return number(thrown(p, jnp.stack([p["t0"], jnp.array(1.0), p["t1"]])))

    assert_close(jax.jit(jax.grad(loss))(p), jax.grad(exact_loss)(p), ROUND_OFF)


EVERY_FORM: Any = {
    "t0": dfx.SubSaveAt(t0=True),
    "t1": (dfx.SubSaveAt(t1=True),),
    "ts": dfx.SubSaveAt(ts=jnp.array([0.3, 0.9, 1.9])),
    "steps": dfx.SubSaveAt(steps=True),
    "every second step": dfx.SubSaveAt(t0=True, steps=2, t1=True),
    "function": dfx.SubSaveAt(t1=True, fn=lambda t, y, a: {"t": t, "y": [y * a]}),
}


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("adjoint", CLASSES, ids=name)
def test_forms_of_saveat(adjoint):
    """The same structure, numbers and gradient as with Diffrax's own adjoint, which is that of the program."""
    saveat = dfx.SaveAt(subs=EVERY_FORM, solver_state=True, controller_state=True, made_jump=True)

    def loss(p, adjoint):
        ys = solve({**p, "t0": 0.2, "t1": 1.9}, adjoint, saveat, max_steps=40).ys
        return sum(jnp.sum(jnp.where(jnp.isfinite(x), jnp.sin(x), 0)) for x in jax.tree.leaves(ys)), ys

    p = arrays({"y0": 1.3, "a": 0.8})
    (found, saved), (wanted, own) = (
        jax.jit(jax.grad(lambda p, a=a: loss(p, a), has_aux=True))(p)
        for a in (adjoint, dfx.RecursiveCheckpointAdjoint())
    )
    assert jax.tree.structure(saved) == jax.tree.structure(own)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=ROUND_OFF), saved, own)
    assert_close(found, wanted, 10 * STEPPED)  # tolerance 1e-8, thirty rows


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("adjoint", [Gauss(), Backsolve(checkpoints=2), ForwardSensitivity()], ids=name)
def test_dense_output_alone(adjoint):
    """Nothing that could be differentiated: it can be evaluated, and its derivative is refused."""
    p = arrays(FORWARDS)

    def loss(p):
        return solve(p, adjoint, dfx.SaveAt(dense=True)).evaluate(jnp.array(1.0))

    np.testing.assert_allclose(loss(p), exact(p, 1.0), rtol=STEPPED)
    with pytest.raises(Exception, match=r"sol.ys and sol.ts only"):
        jax.block_until_ready(jax.grad(loss)(p))


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("adjoint", [Gauss(), Backsolve(checkpoints=2), ForwardSensitivity()], ids=name)
def test_states_that_are_handed_on(adjoint):
    """A solve that goes on where another one ended, with its states: gradients by what the second one is given."""

    def loss(p):
        first = solve({**p, "t1": 1.0}, adjoint, dfx.SaveAt(t1=True, solver_state=True, controller_state=True))
        states = jax.lax.stop_gradient((first.solver_state, first.controller_state))
        second = {**p, "t0": jnp.array(1.0), "y0": first.ys[0]}
        return jnp.sin(solve(second, adjoint, solver_state=states[0], controller_state=states[1]).ys[0])

    p = arrays({k: v for k, v in FORWARDS.items() if k != "ts"})
    assert_close(jax.jit(jax.grad(loss))(p), jax.grad(lambda p: jnp.sin(exact(p, p["t1"])))(p), STEPPED)


# -- few numbers are one vector, and are gone through one by one ----------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "adjoint", [Gauss(), Interpolating(), Backsolve(checkpoints=2), ForwardSensitivity()], ids=name
)
def test_few_numbers_and_many_give_the_same(adjoint, float64, monkeypatch):
    """Dopri8, whose states between steps are swept. Another order of the same operations: rounding, through some thirty steps."""

    def gradient():
        def total(p):
            field = dfx.ODETerm(lambda t, y, p: {"x": y["v"], "v": -p["k"] * y["x"] - p["c"] * y["v"]})
            sol = dfx.diffeqsolve(
                field, dfx.Dopri8(), 0.0, 5.0, None, {"x": p["x"], "v": jnp.zeros(())}, p,
                stepsize_controller=dfx.PIDController(1e-9, 1e-9), adjoint=adjoint, max_steps=256,
            )  # fmt: skip
            return sol.ys["x"][0] ** 2

        return ravel_pytree(jax.jit(jax.grad(total))({"k": 2.0, "c": 0.1, "x": 1.0}))[0]

    few = gradient()
    monkeypatch.setattr(trees, "FEW", 0)
    np.testing.assert_allclose(gradient(), few, rtol=1e-9)
