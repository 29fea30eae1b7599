"""Broyden's method with limited memory: what Optimistix lacks, on problems with known roots."""

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from implicitexp.solvers import broyden
from implicitexp.solvers.broyden import Broyden

EXACT = 1e-9  # of a solve to 1e-11 whose Jacobian has a condition below 100


def linear(n, spread, seed=0):
    """A matrix with eigenvalues from 1 to `spread`, not symmetric, and a right-hand side."""
    rng = np.random.default_rng(seed)
    basis = np.eye(n) + 0.2 * rng.normal(size=(n, n)) / max(n, 1) ** 0.5
    matrix = basis @ np.diag(np.geomspace(1, spread, n)) @ np.linalg.inv(basis)
    return jnp.asarray(matrix), jnp.asarray(rng.normal(size=n))


def residual(y, args):
    return args[0] @ y - args[1]


def solve(fn, y0, args=None, tolerance=1e-11, max_steps=500, **options):
    return optx.root_find(fn, Broyden(tolerance, tolerance, **options), y0, args, max_steps=max_steps, throw=False)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("n", [1, 2, 3, 5, 8])
def test_linear_problem_in_twice_n_steps(n):
    """D. M. Gay 1979, "Some convergence properties of Broyden's method": 2 n steps, one to see that it is there, and two for
    the rounding. No step asks for a Jacobian."""
    args = linear(n, 10.0)
    sol = solve(residual, jnp.zeros(n), args, history=2 * n + 3)
    assert sol.result == optx.RESULTS.successful
    assert sol.stats["num_steps"] <= 2 * n + 3
    np.testing.assert_allclose(sol.value, np.linalg.solve(*args), rtol=EXACT)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("n", "history"), [(30, 8), (30, 3), (30, 1)])
def test_limited_memory(n, history):
    """Fewer pairs than steps: the oldest is forgotten. The chord method, H = 1, would not converge at all."""
    args = linear(n, 3.0)
    sol = solve(residual, jnp.zeros(n), args, history=history)
    assert sol.result == optx.RESULTS.successful
    assert sol.stats["num_steps"] > history
    np.testing.assert_allclose(sol.value, np.linalg.solve(*args), rtol=EXACT)


def test_inverse_meets_the_last_step_and_has_its_transpose(float64):
    """The secant equation H d = s, and <u, H v> = <H^T u, v>."""
    args = linear(6, 4.0)
    solver = Broyden(1e-6, 1e-6)
    y, seen = jnp.zeros(6), []
    state = solver.init(lambda y, a: (residual(y, a), None), y, args, {}, jax.eval_shape(lambda: y), None, frozenset())
    for _ in range(5):
        seen.append(y)
        y, state, _ = solver.step(lambda y, a: (residual(y, a), None), y, args, {}, state, frozenset())
    forward, transposed = solver.inverse(state)
    step = seen[-1] - seen[-2]
    np.testing.assert_allclose(forward(args[0] @ step), step, rtol=1e-10, atol=1e-12)
    u, v = args[1], jnp.arange(6.0)
    np.testing.assert_allclose(u @ forward(v), transposed(u) @ v, rtol=1e-12)
    np.testing.assert_allclose(y, seen[-1] - forward(residual(seen[-1], args)), rtol=1e-12)


def test_first_step_is_fitted_to_the_sign_of_f(float64):
    """From H = 1 the second of these would run away: its f falls in every direction."""
    for sign in (1.0, -1.0, 30.0):
        sol = solve(lambda y, s: s * (y + 0.2 * jnp.sin(y) - 1), jnp.zeros(4), sign)
        assert sol.result == optx.RESULTS.successful
        np.testing.assert_allclose(sol.value + 0.2 * jnp.sin(sol.value), 1.0, rtol=1e-10)
        assert sol.stats["num_steps"] < 15
    given = Broyden(1e-11, 1e-11, scale=0.5)
    start = given.init(lambda y, _: (y, None), jnp.ones(2), None, {}, jnp.ones(2), None, frozenset())
    assert start.scale == 0.5


