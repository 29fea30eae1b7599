"""ODE gradients: output times, time that runs backwards, long solves, scale of the loss, stiffness, the trap."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicitexp import solvers
from implicitexp.equations import ODE
from implicitexp.problems.equilibrium import Equilibrium
from implicitexp.solving import Solve, solve, zero_tap
from implicitexp.strategies import Adjoint, FiniteDifference, Forward, Implicit, Unroll

STEPPED = 1e-6  # relative, at tolerance 1e-8: the errors of the steps add up
STRATEGIES = [Unroll(), Adjoint(), Adjoint(method="backsolve"), Forward()]


def decay(p, ts=None):
    return ODE(lambda t, y, a: -a * t * y, p["y0"], p["t0"], p["t1"], p.get("ts")), p["a"]


def exact(p):
    """y' = -a t y: y0 exp(-a (t^2 - t0^2) / 2)."""
    t = p.get("ts", p["t1"])
    return p["y0"] * jnp.exp(-p["a"] * (t**2 - p["t0"] ** 2) / 2)


def compare(p, strategy, bound=STEPPED, solver=None):
    def total(y):
        return jnp.sum(jnp.sin(3 * y) * jnp.linspace(1.0, 2.0, y.size).reshape(y.shape))

    def loss(p):
        equation, a = decay(p)
        return total(solve(equation, a, gradient=strategy, solver=solver).value)

    g = jax.jit(jax.grad(loss))(p)
    expected = jax.grad(lambda p: total(exact(p)))(p)
    for name in p:
        np.testing.assert_allclose(g[name], expected[name], rtol=bound, atol=bound * 0.1, err_msg=name)


FORWARDS = {"y0": 1.3, "a": 0.8, "t0": 0.2, "t1": 1.9}
BACKWARDS = {"y0": 1.3, "a": 0.8, "t0": 1.5, "t1": 0.3}
TIMES = {**FORWARDS, "ts": np.array([0.2, 0.5, 0.5, 1.1, 1.7])}  # at t0, twice the same, and before t1
TIMES_BACK = {**BACKWARDS, "ts": np.array([1.4, 0.9, 0.3])}


def arrays(p):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(float)), p)


CASES = [("backwards in time", BACKWARDS), ("output times", TIMES), ("output times, backwards", TIMES_BACK)]
FAST = {("output times, backwards", 1)}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("p", "strategy"),
    [
        pytest.param(p, s, id=f"{name}-{s}", marks=[] if (name, i) in FAST else [pytest.mark.slow])
        for name, p in CASES
        for i, s in enumerate(STRATEGIES)
    ],
)
def test_times(p, strategy):
    """y0, t0, t1 and every output time are differentiated, in both directions of time."""
    compare(arrays(p), strategy)


def test_interval_of_no_length(float64):
    solution = solve(ODE(lambda t, y, w: w * y, 1.5, 0.0, 0.0), 1.0)
    assert solution.stats["converged"]
    assert solution.value == 1.5


def test_long_solve(float64):
    """Chunks of many steps are done again from one kept state: all memory together is that of fewer than a fourth of
    the steps' states. Diffrax's dense output would keep several states of every step."""
    p, n = arrays({"y0": 1.0, "w": 40.0}), 50

    def loss(p):
        y0 = jnp.repeat(jnp.stack([p["y0"], 0.0]), n)
        field = ODE(lambda t, y, w: jnp.concatenate([w * y[n:], -w * y[:n]]), y0, 0.0, 5.0)
        solution = solve(field, p["w"], gradient=Adjoint(), solver=solvers.Tsit5(rtol=1e-9, atol=1e-9))
        return solution.value[0], solution.stats["steps"]

    compiled = jax.jit(jax.grad(loss, has_aux=True)).lower(p).compile()
    g, steps = compiled(p)
    assert steps > 2000
    assert compiled.memory_analysis().temp_size_in_bytes < steps / 4 * 2 * n * p["w"].nbytes
    np.testing.assert_allclose(g["y0"], np.cos(200.0), rtol=1e-5)
    np.testing.assert_allclose(g["w"], -5 * np.sin(200.0), rtol=1e-5)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("strategy", [Adjoint(), Adjoint(method="backsolve")], ids=str)
