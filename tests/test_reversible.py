"""`Reversible` against backpropagation through the same reversible steps, and its memory."""

from typing import Any, ClassVar

import diffrax as dfx
import jax
import jax.numpy as jnp
import pytest
import replay_cases as cases

from implicitexp.adjoints.discrete.coupled import DAMPING, Coupled, Fixed, OverTime, ToTolerance
from implicitexp.adjoints.discrete.replay import Replay
from implicitexp.adjoints.discrete.reversible import Reversible
from implicitexp.errors import Unsupported

# float64: the states are made again, each step with a rounding that the field may enlarge; about 30 steps.
ROUND_OFF = 1e-10
slow = pytest.mark.slow


class AsSolver(dfx.AbstractSolver):
    """The reversible form of a solver as a solver of Diffrax's, for its own adjoint."""

    coupled: Coupled
    term_structure: ClassVar = dfx.AbstractTerm
    interpolation_cls: Any

    def order(self, terms):
        return self.coupled.solver.order(terms)

    def error_order(self, terms):
        return self.coupled.error_order(terms)

    def init(self, terms, t0, t1, y0, args):
        return y0, jnp.ones_like(t0)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        return self.coupled.step(terms, t0, t1, y0, args, solver_state, made_jump)

    def func(self, terms, t0, y0, args):
        return self.coupled.func(terms, t0, y0, args)


def expected(p, solver, coupling, controller, saveat, **options):
    """`coupling` None: as `Reversible` chooses it."""
    adaptive = controller(p)
    if coupling is not None:
        rule = Fixed(coupling)
    elif isinstance(adaptive, dfx.PIDController):
        rule = ToTolerance(adaptive.rtol, adaptive.atol, adaptive.norm)
    else:
        rule = OverTime(DAMPING / (p["t1"] - p["t0"]))
    whole = AsSolver(Coupled(solver, rule), solver.interpolation_cls)
    return cases.gradient(p, dfx.RecursiveCheckpointAdjoint(), whole, controller, saveat, **options)


BACKWARDS = {"t0": 1.7, "t1": 0.1, "dt0": -0.13, "ts": cases.PARAMS["ts"][::-1]}
ROWS = [
    pytest.param(dfx.Heun(), cases.fixed, cases.times, {}, None, id="Heun-fixed-times", marks=slow),
    pytest.param(dfx.Tsit5(), cases.adaptive, cases.dense, {}, None, id="Tsit5-adaptive-dense", marks=slow),
    pytest.param(dfx.Dopri5(), cases.clipped, cases.all_forms, {}, 0.9, id="Dopri5-clipped", marks=slow),
    pytest.param(dfx.Tsit5(), cases.adaptive, cases.several, BACKWARDS, 0.99, id="backwards", marks=slow),
    pytest.param(dfx.Heun(), cases.adaptive, cases.times, {"t1": 0.1, "ts": [0.1]}, None, id="no-step", marks=slow),
    pytest.param(dfx.Heun(), cases.fixed, cases.all_forms, {"dt0": 2.0}, None, id="one-step", marks=slow),
]


@pytest.mark.parametrize(("solver", "controller", "saveat", "changes", "coupling"), ROWS)
def test_equal_to_the_gradient_through_the_steps(float64, solver, controller, saveat, changes, coupling):
    p = cases.params(**changes)
    got = cases.gradient(p, Reversible(coupling), solver, controller, saveat)
    assert cases.difference(got, expected(p, solver, coupling, controller, saveat)) < ROUND_OFF


def oscillator(rate, steps, max_steps, adjoint=Reversible()):
    sol = dfx.diffeqsolve(
        dfx.ODETerm(lambda t, y, rate: rate * jnp.stack([y[1], -y[0]])),
        dfx.Midpoint(),
        0.0,
        steps * 0.01,
        0.01,
        jnp.ones((2, 50)),
        args=rate,
        adjoint=adjoint,
        max_steps=max_steps,
    )
    return jnp.sum(sol.ys[-1, 0])


def test_memory_does_not_grow_with_the_steps(float64):
    """`max_steps` is what is reserved for: a record of 10,000 states of 100 numbers would be 8 MB."""

    def temporary(steps):
        compiled = jax.jit(jax.grad(lambda r: oscillator(r, steps, steps + 1))).lower(1.0).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few, many = temporary(100), temporary(10_000)
    assert abs(many - few) <= 0.1 * few


@slow
def test_exact_over_many_steps(float64):
    """y = (cos rt + sin rt, cos rt - sin rt), so dy_1/dr = t (cos rt - sin rt), 50 of them; Midpoint's error is h^2 t^2/6."""
    rate, steps = 0.7, 10_000
    t = steps * 0.01
    got = jax.jit(jax.grad(lambda r: oscillator(r, steps, steps + 1)))(rate)
    difference = 1e-4 * rate
    values = [oscillator(rate + d, steps, steps + 1) for d in (difference, -difference)]
    assert jnp.allclose(got, (values[0] - values[1]) / (2 * difference), rtol=1e-4)
    assert jnp.allclose(got, 50 * t * (jnp.cos(rate * t) - jnp.sin(rate * t)), rtol=0.1)


