"""What is said of a gradient: planted faults are flagged in every kind, sound strategies are trusted."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import truth_cases
from faulty import FAULTS, Faulty
from truth_cases import withheld

from implicitexp import strategies as s
from implicitexp.accuracy import check_gradient, format_error, judge
from implicitexp.cost import measure_cost
from implicitexp.problems import Digits, Equilibrium
from implicitexp.reference import Referee, Reference, ReferenceSettings
from implicitexp.truth.doubles import flat
from implicitexp.truth.witnesses import (
    Directional,
    difference_gradient,
    dot_product_test,
    forward_gradient,
    program_gradient,
    strategy_gradient,
)

TOLERANCE = 1e-3
WITNESS = 1e-6  # float64, solver tolerance 1e-8 or better, differences with the step of the tolerance
TIGHT = 1e-5  # an error that a sound strategy stays below at default tolerances in float64, and a loose one does not

PROBLEMS = {
    "root": truth_cases.case(
        "root", truth_cases.root(lambda y, p: y**3 + p["b"] * y - p["a"], 3.0), truth_cases._cardano, a=0.3, b=2.0
    ),
    "fixed_point": truth_cases.case(
        "fixed point", truth_cases.fixed(truth_cases._spiral, np.zeros(2)), truth_cases._spiral_exact,
        lambda y: jnp.sum(y**2), r=0.8, angle=0.3, b=1.5,
    ),
    "ode": truth_cases.case(
        "ode", truth_cases.ode(lambda t, z, p: p["k"] * z, lambda p: p["z0"], 0.0, lambda p: p["end"]),
        lambda p: p["z0"] * jnp.exp(p["k"] * p["end"]), k=0.5, z0=1.2, end=1.6,
    ),
    "integral": truth_cases.case(
        "integral", truth_cases.integral(lambda x, p: jnp.exp(-p["a"] * x) * jnp.sqrt(x), 0.0, lambda p: p["u"]),
        lambda p: jnp.sqrt(jnp.pi) * jax.scipy.special.erf(jnp.sqrt(p["a"] * p["u"])) / (2 * p["a"] ** 1.5)
        - jnp.sqrt(p["u"]) * jnp.exp(-p["a"] * p["u"]) / p["a"],
        a=0.9, u=1.3,
    ),
}  # fmt: skip
SOUND = [s.Implicit(), s.Adjoint(), *(pytest.param(x, marks=pytest.mark.slow) for x in (s.Unroll(), s.Forward()))]
# So loose that the first iterate, or a step of any length, is accepted. A root iterates with the preconditioner of its
# start only; the Gauss adjoint of an ODE takes the steps of the forward solve, so that it is backsolve that can be loose.
LOOSE = {
    "root": s.Adjoint(rtol=10.0, atol=10.0, preconditioner="start"),
    "fixed_point": s.Adjoint(rtol=10.0, atol=10.0),
    "ode": s.Adjoint(rtol=10.0, atol=10.0, method="backsolve"),
    "integral": s.Adjoint(rtol=10.0, atol=10.0),
}
PEAK = truth_cases.case(
    "peak", truth_cases.integral(lambda x, p: p["e"] / (p["e"] ** 2 + x**2), -1.0, 1.0),
    lambda p: 2 * jnp.arctan(1 / p["e"]), e=0.01,
)  # fmt: skip


def point(kind):
    return PROBLEMS[kind].init(None)


def checked(kind, strategy):
    problem = PROBLEMS[kind]
    return judge(strategy_gradient(problem, point(kind), None, None, strategy), Referee(problem)(point(kind)))


@pytest.mark.parametrize("kind", PROBLEMS)
@pytest.mark.parametrize("strategy", SOUND, ids=lambda x: type(x).__name__)
def test_sound_strategies_are_trusted(kind, strategy, float64):
    assert checked(kind, strategy).trusted(TIGHT)


@pytest.mark.parametrize("kind", PROBLEMS)
@pytest.mark.parametrize("fault", FAULTS)
def test_planted_faults_are_flagged(kind, fault, float64):
    if fault == "boundary" and kind in ("root", "fixed_point"):
        assert "boundary" not in kind  # neither has a boundary term: the derivative is local at the solution
        return
    check = checked(kind, Faulty(s.Implicit() if kind != "integral" else s.Adjoint(), fault))
    assert not check.trusted(TOLERANCE)
    assert check.worst["relative_error"] > 0.9 * FAULTS[fault]
    assert check.resolved


@pytest.mark.parametrize("kind", PROBLEMS)
def test_loose_backward_tolerance_is_flagged(kind, float64):
    problem = PEAK if kind == "integral" else PROBLEMS[kind]
    params = problem.init(None)
    reference = Referee(problem)(params)
    assert not judge(strategy_gradient(problem, params, None, None, LOOSE[kind]), reference).trusted(TIGHT)


def reference_of(gradient, uncertainty=1e-12):
    vector = flat(gradient)
    size = float(np.linalg.norm(vector))
    component = jax.tree.map(lambda x: np.full(np.shape(x), uncertainty), gradient)
    return Reference(
        gradient, uncertainty / size if size else np.inf, uncertainty, "closed form", 0.0, 0.0, None, component
    )


def test_zero_gradient_has_no_relative_error():
    check = judge({"a": np.array(1e-9)}, reference_of({"a": np.array(0.0)}))
    assert check.relative_error is None
    assert check.absolute_error == 1e-9
    assert "zero within its uncertainty" in check.remark
    assert not check.trusted(1e-10)
    assert check.trusted(1e-8)


def test_a_wrong_small_leaf_is_seen():
    truth = {"large": np.full(3, 1e4), "small": np.array([1.0, 2.0])}
    check = judge({"large": np.full(3, 1e4), "small": np.array([1.0, -2.0])}, reference_of(truth))
    assert check.relative_error < TOLERANCE
    assert not check.trusted(TOLERANCE)
    assert check.worst == {"leaf": "small", "index": [1], "relative_error": pytest.approx(2.0, rel=1e-6)}


def test_noise_below_the_uncertainty_condemns_nothing():
    truth = {"a": np.array([1.0, 0.0])}
    check = judge({"a": np.array([1.0, 5e-5])}, reference_of(truth, 1e-4))
    assert check.worst["relative_error"] == 0
    assert not check.resolved
    assert format_error(check.relative_error, check.uncertainty) == "< 2e-04"


def test_a_gradient_that_is_not_finite_is_never_trusted():
    check = judge({"a": np.array([1.0, np.nan])}, reference_of({"a": np.array([1.0, 2.0])}))
    assert not check.trusted(1.0)
    assert check.as_dict()["relative_error"] is None
    assert check.as_dict()["value"] == [1.0, None]
    assert "not finite" in check.remark


@pytest.mark.parametrize(
    ("error", "uncertainty", "text"),
    [
        (0.0, 3e-12, "< 3e-12"),
        (2e-12, 3e-12, "< 5e-12"),
        (2.43e-7, 1.2e-12, "2.4e-07 ± 2e-12"),
        (9.96e-13, 1e-12, "< 2e-12"),
        (None, 1e-12, "-"),
        (float("nan"), 1e-12, "not finite"),
    ],
)
def test_errors_in_words(error, uncertainty, text):
    assert format_error(error, uncertainty) == text


def test_program_and_problem_are_told_apart(float64):
    """At its equilibrium, backpropagation is exact for the program and wrong for the problem; the adjoint is right."""
    problem = Equilibrium()
    params = problem.init(None)
    reference, program = Referee(problem)(params), program_gradient(problem, params)
    unrolled, adjoint = (
        judge(strategy_gradient(problem, params, None, None, g), reference, program) for g in (s.Unroll(), s.Adjoint())
    )
    assert unrolled.relative_error > 100
    assert unrolled.program_error < 1e-12
    assert adjoint.trusted(TOLERANCE)
    assert adjoint.program_error > 0.5


@pytest.mark.slow
def test_many_parameters_are_checked_along_directions():
    problem = Digits(width=4, batch_size=4, layer="residual")
    params, batch = problem.init(jax.random.key(0)), problem.batch(jax.random.key(1))
    value = strategy_gradient(problem, params, batch, None, s.Forward())
    assert isinstance(value, Directional)
    assert value.directions.shape[0] == 8
    truth = strategy_gradient(problem, params, batch, None, s.Unroll())
    reference = reference_of(jax.tree.map(lambda x: np.asarray(x, np.float64), truth), 1e-9)
    check = judge(value, reference, program_gradient(problem, params, batch))
    assert check.relative_error < 1e-4  # float32
    assert "directional: 8" in check.remark
    assert "program error: directional" in check.remark
    wrong = Directional(value.directions, -value.derivatives, value.eps)
    assert not judge(wrong, reference).trusted(TOLERANCE)


@pytest.mark.parametrize("kind", ["root", *(pytest.param(k, marks=pytest.mark.slow) for k in PROBLEMS if k != "root")])
def test_witnesses_agree(kind, float64):
    problem, params = PROBLEMS[kind], point(kind)
    exact = flat(truth_cases.exact_gradient(problem))
    for witness in (forward_gradient(problem, params), difference_gradient(problem, params, step=1e-3)):
        assert np.linalg.norm(witness.derivatives - exact) < 10 * WITNESS * np.linalg.norm(exact)
    assert dot_product_test(problem, params, gradient=s.Implicit()) < WITNESS


@jax.custom_vjp
def backwards_only(y):
    return y**2


backwards_only.defvjp(lambda y: (y**2, y), lambda y, c: (2 * y * c,))


def on_the_host(y):
    return jax.pure_callback(np.square, jax.ShapeDtypeStruct(y.shape, y.dtype), y)


def raising(error):
    """The square, with a forward rule of one's own that is wrong."""
    square = jax.custom_jvp(lambda y: y**2)

    @square.defjvp
    def rule(primals, tangents):
        raise error("in a rule of one's own")

    return square


