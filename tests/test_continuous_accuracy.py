"""What the continuous adjoints are good for: their error follows the tolerance, memory and time follow n and p.

Closed forms: the logistic equation, Lotka-Volterra at its equilibrium; more of them in test_continuous_condition.py. Without
one: Diffrax's own gradient at tight tolerances.
"""

import time

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from implicitexp.adjoints.continuous.backsolve_adjoint import Backsolve
from implicitexp.adjoints.continuous.forward_sensitivity import ForwardSensitivity
from implicitexp.adjoints.continuous.gauss_adjoint import Gauss
from implicitexp.adjoints.continuous.interpolating import Interpolating

ADJOINTS = [Gauss(), Interpolating(), Backsolve(checkpoints=4), ForwardSensitivity()]
NAMES = ["gauss", "interpolating", "backsolve", "forward"]
STEPPED = 1e-6  # at tolerance 1e-8, relative: the errors of the steps add up, over a gradient that they grow with
TIGHT = optx.Newton(1e-13, 1e-13)  # stages without an error of their own, so that the steps' is seen
SOLVERS = {"tsit5": dfx.Tsit5(), "dopri8": dfx.Dopri8(), "kvaerno5": dfx.Kvaerno5(root_finder=TIGHT)}


def at_tolerance(tolerance):
    return dfx.PIDController(rtol=tolerance, atol=tolerance)


def gradient_error(gradient, exact) -> float:
    """The largest relative error over leaves."""
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(exact), strict=True)
    return max(float(np.linalg.norm(np.asarray(a) - b) / np.linalg.norm(b)) for a, b in pairs)


# -- the tolerance means what it says ---------------------------------------------------------------------------------


def logistic(p, adjoint, solver, controller):
    """y' = r y (1 - y / K), L = sin y(3)."""
    term = dfx.ODETerm(lambda t, y, p: p["r"] * y * (1 - y / p["K"]))
    sol = dfx.diffeqsolve(
        term, solver, 0.0, 3.0, None, p["y0"], p, stepsize_controller=controller, adjoint=adjoint, max_steps=4096
    )
    return jnp.sin(sol.ys[0])


def logistic_exact(p):
    return jnp.sin(p["K"] / (1 + (p["K"] / p["y0"] - 1) * jnp.exp(-3 * p["r"])))


@pytest.mark.slow
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=NAMES)
def test_the_error_falls_with_the_tolerance(adjoint, solver, float64):
    """In proportion over six decades: error = C tolerance^slope with a slope near one, and no tolerance far off it."""
    p = jax.tree.map(jnp.array, {"r": 1.3, "K": 2.0, "y0": 0.3})
    exact = jax.grad(logistic_exact)(p)
    gradient = jax.jit(lambda tolerance: jax.grad(logistic)(p, adjoint, SOLVERS[solver], at_tolerance(tolerance)))
    decades = np.arange(5.0, 12.0)  # 1e-5 to 1e-11
    errors = np.array([gradient_error(gradient(10.0**-d), exact) for d in decades])
    slope, level = np.polyfit(-decades, np.log10(errors), 1)
    assert 0.8 < slope < 1.3
    np.testing.assert_array_less(np.abs(np.log10(errors) - (level - slope * decades)), 1.0)
    assert np.all(errors < 50 * 10.0**-decades)  # the loss's own condition, and Kvaerno5's 13 steps at 1e-7


# -- where other gradients are wrong ------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=NAMES)
@pytest.mark.parametrize("dt0", [None, 0.1])
def test_the_trap_of_the_equilibrium(adjoint, dt0, float64):
    """At the equilibrium of Lotka-Volterra the forward steps grow without bound: dL/da = 2 - 2 cos 10 = 3.678, and
    backpropagation through the accepted steps gives 1069 or 1082."""

    def loss(a, adjoint):
        def field(t, y, a):
            return jnp.stack([a * y[0] - y[0] * y[1], -a * y[1] + y[0] * y[1]])

        return dfx.diffeqsolve(
            dfx.ODETerm(field), dfx.Tsit5(), 0.0, 10.0, dt0, jnp.ones(2), a,
            stepsize_controller=at_tolerance(1e-8), adjoint=adjoint,
        ).ys.sum()  # fmt: skip

    exact = 2 - 2 * np.cos(10.0)
    assert abs(jax.jit(jax.grad(loss), static_argnums=1)(jnp.array(1.0), adjoint) / exact - 1) < STEPPED
    assert jax.grad(loss)(jnp.array(1.0), dfx.RecursiveCheckpointAdjoint()) > 1000


