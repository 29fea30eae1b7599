"""What is refused, and what is not, on both sides of a limit; random directions, where a Jacobian is too large."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicitexp import solvers
from implicitexp.adjoints.implicit.linear import DENSE_UP_TO
from implicitexp.equations import FixedPoint, Integral, Root
from implicitexp.errors import Unsupported
from implicitexp.solving import Solve, solve, zero_tap
from implicitexp.strategies import MAX_PARAMETERS, Adjoint, FiniteDifference, Forward, Implicit, Unroll

DIFFERENCED = 1e-4  # the square of the step, (1e-8)^(2/3), times third derivatives

ROOT = Root(lambda y, a: y - jnp.sum(a), 1.0)


def test_an_experiment_s_solver_leaves_other_kinds_their_default():
    """One configured solver, a loss with two kinds: not refused, since it is not the call that chose it."""
    bound = Solve(solver=solvers.Dopri8())
    np.testing.assert_allclose(bound(ROOT, 2.0).value, 2.0, rtol=1e-5)
    with pytest.raises(Unsupported, match="Dopri8"):
        bound(ROOT, 2.0, solver=solvers.Dopri8())


@pytest.mark.parametrize("strategy", [Forward(), FiniteDifference()], ids=str)
def test_large_jacobian_is_refused_in_reverse_mode_only(strategy):
    """At trace time, at MAX_PARAMETERS + 1 numbers; exactly MAX_PARAMETERS are taken, and forward mode takes any."""

    def value(a):
        return solve(ROOT, a, gradient=strategy).value

    above = jnp.ones(MAX_PARAMETERS + 1)
    with pytest.raises(Unsupported, match=rf"{MAX_PARAMETERS + 1} numbers.*adjoint.*directions=8"):
        jax.eval_shape(jax.grad(value), above)
    jax.eval_shape(jax.grad(value), jnp.ones(MAX_PARAMETERS))
    _, tangent = jax.jvp(value, (above,), (above,))
    np.testing.assert_allclose(tangent, MAX_PARAMETERS + 1, rtol=2e-2)  # float32, differences among them


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("strategy", [Forward, FiniteDifference])
def test_random_directions_are_unbiased(strategy):
    """The mean over keys tends to the gradient as 1/sqrt(n); one key gives the same numbers twice; and a large
    parameter is taken."""
    a = jnp.linspace(1.0, 2.0, 6)
    weights = jnp.arange(6.0)

    def gradient(key, directions=4):
        chosen = strategy(directions=directions, key=key)
        return jax.grad(lambda a: solve(Root(lambda y, a: y**3 - weights @ a, 1.0), a, gradient=chosen).value)(a)

    exact = weights / 3 / (weights @ a) ** (2 / 3)
    keys = jax.random.split(jax.random.key(0), 100)
    estimates = jax.jit(jax.vmap(gradient))(keys)
    # Of one estimate the standard deviation is at most |exact| / sqrt(directions) in each component.
    deviation = float(jnp.linalg.norm(exact)) / np.sqrt(4 * len(keys))
    assert np.max(np.abs(np.mean(estimates, axis=0) - exact)) < 4 * deviation
    assert np.std(estimates) > 0
    np.testing.assert_array_equal(gradient(keys[0]), gradient(keys[0]))
    np.testing.assert_array_equal(gradient(None), gradient(jax.random.key(0)))
    large = jnp.ones(MAX_PARAMETERS + 50)
    assert jax.grad(lambda a: solve(ROOT, a, gradient=strategy(directions=2)).value)(large).shape == large.shape


def test_finite_difference_step_and_factor(float64):
    """The truncation error goes with the square of the step: half and twice the step say how far to trust it."""

    @jax.jit
    def error(factor):
        strategy = FiniteDifference(factor=factor)
        g = jax.grad(lambda a: solve(Root(lambda y, a: y**2 - a, 1.0), a, gradient=strategy).value)(jnp.array(2.0))
        return g - 0.5 / np.sqrt(2.0)

    assert abs(error(1.0)) < DIFFERENCED
    np.testing.assert_allclose(error(2.0) / error(1.0), 4.0, rtol=1e-2)
    np.testing.assert_allclose(error(0.5) / error(1.0), 0.25, rtol=1e-2)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("n", [256, 257])
def test_both_sides_of_the_dense_switch(n):
    """`auto` is LU up to 256 unknowns and GMRES above: the same gradient, one step against many."""
    diagonal = jnp.linspace(1.0, 2.0, n)
    equation = FixedPoint(lambda y, a: a * jnp.roll(y, 1) / (2 * diagonal) + 1.0, jnp.ones(n))

    def loss(a, tap, strategy):
        return jnp.sum(solve(equation, a, gradient=strategy, tap=tap).value)

    g, tap = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)(jnp.array(0.5), zero_tap(), Implicit())
    lu = Implicit(linear_solver="lu")
    expected = jax.jit(jax.grad(loss), static_argnums=2)(jnp.array(0.5), zero_tap(), lu)
    np.testing.assert_allclose(g, expected, rtol=1e-9)
    assert (tap["adjoint_steps"] == 1) == (n <= DENSE_UP_TO)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("strategy", [Unroll(), Implicit(), Adjoint(), Forward()], ids=str)
def test_infinite_limits_do_not_move(strategy):
    """The integral of exp(-a x) from lower to infinity: a derivative by every finite number, zero by the infinite."""

    def value(p):
        return solve(Integral(lambda x, a: jnp.exp(-a * x), p[1], p[2]), p[0], gradient=strategy).value

    g = jax.jit(jax.grad(value))((jnp.array(1.5), jnp.array(0.5), jnp.array(jnp.inf)))
    edge = np.exp(-0.75)
    np.testing.assert_allclose(g, (-edge * (0.5 / 1.5 + 1 / 1.5**2), -edge, 0.0), rtol=1e-6)
