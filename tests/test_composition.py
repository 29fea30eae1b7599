"""Losses that solve several equations: in a network under vmap, and one inside another's function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from implicitexp.equations import ODE, FixedPoint, Integral, Root
from implicitexp.solving import solve, zero_tap
from implicitexp.strategies import Adjoint, FiniteDifference, Forward, Implicit, Unroll

SOLVED = 1e-6  # relative, float64: tolerance 1e-8 through a chain of solves
DIFFERENCED = 1e-3  # the same with central differences

STRATEGIES = [Unroll(), Implicit(), Adjoint(), Forward(), FiniteDifference()]


def network(a, strategy, tap):
    """Root, ODE and fixed point one after another, each fed by the one before: log of the closed form below."""
    root = solve(Root(lambda y, a: y**2 - a, 1.0), a, gradient=strategy, tap=tap).value
    grown = solve(ODE(lambda t, y, k: k * y, root, 0.0, 1.0), 0.5 * a, gradient=strategy, tap=tap).value
    fixed = solve(FixedPoint(lambda y, b: 0.5 * y + b, 0.0), grown, gradient=strategy, tap=tap).value
    return jnp.log(fixed)


def network_exact(a):
    return jnp.log(2 * jnp.sqrt(a) * jnp.exp(0.5 * a))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "strategy",
    [pytest.param(s, marks=pytest.mark.slow) for s in STRATEGIES],
    ids=str,
)
def test_several_equations_in_a_network_under_vmap(strategy):
    a = jnp.array([0.5, 1.0, 2.0])
    total = jax.jit(jax.grad(lambda a, tap: jnp.sum(jax.vmap(lambda a: network(a, strategy, tap))(a)), (0, 1)))
    gradient, tap = total(a, zero_tap())
    bound = DIFFERENCED if isinstance(strategy, FiniteDifference) else SOLVED
    np.testing.assert_allclose(gradient, jax.vmap(jax.grad(network_exact))(a), rtol=bound)
    assert tap["solves"] == 9


def integral_of_root(a, strategy, tap):
    """The integral over x from 0 to 1 of the root of y^2 = a + x."""

    def integrand(x, a):
        return solve(Root(lambda y, c: y**2 - c, 1.0), a + x, gradient=strategy, tap=tap).value

    return solve(Integral(integrand, 0.0, 1.0), a, gradient=strategy, tap=tap).value


def root_of_integral(a, strategy, tap):
    """The upper limit y at which the integral of exp(x) from 0 to y is a: log(1 + a)."""

    def residual(y, a):
        return solve(Integral(lambda x, _: jnp.exp(x), 0.0, y), gradient=strategy, tap=tap).value - a

    return solve(Root(residual, 0.5), a, gradient=strategy, tap=tap).value


NESTED = [
    pytest.param(integral_of_root, lambda a: 2 / 3 * ((a + 1) ** 1.5 - a**1.5), id="integral of a root"),
    pytest.param(root_of_integral, lambda a: jnp.log1p(a), id="root of an integral", marks=pytest.mark.slow),
]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "strategy",
    [pytest.param(s, marks=[] if isinstance(s, Implicit) else [pytest.mark.slow]) for s in STRATEGIES],
    ids=str,
)
@pytest.mark.parametrize(("nested", "exact"), NESTED)
def test_nested(nested, exact, strategy):
    """One strategy for both solves; the tap counts the outer one only, which the inner one can fail."""
    value_and_grad = jax.jit(jax.value_and_grad(lambda a, tap: nested(a, strategy, tap), (0, 1)))
    value, (gradient, tap) = value_and_grad(jnp.array(1.3), zero_tap())
    bound = DIFFERENCED if isinstance(strategy, FiniteDifference) else SOLVED
    np.testing.assert_allclose(value, exact(1.3), rtol=SOLVED)
    np.testing.assert_allclose(gradient, jax.grad(exact)(1.3), rtol=bound)
    assert tap["solves"] == 1


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(0.1, 3.0), min_size=4, max_size=4))
def test_vmap_is_a_loop(values):
    """The gradient of a vmap is that of each lane alone, in float32 to rounding."""
    a = jnp.asarray(values, jnp.float32)
    np.testing.assert_allclose(BATCHED(a), [SINGLE(x) for x in a], rtol=1e-5)


def _one(a):
    return solve(FixedPoint(lambda y, a: jnp.sqrt(a + y), 1.0), a, gradient=Adjoint()).value


BATCHED = jax.jit(jax.vmap(jax.grad(_one)))
SINGLE = jax.jit(jax.grad(_one))