@pytest.mark.slow
def test_a_forcing_that_is_not_there(float64):
    """y' = -y + a sin(50 t), a = 0: dy(1)/da = (50/e + sin 50 - 50 cos 50) / 2501. Neither y nor lambda knows of the oscillation,
    and the nodes of the steps miss it, unless the quadrature is in the error test."""

    def value(a, adjoint):
        term = dfx.ODETerm(lambda t, y, a: -y + a * jnp.sin(50 * t))
        return dfx.diffeqsolve(
            term, dfx.Tsit5(), 0.0, 1.0, None, 1.0, a, stepsize_controller=at_tolerance(1e-8), adjoint=adjoint
        ).ys[0]

    exact = (50 / np.e + np.sin(50) - 50 * np.cos(50)) / 2501
    plain, controlled, as_state = (
        jax.jit(jax.grad(lambda a, x=x: value(a, x)))(jnp.array(0.0))
        for x in (Gauss(), Gauss(in_error_test=True), Interpolating())
    )
    assert abs(plain / exact - 1) > 1e-3
    np.testing.assert_allclose([controlled, as_state], exact, rtol=STEPPED)


@pytest.mark.slow
@pytest.mark.parametrize("solver", ["tsit5", "dopri8", "kvaerno5"])
@pytest.mark.parametrize(
    "adjoint", [*ADJOINTS, Gauss(rtol=1e-11, atol=1e-11, solver=dfx.Dopri8())], ids=[*NAMES, "other"]
)
def test_against_backpropagation(adjoint, solver, float64):
    """Van der Pol's oscillator with a network's parameters in it, losses at many times: the same as Diffrax's own gradient
    at tight tolerances."""
    ts = jnp.linspace(0.3, 2.0, 7)
    keys = jax.random.split(jax.random.key(0), 2)
    params = {
        "w": jax.random.normal(keys[0], (8, 2)),
        "v": 0.3 * jax.random.normal(keys[1], (2, 8)),
        "mu": jnp.array(1.5),
    }

    def loss(params, y0, adjoint, tolerance):
        def field(t, y, p):
            van_der_pol = jnp.stack([y[1], p["mu"] * (1 - y[0] ** 2) * y[1] - y[0]])
            return van_der_pol + p["v"] @ jnp.tanh(p["w"] @ y + t)

        ys = dfx.diffeqsolve(
            dfx.ODETerm(field), SOLVERS[solver], 0.0, 2.0, None, y0, params, saveat=dfx.SaveAt(ts=ts),
            stepsize_controller=at_tolerance(tolerance), adjoint=adjoint,
        ).ys  # fmt: skip
        return jnp.sum(jnp.sin(ys) * ts[:, None])

    y0 = jnp.array([1.0, 0.5])
    found = jax.jit(lambda p, y: jax.grad(loss, (0, 1))(p, y, adjoint, 1e-9))(params, y0)
    # Diffrax interpolates the outputs of Kvaerno5 by a cubic, so at this tolerance the loss itself is good to 1e-7.
    own = dfx.RecursiveCheckpointAdjoint()
    exact = jax.jit(lambda p, y: jax.grad(loss, (0, 1))(p, y, own, 1e-9 if solver == "kvaerno5" else 1e-12))(params, y0)
    assert gradient_error(found, exact) < STEPPED


# -- cost -------------------------------------------------------------------------------------------------------------


def stiff(p, adjoint):
    """Two states, one of them fast; all of p in one number."""

    def field(t, y, p):
        s = jnp.mean(jnp.tanh(p))
        return jnp.stack([-50 * (1 + s) * (y[0] - jnp.cos(t)), y[0] - s * y[1]])

    return dfx.diffeqsolve(
        dfx.ODETerm(field), dfx.Kvaerno5(), 0.0, 2.0, None, jnp.array([1.0, 0.0]), p,
        stepsize_controller=at_tolerance(1e-6), adjoint=adjoint,
    ).ys[0, 1]  # fmt: skip


