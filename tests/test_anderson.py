"""Anderson acceleration: what Optimistix lacks, against problems with known fixed points."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicitexp import solvers
from implicitexp.equations import FixedPoint
from implicitexp.solvers import anderson
from implicitexp.solving import solve

EXACT = 1e-7  # of a solve with rtol = atol = 1e-10 whose contraction is 0.99
KINKED = 2.5917041241918595  # the root of 0.05 y (1 + y^2) = 1


def contraction(n, largest=0.9, seed=0):
    """A symmetric matrix with eigenvalues from -largest to largest, and a right-hand side."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(n, n)))
    matrix = q @ np.diag(np.linspace(-largest, largest, n) if n > 1 else [largest]) @ q.T
    return jnp.asarray(matrix), jnp.asarray(rng.normal(size=n))


def fixed_point(matrix, b, **options):
    solver = solvers.Anderson(rtol=1e-10, atol=1e-10, **options)
    return solve(FixedPoint(lambda y, args: args[0] @ y + args[1], jnp.zeros_like(b)), (matrix, b), solver=solver)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("n", "history"), [(1, 5), (3, 5), (4, 5), (5, 5), (12, 5), (40, 8)])
def test_contraction_of_099(n, history):
    """n below, at and above the history; the plain iteration needs about 2,500 steps for the same."""
    matrix, b = contraction(n, 0.99)
    solution = fixed_point(matrix, b, history=history)
    exact = np.linalg.solve(np.eye(n) - np.asarray(matrix), np.asarray(b))
    assert solution.stats["converged"]
    assert solution.stats["steps"] < 300
    assert np.linalg.norm(solution.value - exact) / np.linalg.norm(exact) < EXACT


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("n", [1, 2, 4])
def test_linear_problem_in_n_and_some_steps(n):
    """With history >= n it is GMRES (Walker and Ni 2011, theorem 2.2): n + 1 steps, one more to see that it is there,
    and two for the rounding of the normal equations."""
    matrix, b = contraction(n)
    assert fixed_point(matrix, b, history=n).stats["steps"] <= n + 4


def test_scalar_and_empty(float64):
    scalar = solve(FixedPoint(lambda y, _: jnp.cos(y), 1.0), solver=solvers.Anderson())
    np.testing.assert_allclose(scalar.value, 0.7390851332151607, rtol=1e-8)
    assert scalar.value.shape == ()
    empty = solve(FixedPoint(lambda y, _: 0.5 * y, jnp.zeros((0,))), solver=solvers.Anderson())
    assert empty.value.shape == (0,)
    assert empty.stats["converged"]


def test_acceleration_of_a_nonlinear_map(float64):
    equation = FixedPoint(lambda y, _: jnp.arctan(8 * y), jnp.array(3.0))
    plain, accelerated = (solve(equation, solver=solver) for solver in (solvers.Picard(), solvers.Anderson()))
    np.testing.assert_allclose(accelerated.value, plain.value, rtol=1e-7)
    assert accelerated.stats["steps"] < plain.stats["steps"]


def test_safeguard(float64, monkeypatch):
    """A contraction of 0.95 with a kink, on which extrapolation from far away overshoots: without restarts it takes
    about a thousand steps, and the plain iteration 200."""

    def steps():
        equation = FixedPoint(lambda y, _: 0.95 * jnp.abs(y) + 1 / (1 + y**2), jnp.linspace(-50.0, 100.0, 5))
        solution = solve(equation, solver=solvers.Anderson(rtol=1e-10, atol=1e-10, max_steps=5000))
        assert solution.stats["converged"]
        np.testing.assert_allclose(solution.value, KINKED, rtol=EXACT)
        return solution.stats["steps"]

    restarted = steps()
    assert restarted < 40
    monkeypatch.setattr(anderson, "RESTART", jnp.inf)
    assert steps() > 2 * restarted


def test_damping_changes_the_path_and_not_the_answer(float64):
    matrix, b = contraction(6)
    full, damped = fixed_point(matrix, b), fixed_point(matrix, b, damping=0.5)
    np.testing.assert_allclose(full.value, damped.value, rtol=1e-7)
    assert full.stats["steps"] != damped.stats["steps"]


def test_single_precision():
    matrix, b = contraction(10, 0.95)
    solution = solve(
        FixedPoint(lambda y, a: a[0] @ y + a[1], jnp.zeros_like(b)), (matrix, b), solver=solvers.Anderson()
    )
    exact = np.linalg.solve(np.eye(10) - np.asarray(matrix, float), np.asarray(b, float))
    assert solution.value.dtype == jnp.float32
    assert np.linalg.norm(solution.value - exact) / np.linalg.norm(exact) < 1e-3
    jax.block_until_ready(solution.value)


@pytest.mark.usefixtures("float64")
def test_no_step_runs_away_into_the_tolerance():
    """Far out the residual of this map is constant, so that the extrapolation is anything, and rtol |y| would forgive it."""
    start = jnp.linspace(-50.0, 50.0, 7)
    map_ = FixedPoint(lambda y, args: y - 0.3 * jnp.arctan(3 * y), start)
    solution = solve(map_, solver=solvers.Anderson())
    right = bool(solution.stats["converged"]) and bool(jnp.all(jnp.abs(solution.value) < 1e-7))
    refused = not solution.stats["converged"] and bool(jnp.all(jnp.isnan(solution.value)))
    assert right or refused
    near = solve(FixedPoint(map_.fn, start / 100), solver=solvers.Anderson())
    np.testing.assert_allclose(near.value, 0.0, atol=1e-7)