def squared(outcome):
    return truth_cases.case("square", truth_cases.root(lambda y, p: y - p["a"], 1.0), lambda p: p["a"], outcome, a=1.5)


@pytest.mark.parametrize("outcome", [backwards_only, on_the_host])
def test_a_loss_that_has_no_forward_mode_has_no_program_gradient(outcome):
    problem = squared(outcome)
    assert program_gradient(problem, problem.init(None)) is None


@pytest.mark.parametrize("error", [TypeError, ValueError])
def test_what_is_wrong_in_a_loss_in_forward_mode_is_raised(error):
    problem = squared(raising(error))
    with pytest.raises(error, match="in a rule of one's own"):
        program_gradient(problem, problem.init(None))


def test_report_reads_and_has_everything():
    problem = PROBLEMS["root"]
    report = check_gradient(problem, point("root"), gradient=s.FiniteDifference())
    text = str(report)
    assert "relative error" in text
    assert "closed form" in text
    assert "solver steps" in text
    assert "at half the step" in report.check.remark
    assert set(report.check.as_dict()) >= {
        "value", "norm", "absolute_error", "relative_error", "cosine", "program_error", "uncertainty", "resolved",
        "worst",
    }  # fmt: skip
    assert report.cost.solver_steps > 0
    assert report.cost.memory_bytes is not None
    assert report.check.trusted(1e-2)


def test_no_reference_is_null_with_the_reason():
    none = Reference(None, np.inf, np.inf, "none", np.nan, 0.0, "the reason")
    check = judge({"a": np.array(1.0)}, none)
    assert check.relative_error is None
    assert check.uncertainty is None
    assert "no reference: the reason" in check.remark
    assert not check.trusted(1e9)
    assert check.as_dict()["worst"]["relative_error"] is None


def test_cost_of_a_small_solve():
    cost = measure_cost(PROBLEMS["root"], point("root"), max_seconds=0.05)
    assert cost.gradient_ms > 0
    assert cost.forward_ms > 0
    assert cost.compile_s > 0


def test_reference_without_its_closed_form_condemns_the_same_fault(float64):
    problem = PROBLEMS["root"]
    reference = Referee(withheld(problem), None, ReferenceSettings(target=1e-9))(point("root"))
    value = strategy_gradient(problem, point("root"), None, None, Faulty(s.Implicit(), "scale"))
    assert judge(value, reference).relative_error == pytest.approx(0.01, rel=1e-6)
