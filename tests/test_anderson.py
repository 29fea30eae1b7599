"""Anderson acceleration: what Optimistix lacks, against problems with known fixed points."""

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
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
    equation = FixedPoint(lambda y, _: jnp.arctan(1.3 * y), jnp.array(3.0))  # contracts by 0.64
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


def steps_of(solver, matrix, b):
    sol = optx.fixed_point(lambda y, _: matrix @ y + b, solver, jnp.zeros_like(b), max_steps=1000)
    return int(sol.stats["num_steps"])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("largest", "plain"), [(0.4, True), (0.6, False)])
def test_plain_steps_where_the_map_contracts_quickly(largest, plain):
    """A rotation contracts by `largest` in every step: on both sides of QUICK."""
    q, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    b = jnp.array([1.0, -2.0, 0.5])
    picard, ours = (
        steps_of(kind(1e-10, 1e-10), largest * q, b)
        for kind in (optx.FixedPointIteration, anderson.AndersonAcceleration)
    )
    assert (ours >= picard) == plain  # ours looks at the residual of y, Picard's at that of its image
    assert ours <= picard + 1


@pytest.mark.usefixtures("float64")
def test_lanes_take_the_steps_that_they_take_alone():
    """Under vmap the ring is written by a selection and the branches are one: a quick lane, a slow one, two in between."""
    solver = anderson.AndersonAcceleration(1e-10, 1e-10, history=3)
    matrices = jnp.stack([contraction(6, largest)[0] for largest in (0.2, 0.97, 0.6, 0.8)])
    b = contraction(6)[1]

    def run(matrix):
        sol = optx.fixed_point(lambda y, m: m @ y + b, solver, jnp.zeros(6), matrix, max_steps=1000)
        return sol.value, sol.stats["num_steps"], jnp.stack([f(b) for f in solver.inverse(sol.state)])

    alone = jax.jit(lambda: [run(matrix) for matrix in matrices])()
    values, steps, inverses = jax.jit(jax.vmap(run))(matrices)
    np.testing.assert_array_equal(steps, [x[1] for x in alone])
    np.testing.assert_allclose(values, [x[0] for x in alone], rtol=1e-9)
    np.testing.assert_allclose(
        inverses, [x[2] for x in alone], rtol=1e-4
    )  # of differences of the size of the tolerance


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_derivatives_of_the_steps():
    """Reverse, forward and under vmap: of eight steps, in which the ring of three is written over, against differences."""
    solver = anderson.AndersonAcceleration(1e-12, 1e-12, history=3)
    matrix, b = contraction(5, 0.8)

    def after_eight(b):
        def advance(carry, _):
            y, state = carry
            return solver.advance(y, jnp.tanh(matrix @ y) + b - y, state), None

        y = jnp.zeros_like(b)
        return jnp.sin(jax.lax.scan(advance, (y, solver.start(y)), None, 8)[0][0]).sum()

    along = jnp.array([1.0, -1.0, 2.0, 0.5, -0.3])
    h = 1e-5
    expected = (after_eight(b + h * along) - after_eight(b - h * along)) / (2 * h)
    gradient, tangent = jax.jit(lambda b: (jax.grad(after_eight)(b), jax.jvp(after_eight, (b,), (along,))[1]))(b)
    np.testing.assert_allclose(gradient @ along, expected, rtol=1e-6)
    np.testing.assert_allclose(tangent, expected, rtol=1e-6)
    lanes = jax.jit(jax.vmap(jax.grad(after_eight)))(jnp.stack([b, 2 * b]))
    np.testing.assert_allclose(lanes[0], gradient, rtol=1e-8)