@slow
def test_a_gradient_from_states_that_were_lost_is_nan(float64):
    """0.5^-128 times the rounding is more than there is; 0.5^-16, between two of 16 kept states, is not."""
    exact = jax.grad(lambda r: oscillator(r, 200, 201, dfx.RecursiveCheckpointAdjoint()))(1.0)
    assert jnp.isnan(jax.grad(lambda r: oscillator(r, 200, 201, Reversible(0.5, checkpoints=2)))(1.0))
    assert jnp.allclose(jax.grad(lambda r: oscillator(r, 200, 201, Reversible(0.5)))(1.0), exact, rtol=1e-3)


@pytest.mark.parametrize("coupling", [0.999, pytest.param(None, marks=slow)])
def test_the_gradient_of_solutions_that_left_each_other_is_nan(float64, coupling):
    """y' = -k y over 14 time constants: coupled by 0.999 the solution is 890 times too large, which is 70,000 tolerances."""

    def end(k):
        term, controller = dfx.ODETerm(lambda t, y, k: -k * y), dfx.PIDController(rtol=1e-8, atol=1e-8)
        return dfx.diffeqsolve(
            term,
            dfx.Tsit5(),
            0.0,
            1.0,
            None,
            jnp.array(1.0),
            k,
            stepsize_controller=controller,
            adjoint=Reversible(coupling),
        ).ys[-1]

    value, gradient = jax.jit(jax.value_and_grad(end))(14.0)
    if coupling is None:
        assert jnp.allclose(jnp.stack([value, -gradient]), jnp.exp(-14.0), rtol=0, atol=1e-8)
    else:
        assert value > 100 * jnp.exp(-14.0)
        assert jnp.isnan(gradient)


def lotka_volterra(p, adjoint, rtol):
    rates, start = p
    a, b, c, d = rates
    field = dfx.ODETerm(lambda t, y, args: jnp.stack([a * y[0] - b * y[0] * y[1], d * y[0] * y[1] - c * y[1]]))
    controller = dfx.PIDController(rtol=rtol, atol=rtol)
    sol = dfx.diffeqsolve(field, dfx.Tsit5(), 0.0, 10.0, None, start, stepsize_controller=controller, adjoint=adjoint)
    return jnp.sum(sol.ys[-1] ** 2)


@slow
def test_a_field_that_contracts_and_expands(float64):
    """Lotka-Volterra over two periods, where a coupling of 0.999 is off by 0.5. The gradient is that of a computed solution, so
    its error is the condition, here about 20, times that of the value."""
    p = (jnp.array([1.5, 1.0, 3.0, 1.0]), jnp.array([1.0, 1.0]))
    exact, right = jax.jit(jax.value_and_grad(lambda p: lotka_volterra(p, Replay(), 1e-12)))(p)
    value_and_grad = jax.jit(jax.value_and_grad(lambda p, rtol: lotka_volterra(p, Reversible(), rtol)))
    for rtol in (1e-6, 1e-8):
        value, gradient = value_and_grad(p, rtol)
        assert abs(value - exact) < 1e3 * rtol * exact
        assert cases.difference(gradient, right) < 5e3 * rtol


@pytest.mark.parametrize("rate", [2.0, pytest.param(50.0, marks=slow)])
def test_a_field_that_contracts_is_solved_and_its_gradient_right_or_nan(float64, rate):
    """y' = -rate (y - cos t). With a coupling of 0.999 the two solutions leave each other by exp(20 rate) and no number is
    finite. By 1/50 a step, as here for rate = 50, no step can be undone, and the walk notices."""

    def end(rate, adjoint):
        controller = dfx.PIDController(rtol=1e-6, atol=1e-6)
        term = dfx.ODETerm(lambda t, y, rate: -rate * (y - jnp.cos(t)))
        y0 = jnp.array(0.5)
        return dfx.diffeqsolve(
            term, dfx.Tsit5(), 0.0, 20.0, None, y0, rate, stepsize_controller=controller, adjoint=adjoint
        ).ys[-1]

    value, gradient = jax.jit(jax.value_and_grad(lambda rate: end(rate, Reversible())))(rate)

    def exact(rate):
        return rate * (rate * jnp.cos(20.0) + jnp.sin(20.0)) / (1 + rate**2)

    assert jnp.allclose(value, exact(rate), atol=1e-5)
    if rate == 2:
        assert jnp.allclose(gradient, jax.grad(exact)(rate), atol=1e-5)
    else:
        assert jnp.isnan(gradient)


def test_refused_in_words():
    def value(rate, solver, adjoint):
        controller = dfx.PIDController(rtol=1e-3, atol=1e-3)
        term = dfx.ODETerm(lambda t, y, rate: -rate * y)
        return dfx.diffeqsolve(
            term, solver, 0.0, 1.0, 0.1, jnp.array(1.0), rate, stepsize_controller=controller, adjoint=adjoint
        ).ys[-1]

    with pytest.raises(Unsupported, match="no form of Kvaerno3"):
        value(1.0, dfx.Kvaerno3(), Reversible())
    with pytest.raises(ValueError, match="has to lie in"):
        Reversible(0.0)
    with pytest.raises(ValueError, match="at least 2"):
        Reversible(checkpoints=1)
