"""`Reversible` against backpropagation through the same reversible steps, and its memory."""

from typing import Any, ClassVar

import diffrax as dfx
import jax
import jax.numpy as jnp
import pytest
import replay_cases as cases

from implicitexp.adjoints.discrete.coupled import Coupled, Fixed
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
    whole = AsSolver(Coupled(solver, Fixed(coupling)), solver.interpolation_cls)
    return cases.gradient(p, dfx.RecursiveCheckpointAdjoint(), whole, controller, saveat, **options)


BACKWARDS = {"t0": 1.7, "t1": 0.1, "dt0": -0.13, "ts": cases.PARAMS["ts"][::-1]}
ROWS = [
    pytest.param(dfx.Heun(), cases.fixed, cases.times, {}, 0.999, id="Heun-fixed-times"),
    *(
        pytest.param(dfx.Tsit5(), c, s, {}, 0.999, id=f"Tsit5-{c.__name__}-{s.__name__}", marks=slow)
        for c, saved in ((cases.fixed, (cases.several,)), (cases.adaptive, cases.SAVED))  # fixed: no times are kept
        for s in saved
    ),
    pytest.param(dfx.Dopri5(), cases.clipped, cases.all_forms, {}, 0.9, id="Dopri5-clipped", marks=slow),
    pytest.param(dfx.Euler(), cases.fixed, cases.all_forms, {}, 1.0, id="Euler-fixed", marks=slow),
    pytest.param(dfx.Tsit5(), cases.adaptive, cases.several, BACKWARDS, 0.99, id="backwards", marks=slow),
    pytest.param(dfx.Tsit5(), cases.adaptive, cases.times, {"t1": 0.1, "ts": [0.1]}, 0.99, id="no-step", marks=slow),
    pytest.param(dfx.Tsit5(), cases.fixed, cases.all_forms, {"dt0": 2.0}, 0.99, id="one-step", marks=slow),
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


def test_a_gradient_from_states_that_were_lost_is_nan(float64):
    """0.5^-200 times the rounding is more than there is."""
    assert jnp.isnan(jax.grad(lambda r: oscillator(r, 200, 201, Reversible(0.5)))(1.0))
    assert jnp.isfinite(jax.grad(lambda r: oscillator(r, 10, 11, Reversible(0.5)))(1.0))


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
