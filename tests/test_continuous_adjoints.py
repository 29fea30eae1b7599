"""Gauss, Interpolating, Backsolve and ForwardSensitivity as drop-ins of `diffrax.diffeqsolve`: what is saved, and by which steps.

The row for all day is the first of each table; the others run with the slow tests.
"""

from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
from continuous_cases import (
    ADJOINTS,
    BACKWARDS,
    CLASSES,
    CONSTANT,
    FORWARDS,
    NO_LENGTH,
    PID,
    STEPPED,
    arrays,
    assert_close,
    check,
    exact,
    name,
    number,
    rows,
    solve,
)

from implicitexp.adjoints.continuous.backsolve_adjoint import Backsolve

# -- what is saved ----------------------------------------------------------------------------------------------------


def everywhere(p):
    return jnp.concatenate([p["t0"][None], p["ts"], p["t1"][None]])


TIMES = [
    pytest.param(p, a, id=f"{label}-{name(a)}", marks=[] if (i, j) in ((0, 0), (1, 0), (2, 0)) else [pytest.mark.slow])
    for i, (label, p) in enumerate([("forwards", FORWARDS), ("backwards", BACKWARDS), ("no length", NO_LENGTH)])
    for j, a in enumerate(ADJOINTS)
]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("p", "adjoint"), TIMES)
def test_outputs_at_times(p, adjoint):
    """t0, ts and t1 saved together; y0, a, t0, t1 and every ts differentiated, in both directions of time."""

    def loss(p):
        return number(solve(p, adjoint, dfx.SaveAt(t0=True, ts=p["ts"], t1=True)).ys)

    check(p, adjoint, loss, lambda p: number(exact(p, everywhere(p))))


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # Diffrax fills a buffer of integers with inf
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("adjoint", rows(CLASSES))
def test_functions_of_the_state(adjoint):
    """`subs` with an `fn` that depends on t, y, args and what it closes over, and that returns an integer beside it."""

    def loss(p):
        def fn(t, y, a):
            return {"u": y * y * a * t + p["a"], "n": jnp.array(3)}

        subs = [dfx.SubSaveAt(t1=True), {"more": dfx.SubSaveAt(ts=p["ts"], t0=True, fn=fn)}]
        sol = solve(p, adjoint, dfx.SaveAt(subs=subs))
        return number(sol.ys[0]) + number(sol.ys[1]["more"]["u"]) + jnp.sum(sol.ts[1]["more"] ** 2)

    def exact_loss(p):
        t = jnp.concatenate([p["t0"][None], p["ts"]])
        return number(exact(p, p["t1"])[None]) + number(exact(p, t) ** 2 * p["a"] * t + p["a"]) + jnp.sum(t**2)

    check(FORWARDS, adjoint, loss, exact_loss)


STEPS = [
    pytest.param(a, n, id=f"{name(a)}-{n}", marks=[] if (i, n) == (0, 3) else [pytest.mark.slow])
    for i, a in enumerate(CLASSES)
    for n in (1, 3)
]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("adjoint", "n"), STEPS)
def test_every_step_saved(adjoint, n):
    """Every n-th step, with `ts` between them and the padding: the times of the steps are constants, but for t1."""
    p = arrays({**FORWARDS, "ts": [0.3, 0.9, 1.9]})
    saved = np.asarray(solve(p, adjoint, dfx.SaveAt(ts=p["ts"], t1=True, steps=n), max_steps=100).ts)
    times = saved[np.isfinite(saved)]
    weights = jnp.where(np.isfinite(saved), np.arange(1, saved.size + 1), 0.0)

    def loss(p):
        sol = solve(p, adjoint, dfx.SaveAt(ts=p["ts"], t1=True, steps=n), max_steps=100)
        return jnp.sum(jnp.where(np.isfinite(saved), weights * sol.ys, 0))

    where = [int(np.flatnonzero(times == t)[0]) for t in np.asarray(p["ts"])]

    def exact_loss(p):
        t = jnp.asarray(times).at[np.array(where)].set(p["ts"]).at[-1].set(p["t1"])
        return jnp.sum(weights[: times.size] * exact(p, t))

    assert_close(jax.jit(jax.grad(loss))(p), jax.grad(exact_loss)(p), STEPPED)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("adjoint", CLASSES, ids=name)
