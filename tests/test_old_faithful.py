"""The density of Old Faithful's waiting times: its modes, its optimum, and what the derivative of log Z has to be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem_runs import configured, trained
from scipy import integrate, optimize

from implicitexp import data, problems
from implicitexp.solving import Solve

OPTIMUM = {"float32": 1e-4, "float64": 1e-6}  # of log p against SciPy's optimum; ten times what was measured
ROUND_OFF = 1e-12  # float64: sums of some hundred terms, and what cancels in T
LOWER, UPPER, CENTERS, WIDTH = 35.0, 105.0, (50.0, 60.0, 70.0, 80.0), 7.0
TIMES = np.linspace(43.0, 96.0, 54)  # minutes, where there are data


@pytest.mark.slow
def test_training_finds_both_modes_and_scipys_optimum(precision):
    run = trained("integral")
    loss, log_density = fitted_by_scipy()
    assert run.losses[0] == pytest.approx(np.log(UPPER - LOWER), rel=1e-5)  # uniform, without a mode
    assert run.before["modes"] == 0
    assert run.losses[-1] == pytest.approx(loss, abs=OPTIMUM[precision])
    _, problem, solver, _ = configured("integral")
    found = jax.jit(lambda a: problem.log_density(a, jnp.asarray(TIMES), Solve(solver)))(run.params["weights"])
    np.testing.assert_allclose(found, log_density(TIMES), atol=OPTIMUM[precision])
    assert run.found["modes"] == 2
    for name, near in (("first_mode_min", 53.0), ("last_mode_min", 80.0)):  # modes of a kernel density estimate
        assert abs(run.found[name] - near) < 1.0
        assert log_density(run.found[name]) == pytest.approx(peak_near(log_density, near), abs=1e-4)


def fitted_by_scipy():
    """-> loss, log p: from the data, with powers for polynomials and no whitening, Z by QUADPACK, BFGS."""
    waiting = data.old_faithful()[1]

    def statistics(t):
        x = (np.asarray(t) - 70.0) / 35.0
        return np.stack([x, x**2, *(np.exp(-((np.asarray(t) - c) ** 2) / (2 * WIDTH**2)) for c in CENTERS)], axis=-1)

    mean = statistics(waiting).mean(0)

    def partition(a):
        return integrate.quad(lambda t: np.exp(statistics(t) @ a), LOWER, UPPER, epsabs=0, epsrel=1e-12, limit=200)[0]

    def loss(a):
        z = partition(a)
        of = integrate.quad_vec(lambda t: statistics(t) * np.exp(statistics(t) @ a) / z, LOWER, UPPER, epsrel=1e-12)[0]
        return np.log(z) - a @ mean, of - mean

    found = optimize.minimize(loss, np.zeros(mean.size), jac=True, method="BFGS", options={"gtol": 1e-9})
    log_partition = np.log(partition(found.x))
    return found.fun, lambda t: statistics(t) @ found.x - log_partition


def peak_near(log_density, near):
    """The largest log p within five minutes."""
    found = optimize.minimize_scalar(lambda t: -log_density(t), bounds=(near - 5, near + 5), method="bounded")
    return log_density(found.x)


@pytest.mark.slow
def test_gradient_of_the_log_partition_is_the_expectation_of_the_statistics(float64):
    """d log Z / da = E[T], by a Gauss-Legendre rule of 400 nodes that knows nothing of the solver. By Leibniz's rule it
    holds to rounding everywhere; on the mesh of the value (`implicit`) to 1e-9 at zero, where the integrand is constant."""
    _, problem, solver, gradient = configured("integral", "precision=float64", "gradient=adjoint")
    found = jax.jit(jax.grad(lambda a: problem.log_partition(a, Solve(solver, gradient))))
    nodes, mass = np.polynomial.legendre.leggauss(400)
    statistics = np.asarray(problem.statistics(jnp.asarray(70.0 + 35.0 * nodes)))
    for weights in (jnp.zeros(6), jnp.array([0.2, -0.3, 0.4, -0.3, -0.2, 0.1])):
        density = mass * np.exp(statistics @ np.asarray(weights))
        expected = density @ statistics / density.sum()
        np.testing.assert_allclose(found(weights), expected, atol=ROUND_OFF * np.abs(expected).max())


def test_statistics_are_white_over_the_data(float64):
    problem = problems.OldFaithful()
    statistics = np.asarray(problem.statistics(problem.waiting))
    np.testing.assert_allclose(statistics.mean(0), 0, atol=ROUND_OFF)
    np.testing.assert_allclose(np.cov(statistics.T, bias=True), np.eye(6), atol=100 * ROUND_OFF)


@pytest.mark.parametrize(("options", "message"), [({"lower": 44.0}, "enclose"), ({"degree": -1}, "degree must be")])
def test_densities_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        problems.OldFaithful(**options)