def test_scale_of_the_loss(strategy):
    """dz/dt = -10 z at rtol = atol = 1e-6: the relative error does not depend on the loss's unit."""
    solver = solvers.Tsit5(rtol=1e-6, atol=1e-6)

    @jax.jit
    def gradient(scale):
        def loss(a):
            return scale * solve(ODE(lambda t, z, a: a * z, 1.0, 0.0, 1.0), a, solver=solver, gradient=strategy).value

        return jax.grad(loss)(jnp.array(-10.0)) / (scale * np.exp(-10.0)) - 1

    errors = [float(gradient(scale)) for scale in (1e-6, 1.0, 1e6)]
    assert abs(errors[1]) < 0.05  # atol over the solution, 1e-6 / 4.5e-5, is 0.022
    np.testing.assert_allclose(errors, errors[1], rtol=1e-6)


def test_stiff_method_steps_in_single_precision():
    """Below a tolerance of 1e-4 Diffrax's default root finder accepts no step in float32, without a word."""
    solver = solvers.Kvaerno5(rtol=1e-5, atol=1e-5)
    equation = ODE(lambda t, y, a: -a * (y - jnp.cos(t)), 0.0, 0.0, 1.0)
    solution = solve(equation, 50.0, solver=solver)
    t, a = 1.0, 50.0
    expected = (a * a * np.cos(t) + a * np.sin(t)) / (a * a + 1) - a * a / (a * a + 1) * np.exp(-a * t)
    assert solution.stats["converged"]
    assert solution.stats["steps"] > 5
    np.testing.assert_allclose(solution.value, expected, rtol=1e-3)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("strategy", "value"), [(Unroll(), 1068.7), (Adjoint(), 3.678143058)], ids=str)
def test_the_trap_of_the_equilibrium(strategy, value):
    """The start is an equilibrium: steps grow without bound, and the accepted steps do not resolve the derivative."""
    check_trap(strategy, value, None)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("strategy", "value", "dt0"),
    [
        (Unroll(), 1081.5, 0.1),
        (Implicit(), 1068.7, None),
        (Adjoint(), 3.678143058, 0.1),
        (Forward(), 3.678143058, None),
    ],
)
def test_the_trap_more(strategy, value, dt0):
    check_trap(strategy, value, dt0)


def check_trap(strategy, value, dt0):
    problem = Equilibrium()
    params = problem.init(jax.random.key(0))
    bound = Solve(solver=solvers.Tsit5(dt0=dt0), gradient=strategy)
    g = jax.jit(jax.grad(lambda p: problem.loss(p, None, bound)))(params)["a"]
    np.testing.assert_allclose(g, value, rtol=1e-4 if value > 1000 else 1e-5)


def test_tap_of_the_adjoint(float64):
    """Backward steps are of the order of the forward ones, also with many output times."""

    def loss(a, tap):
        equation = ODE(lambda t, y, a: -a * y, 1.0, 0.0, 4.0, jnp.linspace(0.0, 4.0, 21))
        return jnp.sum(solve(equation, a, gradient=Adjoint(), tap=tap).value)

    tap = jax.jit(jax.grad(loss, 1))(jnp.array(1.0), zero_tap())
    assert 20 <= tap["adjoint_steps"] <= 2 * tap["steps"] + 21


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "dt0",
    [
        pytest.param(0.01, id="130 steps", marks=pytest.mark.slow),
        pytest.param(0.7, id="2"),
        pytest.param(1.3, id="1, as a residual network", marks=pytest.mark.slow),
        pytest.param(5.0, id="1, longer", marks=pytest.mark.slow),
    ],
)
def test_equal_steps_and_their_number_under_finite_differences(dt0):
    """y' = -2 y in n equal steps is y0 (1 - 2 (t1 - t0) / n)^n; when times move by a little the number stays."""
    n = int(np.ceil(round(1.3 / dt0, 9)))
    solver = solvers.Euler(dt0=dt0)

    def value(t1, strategy):
        return solve(ODE(lambda t, y, a: -a * y, 1.2, 0.1, t1), 2.0, solver=solver, gradient=strategy).value

    both = jax.jit(lambda t1: [jax.value_and_grad(value)(t1, s) for s in (Unroll(), FiniteDifference())])
    for found, slope in both(jnp.array(1.4)):
        np.testing.assert_allclose(found, 1.2 * (1 - 2.6 / n) ** n, rtol=1e-12)
        np.testing.assert_allclose(slope, -2.4 * (1 - 2.6 / n) ** (n - 1), rtol=1e-9)