def test_dense_output(adjoint):
    """It can be saved; a loss that looks at it is refused, aloud or by NaN, never by a part of the gradient."""

    def loss(p, weight, throw):
        sol = solve(p, adjoint, dfx.SaveAt(t1=True, dense=True), throw=throw)
        return sol.ys[0] + weight * sol.evaluate(jnp.array(1.0))

    p = arrays(FORWARDS)
    at_end = jax.jit(jax.grad(lambda p: solve(p, adjoint, dfx.SaveAt(t1=True, dense=True)).ys[0]))(p)
    assert_close(at_end, jax.grad(lambda p: exact(p, p["t1"]))(p), STEPPED)
    assert np.isnan(jax.grad(lambda p: loss(p, 1.0, False))(p)["a"])
    with pytest.raises(Exception, match=r"sol.ys and sol.ts only"):
        jax.block_until_ready(jax.grad(lambda p: loss(p, 1.0, True))(p))


# -- steps ------------------------------------------------------------------------------------------------------------


CONTROLS = [
    pytest.param(a, constant, id=f"{name(a)}-{label}", marks=[] if (i, j) == (0, 0) else [pytest.mark.slow])
    for i, a in enumerate(CLASSES)
    for j, (label, constant) in enumerate([("constant", True), ("to places", False)])
]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("adjoint", "constant"), CONTROLS)
def test_steps_without_control(adjoint, constant):
    """Back over the same steps, with no error control either; Backsolve needs one where steps go to given places."""
    if isinstance(adjoint, Backsolve) and not constant:
        adjoint = Backsolve(checkpoints=2, rtol=1e-12, atol=1e-12)
    controller: Any = dfx.ConstantStepSize() if constant else dfx.StepTo(np.linspace(0.2, 1.9, 171))

    def loss(p):
        return solve(p, adjoint, controller=controller, dt0=0.01 if constant else None).ys[0]

    check(FORWARDS, adjoint, loss, lambda p: exact(p, p["t1"]), CONSTANT)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=name)
def test_field_that_jumps(adjoint):
    """y' = -a c(t) y^2, c = 1 before t = 1 and 3 after: steps end before the jump and go on after it, back as well."""
    controller = dfx.ClipStepSizeController(dfx.PIDController(rtol=1e-9, atol=1e-9), step_ts=[0.4], jump_ts=[1.0])

    def value(a, t1):
        term = dfx.ODETerm(lambda t, y, a: -a * jnp.where(t < 1, 1.0, 3.0) * y**2)
        return dfx.diffeqsolve(
            term, dfx.Tsit5(), 0.0, t1, None, 1.2, a, stepsize_controller=controller, adjoint=adjoint
        ).ys[0]

    found = jax.jit(jax.grad(value, (0, 1)))(jnp.array(0.7), jnp.array(1.8))
    wanted = jax.grad(lambda a, t1: 1 / (1 / 1.2 + a * (3 * t1 - 2)), (0, 1))(0.7, 1.8)
    np.testing.assert_allclose(found, wanted, rtol=STEPPED)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("adjoint", CLASSES, ids=name)
def test_implicit_and_explicit_parts(adjoint):
    """A solver with two tableaus: the adjoint has the same two parts."""
    solver = dfx.KenCarp4(root_finder=optx.Newton(1e-10, 1e-10))

    def value(a):
        terms = dfx.MultiTerm(dfx.ODETerm(lambda t, y, a: jnp.sin(t) * a * y), dfx.ODETerm(lambda t, y, a: -a * y))
        return dfx.diffeqsolve(terms, solver, 0.0, 1.0, None, 1.2, a, stepsize_controller=PID, adjoint=adjoint).ys[0]

    wanted = jax.grad(lambda a: 1.2 * jnp.exp(-a * jnp.cos(1.0)))(0.8)
    np.testing.assert_allclose(jax.jit(jax.grad(value))(jnp.array(0.8)), wanted, rtol=10 * STEPPED)
