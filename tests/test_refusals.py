"""What cannot work is refused by name, with what would work; and random directions, where a Jacobian is too large."""

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from implicitexp import solvers
from implicitexp.adjoints.linear import DENSE_UP_TO
from implicitexp.equations import ODE, FixedPoint, Integral, Root
from implicitexp.errors import Unsupported
from implicitexp.solving import Solve, solve, zero_tap
from implicitexp.strategies import MAX_PARAMETERS, Adjoint, FiniteDifference, Forward, Implicit, Unroll

DIFFERENCED = 1e-4  # the square of the step, (1e-8)^(2/3), times third derivatives

ROOT = Root(lambda y, a: y - jnp.sum(a), 1.0)
DECAY = ODE(lambda t, y, a: -a * y, 1.0, 0.0, 1.0)

VECTORS = Root(lambda y, a: y - a, jnp.ones(2), bounds=(0.0, 1.0))
BRACKETED = Root(lambda y, a: y - a, 1.0, bounds=(0.0, 3.0))
OSCILLATOR = ODE(lambda t, y, a: (y[1], -a * y[0]), (1.0, 0.0), 0.0, 1.0)
DAMPED = ODE(lambda t, y, a: (y[1], -a * y[0] - y[1]), (1.0, 0.0), 0.0, 1.0)
DRIFTING = ODE(lambda t, y, a: (y[1] + 0.1 * y[0], -a * y[0]), (1.0, 0.0), 0.0, 1.0)
LINE = Integral(lambda x, a: a * x, 0.0, 1.0)

REFUSED = [
    (lambda: solve(ROOT, 1.0, solver=solvers.Tsit5()), ["Tsit5", "a root", "Newton", "Dogleg"]),
    (lambda: solve(DECAY, 1.0, solver=solvers.Newton()), ["Newton", "an ODE", "Tsit5", "Kvaerno5"]),
    (lambda: solve(ROOT, 1.0, solver=solvers.Bisection()), ["Bisection", "bounds=(lower, upper)", "Newton"]),
    (lambda: solve(VECTORS, 1.0, solver=solvers.Bisection()), ["Bisection", "(2,)", "Newton", "jax.vmap"]),
    (
        lambda: solve(BRACKETED, 1.0, solver=solvers.Bisection(), gradient=Unroll()),
        ["unroll", "Bisection", "derivative", "zero", "implicit", "adjoint", "forward"],
    ),
    (lambda: solve(BRACKETED, 1.0, solver=solvers.Bisection(), gradient=Unroll(last=2)), ["unroll", "Bisection"]),
    (lambda: solve(DECAY, 1.0, solver=solvers.Leapfrog()), ["Leapfrog", "(q, p)", "Tsit5", "FixedStep"]),
    (lambda: solve(DAMPED, 1.0, solver=solvers.Leapfrog()), ["Leapfrog", "dp/dt depends on p", "Tsit5"]),
    (lambda: solve(DRIFTING, 1.0, solver=solvers.Leapfrog()), ["Leapfrog", "dq/dt depends on q", "Tsit5"]),
    (
        lambda: solve(OSCILLATOR, 1.0, solver=solvers.Leapfrog(), gradient=Adjoint()),
        ["adjoint", "Leapfrog", "implicit", "unroll", "forward", "Tsit5"],
    ),
    (
        lambda: solve(LINE, 1.0, solver=solvers.Romberg(), gradient=Unroll()),
        ["unroll", "Romberg", "implicit", "adjoint", "forward", "GaussKronrod"],
    ),
    (lambda: solvers.FixedStep(method="rk4"), ["rk4", "euler", "midpoint", "heun", "dopri5"]),
    (lambda: solve(DECAY, 1.0, gradient=Unroll(last=3)), ["last=3", "an ODE", "adjoint"]),
    (lambda: Unroll(last=3, checkpoints=2), ["checkpoints", "last", "not both"]),
    (lambda: Implicit(linear_solver="lux"), ["lux", "gmres", "normal_cg"]),  # pyright: ignore
    (lambda: Adjoint(method="backsolv"), ["backsolv", "gauss", "backsolve"]),  # pyright: ignore
    (lambda: Adjoint(preconditioner="none"), ["none", "last", "start", "identity"]),  # pyright: ignore
    (lambda: Forward(directions=0).cell("root", solvers.Newton()), ["directions=0", "at least 1"]),
    (lambda: solve(Root(lambda y, a: jnp.stack([y, y]), 1.0)), ["fn", "shape"]),
    (lambda: solve(Root(lambda y, a: jnp.int32(3), 1.0)), ["fn", "floating point"]),
    (lambda: solve(lambda y: y, 1.0), ["Root", "FixedPoint", "ODE", "Integral"]),  # pyright: ignore
]


@pytest.mark.parametrize(("call", "words"), REFUSED, ids=lambda x: x[0] if isinstance(x, list) else "")
def test_refused_with_what_would_work(call, words, monkeypatch):
    """With the tests' type checks off: users do not have them."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(Unsupported) as refusal:
        call()
    assert all(word in str(refusal.value) for word in words), str(refusal.value)


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
