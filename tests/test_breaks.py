"""`Integral(..., breaks=fn)`: integrands that jump where the parameters say, against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import truth_cases

from implicitexp import solvers
from implicitexp.accuracy import judge
from implicitexp.equations import Integral
from implicitexp.reference import Referee
from implicitexp.solving import solve
from implicitexp.strategies import Adjoint, FiniteDifference, Forward, Implicit, Unroll
from implicitexp.truth.witnesses import strategy_gradient

EXACT = 1e-11  # of the gradient's norm: polynomials, which the rules integrate to rounding, and 1/margin of the ends
STEP = 1e-4  # of central differences
DIFFERENCES = 1e-7  # STEP^2 times a third derivative of size 10, and the value's rounding over STEP
SINGLE = 2e-5  # float32: a hundred roundings
STRATEGIES = {
    "implicit": Implicit(),
    "adjoint": Adjoint(),
    "unroll": Unroll(),
    "forward": Forward(),
    "finite_difference": FiniteDifference(step=STEP),
}


def integrand(x, p):
    """Jumps at c s and at d."""
    return jnp.where(x < p["c"] * p["s"], p["a"] * x, jnp.where(x < p["d"], p["k"], p["a"] * x**2))


def places(p):
    return jnp.stack([p["d"], p["c"] * p["s"]])  # not sorted, if both are inside


def exact(p):
    lower, upper = jnp.minimum(p["l"], p["u"]), jnp.maximum(p["l"], p["u"])
    first, second = jnp.clip(p["c"] * p["s"], lower, upper), jnp.clip(p["d"], lower, upper)
    parts = p["a"] * (first**2 - lower**2) / 2, p["k"] * (second - first), p["a"] * (upper**3 - second**3) / 3
    return jnp.where(p["l"] > p["u"], -1, 1) * sum(parts)


QUICK = solvers.GaussLegendre(nodes=4)  # exact for these polynomials, and compiled in no time


def value(p, strategy=None, breaks=places, solver=QUICK):
    return solve(Integral(integrand, p["l"], p["u"], breaks), p, gradient=strategy, solver=solver).value


def at(c=0.5, s=0.6, d=1.1, l=-0.4, u=1.7):  # noqa: E741
    return {"a": 0.7, "k": 2.0, "c": c, "s": s, "d": d, "l": l, "u": u}


PLACES = {
    "two": at(),
    "one, the other above": at(d=2.5),
    "one, the other below": at(c=-0.5, s=2.0),
    "none inside": at(c=-1.0, s=3.0, d=2.5),
    "reversed": at(l=1.7, u=-0.4),
}


def gap(got, want):
    """Of the gradients' difference, relative to the norm."""
    got, want = (np.array(jax.tree.leaves(x), float) for x in (got, want))
    return np.linalg.norm(got - want) / np.linalg.norm(want)


def arrays(p):
    return jax.tree.map(jnp.asarray, p)


def gradients(p, strategy, **options):
    return jax.jit(jax.value_and_grad(lambda p: value(p, strategy, **options)))(arrays(p))


# A rule without error control in all places, one that adapts its mesh in two; most of them with the slow tests.
TABLE = [
    (n, p, s) if s == "QUICK" and (p == "two" or n == "implicit") else pytest.param(n, p, s, marks=pytest.mark.slow)
    for s, where in (("QUICK", PLACES), ("GaussKronrod", ("two", "none inside")))
    for n in STRATEGIES
    for p in where
]


@pytest.mark.parametrize(("name", "place", "solver"), TABLE)
def test_every_strategy_has_the_jumps_term(name, place, solver, float64):
    chosen = QUICK if solver == "QUICK" else solvers.GaussKronrod()
    got, gradient = gradients(PLACES[place], STRATEGIES[name], solver=chosen)
    p = arrays(PLACES[place])
    assert got == pytest.approx(float(exact(p)), rel=EXACT)
    assert gap(gradient, jax.grad(exact)(p)) < (DIFFERENCES if name == "finite_difference" else EXACT)


SOLVERS = {
    "Clenshaw-Curtis": solvers.ClenshawCurtis(),
    "tanh-sinh": solvers.TanhSinh(),
    "Romberg": solvers.Romberg(),
}
TO_TOLERANCE = 1e-7  # ten times that of the solvers


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solver", "name"), [*((solver, "implicit") for solver in SOLVERS), ("Clenshaw-Curtis", "adjoint")]
)
def test_every_rule_has_it(solver, name, float64):
    got, gradient = gradients(PLACES["two"], STRATEGIES[name], solver=SOLVERS[solver])
    p = arrays(PLACES["two"])
    assert got == pytest.approx(float(exact(p)), rel=TO_TOLERANCE)
    assert gap(gradient, jax.grad(exact)(p)) < TO_TOLERANCE


def test_float32():
    gradient = gradients(PLACES["two"], Implicit())[1]
    assert gap(gradient, jax.grad(exact)(arrays(PLACES["two"]))) < SINGLE


@pytest.mark.slow
@pytest.mark.parametrize("name", ["implicit", "adjoint"])
def test_lanes_with_two_one_and_no_break(name, float64):
    """The number of breaks inside differs from lane to lane; none of them is NaN for it."""
    c = jnp.array([0.5, 1.5, -1.0])

    def derivative(f):
        return jax.jit(jax.vmap(jax.grad(lambda c: f(arrays(at()) | {"c": c}))))(c)

    got, want = derivative(lambda p: value(p, STRATEGIES[name], solver=solvers.GaussKronrod())), derivative(exact)
    assert list(want != 0) == [True, True, False]
    np.testing.assert_allclose(got, want, atol=EXACT)


