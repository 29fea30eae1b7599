"""`problem=ode_robertson`: the rates that the data were made with come back, within what the noise allows."""

from functools import cache

import jax
import numpy as np
import pytest
from problem_runs import configured, trained
from scipy import integrate, optimize

from implicitexp import data, strategies
from implicitexp.data import make_robertson
from implicitexp.problems.robertson import NAMES
from implicitexp.reference import Referee, ReferenceSettings
from implicitexp.solving import Solve

WITHIN = 3.0  # standard errors
FITTED = {"float32": 0.2, "float64": 1e-3}  # of the rates against SciPy's fit, in standard errors
# Of the concentrations, relative to each one's largest. Between two steps Diffrax interpolates with order 3, which is what
# is seen of the steps' tolerances of 1e-6 and 1e-8: 2.6e-4 and 7e-6, and 3e-7 at 1e-10.
CURVES = {"float32": 1e-3, "float64": 2e-5}
LOSS = {
    "float32": 5e-3,
    "float64": 1e-4,
}  # relative, at the optimum: what CURVES moves it by; in float32 rounding as well
STEP = 1e-4  # of central differences: their error is 1e-8, and that of SciPy's tolerance 1e-6
SINGLE = 1e-3  # relative error of a gradient in float32
RADAU = 1e-4  # relative uncertainty: three times the difference to the continuous adjoint in JAX
PRINTED = 5e-9  # relative: the file has nine digits


def test_the_data_are_what_their_script_makes():
    times, measured = data.robertson()
    assert times == pytest.approx(make_robertson.TIMES, rel=PRINTED)
    assert measured == pytest.approx(make_robertson.measured(), rel=PRINTED, abs=1e-12)


def concentrations(logs: np.ndarray) -> np.ndarray:
    """By another method than that which made the data (LSODA), on two unknowns: C is what A and B leave of 1."""
    k1, k2, k3 = np.exp(logs)

    def field(y, _):
        c = 1 - y[0] - y[1]
        return [k3 * y[1] * c - k1 * y[0], k1 * y[0] - k3 * y[1] * c - k2 * y[1] ** 2]

    times = np.concatenate([[0.0], data.robertson()[0]])
    a, b = integrate.odeint(field, [1.0, 0.0], times, rtol=1e-10, atol=1e-14, mxstep=10_000)[1:].T
    return np.stack([a, b, 1 - a - b], axis=1)


def test_the_solution_is_that_of_scipy(precision):
    _, problem, solver, gradient = configured("ode_robertson", f"precision={precision}")
    params = {name: np.log(rate) + 0.1 for name, rate in zip(NAMES, make_robertson.RATES, strict=True)}
    found = jax.jit(lambda p: problem.concentrations(p, problem.times, Solve(solver, gradient)))(params)
    exact = concentrations(np.array(list(params.values())))
    assert (np.abs(found - exact) / exact.max(axis=0)).max() < CURVES[precision]


@pytest.mark.slow
def test_float32_has_a_discrete_gradient_and_says_that_it_has_no_continuous_one():
    """Backwards from 1e5 s the adjoint's first transient takes 1e-4 s, and float32 cannot tell such times apart."""
    _, problem, solver, _ = configured("ode_robertson", "precision=float32")
    params = problem.init(jax.random.key(0))

    def gradient(strategy):
        found = jax.jit(jax.grad(lambda p: problem.loss(p, None, Solve(solver, strategy))))(params)
        return np.array([found[name] for name in NAMES], float)

    start = np.array([float(params[name]) for name in NAMES])
    moves = STEP * np.eye(3)
    exact = np.array([(half_squares(start + d) - half_squares(start - d)) / (2 * STEP) for d in moves])
    assert np.linalg.norm(gradient(strategies.Implicit()) - exact) < SINGLE * np.linalg.norm(exact)
    assert np.all(np.isnan(gradient(strategies.Adjoint())))


@pytest.mark.slow
def test_the_ground_truth_is_held_against_radau(float64):
    _, problem, solver, _ = configured("ode_robertson", "precision=float64")
    params = problem.init(jax.random.key(0))
    patient = ReferenceSettings(target=1e-5, max_seconds=300.0)  # not by the clock of a machine with other work
    reference = Referee(problem, solver, patient)(params)
    assert "Radau" in reference.how
    assert "Kvaerno5" in reference.how
    assert reference.uncertainty < RADAU


@pytest.mark.slow
def test_the_rates_come_back_within_their_standard_errors(precision):
    run = trained("ode_robertson")
    best, errors, loss = fitted_by_scipy()
    assert run.losses[0] > 10 * loss
    assert run.losses[-1] == pytest.approx(loss, rel=LOSS[precision])
    for name, log_rate, error in zip(NAMES, best, errors, strict=True):
        rate = run.found[name]
        assert abs(np.log(run.before[name]) - log_rate) > 30 * error
        assert abs(run.found[f"{name}_deviation"]) < WITHIN
        assert abs(np.log(rate) - log_rate) < FITTED[precision] * error
        assert run.found[f"{name}_standard_error"] == pytest.approx(error * rate, rel=0.01)


def residuals(logs: np.ndarray) -> np.ndarray:
    """All 120, in standard deviations of the noise."""
    _, measured = data.robertson()
    return ((concentrations(logs) - measured) / (make_robertson.NOISE * measured.max(axis=0))).ravel()


def half_squares(logs: np.ndarray) -> float:
    return float(np.sum(residuals(logs) ** 2) / 2)


@cache
def fitted_by_scipy() -> tuple[np.ndarray, np.ndarray, float]:
    """Logarithms of the rates, their standard errors, half the sum of squares."""
    found = optimize.least_squares(residuals, np.log(make_robertson.RATES), jac="3-point", xtol=1e-10)
    return found.x, np.sqrt(np.diag(np.linalg.inv(found.jac.T @ found.jac))), found.cost