def test_fixed_point_nonlinear_and_the_same_as_newton(float64):
    def fn(y, a):
        return jnp.tanh(jnp.array([[0.6, -0.3, 0.1], [0.2, 0.5, 0.3], [-0.4, 0.1, 0.7]]) @ y + a)

    a, broyden = jnp.array([0.3, -0.2, 0.5]), Broyden(1e-12, 1e-12)
    ours = optx.fixed_point(fn, broyden, jnp.zeros(3), a)
    newton = optx.fixed_point(fn, optx.Newton(1e-12, 1e-12), jnp.zeros(3), a)
    np.testing.assert_allclose(ours.value, newton.value, rtol=1e-11)
    assert ours.stats["num_steps"] < 20


def test_trees_aux_options_and_scalars(float64):
    def fn(y, a):
        return {"u": y["u"] ** 2 - a, "v": y["v"] - y["u"]}, {"seen": y["v"]}

    y0 = {"u": jnp.array([1.2, 1.3]), "v": jnp.array([1.0, 1.0])}
    sol = optx.root_find(fn, Broyden(1e-11, 1e-11), y0, jnp.array([2.0, 3.0]), has_aux=True)
    np.testing.assert_allclose(sol.value["v"], jnp.sqrt(jnp.array([2.0, 3.0])), rtol=1e-10)
    np.testing.assert_allclose(sol.aux["seen"], sol.value["v"], rtol=1e-6)
    scalar = optx.root_find(lambda y, _: y**3 - 2.0, Broyden(1e-11, 1e-11), 1.0)
    np.testing.assert_allclose(scalar.value, 2 ** (1 / 3), rtol=1e-10)
    assert scalar.value.shape == ()
    empty = optx.root_find(lambda y, _: y, Broyden(1e-11, 1e-11), jnp.zeros(0))
    assert empty.value.shape == (0,)
    options = {"lower": jnp.array(0.5), "upper": jnp.array(3.0)}
    boxed = optx.root_find(lambda y, _: (y - 1) * (y + 4), Broyden(1e-11, 1e-11), 2.9, options=options)
    np.testing.assert_allclose(boxed.value, 1.0, rtol=1e-10)


def test_a_step_that_is_too_long_is_taken_back(float64, monkeypatch):
    """The Jacobian at the start is a twentieth of that at the root: the first step goes to where f is 10^7 as large, in the
    second case to where it is infinite."""

    def solved(target):
        return solve(lambda y, _: jnp.sinh(y) / target - 1, jnp.full(3, 0.5), max_steps=60)

    for target in (20.0, 1e5):
        sol = solved(target)
        assert sol.result == optx.RESULTS.successful
        np.testing.assert_allclose(sol.value, np.arcsinh(target), rtol=1e-9)
    monkeypatch.setattr(broyden, "GROWTH", jnp.inf)
    assert solved(21.0).result != optx.RESULTS.successful


def test_failure_is_flagged_lane_by_lane(float64):
    """y^2 + a has no root for a > 0."""

    def lane(a):
        sol = solve(lambda y, a: y**2 + a, jnp.array(1.5), a, max_steps=60)
        return sol.value, sol.result == optx.RESULTS.successful

    value, converged = jax.vmap(lane)(jnp.array([-4.0, 1.0, -9.0]))
    np.testing.assert_array_equal(converged, [True, False, True])
    np.testing.assert_allclose(value[jnp.array([0, 2])], [2.0, 3.0], rtol=1e-10)


def test_backpropagation_through_its_steps(float64):
    """The last steps contract the error of the derivative as that of the value."""
    args = linear(4, 4.0)

    def value(b, adjoint):
        broyden = Broyden(1e-13, 1e-13)
        return jnp.sum(optx.root_find(residual, broyden, jnp.zeros(4), (args[0], b), adjoint=adjoint).value)

    for adjoint in (optx.RecursiveCheckpointAdjoint(), optx.ImplicitAdjoint()):
        gradient = jax.grad(value)(args[1], adjoint)
        np.testing.assert_allclose(gradient, np.linalg.solve(args[0].T, np.ones(4)), rtol=1e-8)


def test_single_precision():
    args = linear(5, 4.0)
    sol = optx.root_find(residual, Broyden(1e-4, 1e-5), jnp.zeros(5), args)
    assert sol.value.dtype == jnp.float32
    np.testing.assert_allclose(sol.value, np.linalg.solve(*args), rtol=1e-3, atol=1e-4)


def test_as_many_equations_as_unknowns(float64):
    with pytest.raises(ValueError, match="these are 3 and 2.*LevenbergMarquardt"):
        optx.root_find(lambda y, _: jnp.concatenate([y, y[:1]]), Broyden(1e-6, 1e-6), jnp.ones(2))