@pytest.mark.slow
def test_many_parameters_of_a_stiff_problem(float64):
    """n = 2, p = 100,000, an implicit solver: the memory beyond that of p = 100 is a few times p numbers (a matrix of n + p
    would be 80 GB), and so is the time."""

    def compiled(p):
        params = jnp.linspace(0.1, 1.0, p)
        program = jax.jit(jax.grad(lambda x: stiff(x, Gauss()))).lower(params).compile()
        jax.block_until_ready(program(params))

        def once():
            start = time.perf_counter()
            jax.block_until_ready(program(params))
            return time.perf_counter() - start

        return program(params), program.memory_analysis().temp_size_in_bytes, min(once() for _ in range(5))

    many = 100_000
    _, memory, seconds = compiled(100)
    gradient, memory_many, seconds_many = compiled(many)
    assert memory_many - memory < 4 * many * gradient.dtype.itemsize
    assert seconds_many < seconds + 2000 * many * 1e-9  # some hundred evaluations of the field, a few ns a number each
    own = jax.jit(jax.grad(lambda x: stiff(x, dfx.RecursiveCheckpointAdjoint())))(jnp.linspace(0.1, 1.0, many))
    assert gradient_error(gradient, own) < 1e-4  # two gradients at tolerance 1e-6


@pytest.mark.slow
def test_memory_of_backsolve_is_flat(float64):
    """Four states, whatever the number of steps."""

    def memory(max_steps):
        def loss(k):
            term = dfx.ODETerm(lambda t, z, k: k * z)
            return dfx.diffeqsolve(
                term, dfx.Tsit5(), 0.0, 1.0, 1 / max_steps, jnp.ones(100), k, max_steps=max_steps,
                adjoint=Backsolve(checkpoints=4),
            ).ys.sum()  # fmt: skip

        return jax.jit(jax.grad(loss)).lower(jnp.array(0.3)).compile().memory_analysis().temp_size_in_bytes

    assert memory(10_000) <= 1.1 * memory(100)


# -- backsolve's own ----------------------------------------------------------------------------------------------------


def relaxation(k, adjoint):
    """y' = -k (y - cos t), of which the loss is the integral: backwards an error of y grows by exp(k)."""
    term = dfx.ODETerm(lambda t, y, k: jnp.stack([-k * (y[0] - jnp.cos(t)), y[0]]))
    return dfx.diffeqsolve(
        term, dfx.Tsit5(), 0.0, 1.0, None, jnp.array([1.0, 0.0]), k,
        stepsize_controller=at_tolerance(1e-8), adjoint=adjoint,
    ).ys[0, 1]  # fmt: skip


@pytest.mark.slow
def test_drift_is_reported(float64):
    """Of an ODE that contracts by exp(30) the start does not come back, and the gradient is wrong; from checkpoint to
    checkpoint it does, and the gradient is right."""

    def both(k, checkpoints):
        def loss(k, drift):
            return relaxation(k, Backsolve(checkpoints=checkpoints, drift=drift))

        return jax.jit(jax.grad(loss, (0, 1)))(jnp.array(k), jnp.zeros(()))

    gradient, mild = both(1.0, 0)
    lost, drifted = both(30.0, 0)
    found, kept = both(30.0, 100)
    exact = [jax.jit(jax.grad(lambda k: relaxation(k, Gauss(rtol=1e-10, atol=1e-10))))(k) for k in (1.0, 30.0)]
    assert 0 < mild < 1e-6
    assert drifted > 1
    assert kept < 1e-6
    np.testing.assert_allclose([gradient, found], exact, rtol=1e-4)  # of 1e-3 in size, at tolerance 1e-8 for y
    assert abs(lost / exact[1] - 1) > 0.1

    lanes = jax.vmap(jax.grad(lambda k, d: relaxation(k, Backsolve(drift=d)), (0, 1)))
    _, per_lane = jax.jit(lanes)(jnp.array([1.0, 30.0]), jnp.zeros(2))
    np.testing.assert_allclose(per_lane, [mild, drifted], rtol=1e-3)
