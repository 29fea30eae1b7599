"""The witness that differentiates nothing: a gradient that two computations agree on, and that the loss contradicts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import truth_cases
from truth_cases import BY_KIND, start, withheld

from implicitexp.reference import JIGGLE, Referee
from implicitexp.truth.differences import SAFETY, contradiction, noise_of
from implicitexp.truth.doubles import flat
from implicitexp.truth.pairs import Value

P = np.array([0.7, -1.3])
STEP = JIGGLE * P


def value(p, missing=0.0):
    """p0^2 p1 + exp p1, whose gradient lacks a part of its second component."""
    gradient = np.array([2 * p[0] * p[1], p[0] ** 2 + np.exp(p[1])])
    return Value(float(p[0] ** 2 * p[1] + np.exp(p[1])), gradient * [1, 1 - missing])


def test_a_change_that_the_gradient_explains_contradicts_nothing():
    assert contradiction(value(P), value(P + STEP), STEP, 1e-14) is None


@pytest.mark.parametrize("missing", [1.0, -1.0, 0.1])
def test_what_is_missing_is_within_the_error_that_is_stated(missing):
    against = contradiction(value(P, missing), value(P + STEP, missing), STEP, 1e-14)
    error = abs(missing) * value(P).gradient[1]
    assert error <= against.errors[1] <= 1.01 * SAFETY * error
    assert "Integral(..., breaks=fn)" in against.remark


def test_noise_hides_what_is_below_it():
    assert contradiction(value(P, 0.1), value(P + STEP, 0.1), STEP, 0.1 * JIGGLE) is None


def test_a_loss_that_is_no_number_says_nothing():
    assert contradiction(value(P), Value(np.nan, np.zeros(2)), STEP, 0.0) is None


def test_noise_is_the_largest_of_what_is_known():
    values = Value(1.0, P), Value(1.0 + 1e-9, P, noise=1e-12), Value(1.0 + 1e-9 - 1e-8, P)
    assert noise_of(values, 1e-11, 0.0) == pytest.approx(1e-8)
    assert noise_of(values, 1e-11, 1e6) == pytest.approx(1e-6)
    assert noise_of(values, 1e-7, 0.0) == pytest.approx(1e-7)


def held(y):
    return y * jax.lax.stop_gradient(y)


WITHOUT_A_TERM = {
    "a loss that holds constant": truth_cases.case(
        "held", truth_cases.root(lambda y, p: y - p["a"], 1.0), lambda p: p["a"] ** 2, held, a=1.5
    ),
    "an integrand that jumps": truth_cases.case(
        "jump", truth_cases.integral(lambda x, p: jnp.where(x < p["b"], p["a"], 3.0), 0.0, 1.0),
        lambda p: p["a"] * p["b"] + 3 * (1 - p["b"]), a=1.2, b=0.4,
    ),
    "a field that jumps in time": truth_cases.case(
        "switch", truth_cases.ode(lambda t, z, p: jnp.where(t < p["b"], p["a"], 3.0) * z, 1.0, 0.0, 1.0),
        lambda p: jnp.exp(p["a"] * p["b"] + 3 * (1 - p["b"])), a=1.2, b=0.4,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "name",
    [n if n == "a loss that holds constant" else pytest.param(n, marks=pytest.mark.slow) for n in WITHOUT_A_TERM],
)
def test_a_term_that_both_computations_lack_is_in_the_uncertainty(name):
    case = WITHOUT_A_TERM[name]
    reference = Referee(withheld(case))(start(case))
    off = flat(reference.gradient) - flat(truth_cases.exact_gradient(case))
    assert np.linalg.norm(off) > 0.1 * np.linalg.norm(flat(reference.gradient))
    assert np.linalg.norm(off) <= reference.absolute_uncertainty
    assert np.all(np.abs(off) <= flat(reference.component_uncertainty))
    assert "jump" in reference.remark


@pytest.mark.slow
def test_a_loss_that_jumps_at_these_very_parameters_is_not_contradicted():
    """To one side the loss jumps and to the other it does not: the gradient is that of the side which it is taken on."""
    case = BY_KIND["root"][0]

    def jumping(y):
        return y + jnp.where(y > jnp.sqrt(2.0) + 1e-9, 1.0, 0.0)

    there = truth_cases.case("edge", case.equation, case.exact, jumping, a=2.0)
    reference = Referee(withheld(there))(start(there))
    assert reference.remark is None
    assert reference.uncertainty < 1e-9