def test_a_break_at_a_limit_is_outside(float64):
    p = at(c=-0.5, s=0.8)  # c s is the lower limit
    got = gradients(p, Implicit())[1]
    inner = jax.grad(exact)(arrays(p | {"c": -4.0}))  # from inside, the integrand is what it is without that jump
    assert got["c"] == got["s"] == 0
    for name in ("a", "k", "d", "l", "u"):
        assert got[name] == pytest.approx(float(inner[name]), rel=EXACT)


def test_no_breaks_returned(float64):
    p = PLACES["none inside"]
    gradient = gradients(p, Implicit(), breaks=lambda p: jnp.zeros(0))[1]
    assert gap(gradient, jax.grad(exact)(arrays(p))) < EXACT


def test_a_break_that_closes_over_its_parameter(float64):
    def of(c):
        equation = Integral(lambda x, _: jnp.where(x < c, 1.0, 3.0), 0.0, 1.0, lambda _: c[None])
        return solve(equation, None, solver=QUICK).value

    assert jax.jit(jax.grad(of))(0.3) == pytest.approx(-2.0, rel=EXACT)


@pytest.mark.slow
def test_infinite_limits(float64):
    """exp(-a x) below c, twice that above: dI/dc = -exp(-a c)."""

    def of(p, strategy):
        equation = Integral(
            lambda x, p: jnp.where(x < p[1], 1.0, 2.0) * jnp.exp(-p[0] * x), 0.0, jnp.inf, lambda p: p[1:]
        )
        return solve(equation, p, gradient=strategy).value

    p = jnp.array([1.3, 0.6])
    want = jax.grad(lambda p: (1 + jnp.exp(-p[0] * p[1])) / p[0])(p)
    for strategy in (Implicit(), Adjoint()):
        np.testing.assert_allclose(jax.grad(of)(p, strategy), want, rtol=TO_TOLERANCE)


@pytest.mark.slow
@pytest.mark.parametrize("side", [jnp.less, jnp.less_equal], ids=["<", "<="])
def test_no_node_stands_on_the_wrong_side(side, float64):
    """Clenshaw-Curtis has nodes at both ends of each piece; each is exact in one go, whichever side the break belongs to."""
    equation = Integral(lambda x, c: jnp.where(side(x, c), 1.0, 3.0), 0.0, 1.0, lambda c: c[None])
    solved = solve(equation, jnp.array(0.3), solver=solvers.ClenshawCurtis())
    assert solved.value == pytest.approx(2.4, rel=1e-14)
    assert solved.stats["steps"] == 2


@pytest.mark.slow
def test_second_derivatives(float64):
    """d2/dc2 of the integral with jump g(c-) - g(c+) = a c s - k."""
    p = arrays(PLACES["two"])
    got = jax.jit(jax.hessian(lambda p: value(p, Implicit())))(p)
    want = jax.hessian(exact)(p)
    np.testing.assert_allclose(jax.tree.leaves(got), jax.tree.leaves(want), atol=1e-9)


@pytest.mark.slow
def test_a_limit_that_moves_beside_a_jump_at_rest(float64):
    """1 below 0.3, 3 from there to u = 1. Unmarked, the nodes move with u across the jump: the integral over u, 2.4, is what
    differentiating the sum gives, and the integrand at u, 3, what is right."""

    def of(u, strategy, breaks):
        equation = Integral(lambda x, _: jnp.where(x < 0.3, 1.0, 3.0), 0.0, u, breaks)
        return solve(equation, None, gradient=strategy).value

    def slope(strategy, breaks):
        return float(jax.grad(of)(jnp.array(1.0), STRATEGIES[strategy], breaks))

    assert slope("implicit", None) == pytest.approx(2.4, rel=1e-6)
    assert slope("adjoint", None) == pytest.approx(3.0, rel=EXACT)
    assert slope("implicit", lambda _: jnp.array([0.3])) == pytest.approx(3.0, rel=EXACT)


# -- the ground truth -------------------------------------------------------------------------------------------------


def problem(breaks):
    def equation(p):
        return Integral(integrand, p["l"], p["u"], breaks), p

    return truth_cases.case("jump", equation, exact, **PLACES["two"])


@pytest.mark.slow
def test_the_two_computations_know_the_breaks(float64):
    case = truth_cases.withheld(problem(places))
    params = case.init(None)
    reference = Referee(case)(params)
    assert "SciPy" in reference.how
    assert gap(reference.gradient, jax.grad(exact)(params)) < 1e-9


@pytest.mark.slow
@pytest.mark.parametrize("name", ["implicit", "adjoint"])
def test_a_missing_break_is_flagged(name, float64):
    """The value is right, the gradient lacks the jump's term, and the closed form says so."""
    case, solver = problem(None), solvers.GaussKronrod(max_steps=200)
    params = case.init(None)
    assert value(params, breaks=None, solver=solver) == pytest.approx(float(exact(params)), rel=1e-6)
    check = judge(strategy_gradient(case, params, None, solver, STRATEGIES[name]), Referee(case)(params))
    assert not check.trusted(1e-2)


@pytest.mark.slow
def test_two_jumps_that_are_not_marked_do_not_converge(float64):
    """In the 50 intervals that there are by default: NaN, and no number that looks like one."""
    assert jnp.isnan(value(arrays(PLACES["two"]), breaks=None, solver=solvers.GaussKronrod()))
