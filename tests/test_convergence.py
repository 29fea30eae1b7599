"""A solve that does not converge is NaN in its own lane, counted by the tap, and changes nothing beside it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicitexp import solvers
from implicitexp.adjoints.implicit.linear import LinearSolve
from implicitexp.equations import ODE, FixedPoint, Integral, Root
from implicitexp.solving import solve, zero_tap
from implicitexp.strategies import Adjoint, FiniteDifference, Forward, Implicit, Unroll

ROUND_OFF = 1e-12  # float64, the same operations in another order

STRATEGIES = [Unroll(), Implicit(), Adjoint(), Forward(), FiniteDifference()]


class Fault(NamedTuple):
    """An equation of one parameter that has a solution at `good` and none at `bad`."""

    name: str
    equation: Any
    good: float
    bad: float
    solver: Any = None

    def __str__(self):
        return self.name


FAULTS = [
    Fault("root that does not exist", lambda a: Root(lambda y, a: y**2 - a, 1.0), 2.0, -1.0),
    Fault("diverging fixed point", lambda a: FixedPoint(lambda y, a: a * y + 1.0, 0.5), 0.5, 3.0, solvers.Picard()),
    Fault("fixed point that does not exist", lambda a: FixedPoint(lambda y, a: y**2 + a, 0.0), 0.1, 0.5),
    Fault(
        "ODE that blows up",
        lambda a: ODE(lambda t, y, a: a * y**2, 1.0, 0.0, 1.0),
        0.5,
        2.0,
        solvers.Tsit5(max_steps=200),
    ),
    Fault("divergent integral", lambda a: Integral(lambda x, a: x**a, 0.0, 1.0), 0.5, -2.0),
]
OF_A_SOLVER = [  # once each, with the cheapest strategy
    Fault("no root", lambda a: Root(lambda y, a: y**2 - a, 1.0), 2.0, -1.0, solvers.Chord()),
    Fault("no root", lambda a: Root(lambda y, a: y**2 - a, 1.0), 2.0, -1.0, solvers.LevenbergMarquardt()),
    Fault("no root", lambda a: Root(lambda y, a: y**2 - a, 1.0, (0.0, 3.0)), 2.0, -1.0, solvers.Bisection()),
    Fault("no root between", lambda a: Root(lambda y, a: y**2 - a, 1.0, (0.0, 3.0)), 2.0, 16.0, solvers.Bisection()),
    Fault("diverging", lambda a: FixedPoint(lambda y, a: a * y + 1.0, 0.5), -1.5, 1.5, solvers.Picard(damping=0.5)),
    Fault("no fixed point", lambda a: FixedPoint(lambda y, a: y**2 + a, 0.0), 0.1, 0.5, solvers.NewtonFixedPoint()),
    *(
        Fault("blows up", lambda a: ODE(lambda t, y, a: a * y**2, 1.0, 0.0, 1.0), 0.5, 2.0, solver)
        for solver in (
            solvers.Heun(rtol=1e-5, atol=1e-5, max_steps=500),
            solvers.Midpoint(rtol=1e-5, atol=1e-5, max_steps=500),
            solvers.Dopri5(max_steps=200),
            solvers.Kvaerno3(rtol=1e-5, atol=1e-5, max_steps=500),
            solvers.ImplicitEuler(rtol=1e-3, atol=1e-3, max_steps=500),
        )
    ),
    *(
        Fault("pole", lambda a: Integral(lambda x, a: 1 / (x - a) ** 2, 0.0, 1.0), 2.0, 0.3, solver)
        for solver in (solvers.ClenshawCurtis(), solvers.Romberg(max_steps=4096))
    ),
    Fault("NaN", lambda a: Integral(lambda x, a: jnp.sqrt(a - x), 0.0, 1.0), 2.0, 0.3, solvers.GaussLegendre()),
]
FAST = {
    "root that does not exist": STRATEGIES,
    "diverging fixed point": STRATEGIES[1:3],
    "ODE that blows up": STRATEGIES[2:3],
}
CASES = [
    pytest.param(f, s, marks=[] if s in FAST.get(f.name, []) else [pytest.mark.slow], id=f"{f}-{s}")
    for f in FAULTS
    for s in STRATEGIES
] + [pytest.param(f, Implicit(), marks=pytest.mark.slow, id=f"{f}-{type(f.solver).__name__}") for f in OF_A_SOLVER]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("fault", "strategy"), CASES)
def test_only_the_lane_that_fails(fault, strategy):
    """Forward: value and gradient of that lane are NaN, under jit and vmap; the other lanes' are as without it."""

    @jax.jit
    def run(a, tap):
        def total(a, tap):
            def one(a):
                return solve(fault.equation(a), a, solver=fault.solver, gradient=strategy, tap=tap).value

            value = jax.vmap(one)(a)
            return jnp.sum(value), value

        return jax.value_and_grad(total, (0, 1), has_aux=True)(a, tap)

    (_, together), (gradient, tap) = run(jnp.array([fault.good, fault.bad, fault.good]), zero_tap())
    (_, alone), (expected, _) = run(jnp.array([fault.good, fault.good, fault.good]), zero_tap())
    assert np.isnan(together[1])
    assert np.isnan(gradient[1])
    assert np.all(np.isfinite(alone))
    beside = np.array([0, 2])
    np.testing.assert_allclose(together[beside], alone[beside], rtol=ROUND_OFF)
    np.testing.assert_allclose(gradient[beside], expected[beside], rtol=ROUND_OFF)
    assert tap["solves"] == 3
    assert tap["unconverged"] == 1


def kept(c):
    """y1 = c y1: at c = 1 every y1 is a fixed point, so the solve converges and the derivative does not exist."""
    return FixedPoint(lambda y, args: jnp.stack([0.5 * y[0] + args, c * y[1] + args]), jnp.array([1.0, 1.0]))


SINGULAR = [
    Adjoint(max_steps=50),
    Forward(),
    *(Implicit(linear_solver=n) for n in ("lu", "qr", "cg", "gmres", "bicgstab", "normal_cg")),
]


@pytest.mark.parametrize("n", [1, 30])
@pytest.mark.parametrize("factor", [-0.5, 2.5])
def test_bicgstab_where_it_is_exact_at_once(precision, n, factor):
    """A a multiple of the identity, of either sign: Lineax's own gives NaN, or a breakdown in float32."""
    linear = LinearSolve("bicgstab")
    x, converged, _, residual = linear(lambda v: factor * v, jnp.arange(1.0, n + 1))
    assert converged
    assert residual < 1e-5
    np.testing.assert_allclose(x, np.arange(1.0, n + 1) / factor, rtol=1e-5)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("strategy", SINGULAR, ids=str)
def test_singular_jacobian(strategy):
    """Backward: the value stands, the gradient of that lane alone is NaN, and the tap says so."""

    def one(a, c, tap):
        return jnp.sum(solve(kept(c), a, gradient=strategy, solver=solvers.Picard(), tap=tap).value)

    def total(a, tap):
        value = jax.vmap(lambda a, c: one(a, c, tap))(a, jnp.array([0.25, 1.0, 0.25]))
        return jnp.sum(value), value

    gradient, tap = jax.jit(jax.grad(total, (0, 1), has_aux=True))(jnp.zeros(3), zero_tap())[0]
    assert np.isnan(gradient[1])
    np.testing.assert_allclose(np.asarray(gradient)[[0, 2]], 2 + 4 / 3, rtol=1e-8)  # to the iteration's tolerance
    assert tap["unconverged"] == 0
    assert tap["adjoint_unconverged"] == 1


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("solver", "strategy"),
    [
        (solvers.Newton(), Unroll()),
        pytest.param(solvers.Newton(), Unroll(last=2), marks=pytest.mark.slow),
        pytest.param(solvers.Chord(max_steps=1000), Unroll(), marks=pytest.mark.slow),
        pytest.param(solvers.LevenbergMarquardt(), Unroll(), marks=pytest.mark.slow),
        pytest.param(solvers.Dogleg(), Unroll(), marks=pytest.mark.slow),
        pytest.param(solvers.Dogleg(), Implicit(), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_step_that_is_singular_ends_no_program(solver, strategy):
    """y1 y2 = a, y1 = y2 from (0, 0), where the Jacobian has rank one and the dogleg method a stationary point; and
    log y = a from a start that has no logarithm. Lineax raises when such a step is differentiated."""

    def one(start, a, tap):
        pair = Root(lambda y, a: jnp.stack([y[0] * y[1] - a, y[0] - y[1]]), jnp.stack([start, start]))
        log = Root(lambda y, a: jnp.log(y) - a, jnp.where(start == 0, -1.0, 1.0))
        keywords = {"solver": solver, "gradient": strategy, "tap": tap}
        return solve(pair, a, **keywords).value[0], solve(log, a, **keywords).value

    def total(a, tap):
        values = jax.vmap(lambda start, a: one(start, a, tap))(jnp.array([1.0, 0.0, 1.0]), a)
        return jnp.sum(values[0]) + jnp.sum(values[1]), values

    a = np.array([2.0, 2.0, 3.0])
    (_, (pair, log)), (gradient, tap) = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(a, zero_tap())
    leaves_the_start = isinstance(solver, solvers.Newton)
    if isinstance(
        solver, solvers.LevenbergMarquardt
    ):  # rounding decides whether it does: either is right, garbage is not
        leaves_the_start = bool(np.isfinite(pair[1]))
    expected = np.where([True, leaves_the_start, True], np.sqrt(a), np.nan)
    np.testing.assert_allclose(pair, expected, rtol=1e-6)
    np.testing.assert_allclose(log, [np.exp(2), np.nan, np.exp(3)], rtol=1e-6)
    np.testing.assert_allclose(
        gradient, [0.5 / np.sqrt(2) + np.exp(2), np.nan, 0.5 / np.sqrt(3) + np.exp(3)], rtol=1e-5
    )
    assert tap["unconverged"] == 1 + (not leaves_the_start)


DECAY = ODE(lambda t, y, a: a * y, 1.0, 0.0, 1.0)
PEAK = Integral(lambda x, a: a / (x**2 + 1e-4), -1.0, 1.0)
SKEWED = Root(lambda y, a: jnp.stack([3 * y[0] + y[1], y[1] - 2 * y[0]]) - a, np.ones(2))
BACKWARD = [
    pytest.param(DECAY, Adjoint(max_steps=2), id="ode-gauss"),
    pytest.param(DECAY, Adjoint(method="backsolve", max_steps=2), id="ode-backsolve"),
    pytest.param(PEAK, Adjoint(max_steps=2), id="integral", marks=pytest.mark.slow),
    pytest.param(SKEWED, Adjoint(preconditioner="identity", max_steps=2), id="root"),
]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("equation", "strategy"), BACKWARD)
def test_backward_solve_that_ends_early(equation, strategy):
    gradient, tap = jax.jit(
        jax.grad(lambda a, tap: jnp.sum(solve(equation, a, gradient=strategy, tap=tap).value), (0, 1))
    )(jnp.array(0.5), zero_tap())
    assert np.isnan(gradient)
    assert tap["unconverged"] == 0
    assert tap["adjoint_unconverged"] == 1


def test_scan_and_several_calls_add_up(float64):
    """Three passes of a scan with two solves each; the second pass's root does not exist."""

    def loss(a, tap):
        def step(total, a):
            y = solve(Root(lambda y, a: y**2 - a, 1.0), a, tap=tap).value
            z = solve(FixedPoint(lambda z, a: 0.5 * z + a, 0.0), a, tap=tap).value
            return total + z, y

        total, ys = jax.lax.scan(step, 0.0, a)
        return total + jnp.sum(ys), ys

    (gradient, tap), ys = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(jnp.array([1.0, -1.0, 4.0]), zero_tap())
    assert np.isnan(ys[1])
    np.testing.assert_allclose(np.asarray(ys)[[0, 2]], [1.0, 2.0], rtol=ROUND_OFF)
    assert np.isnan(gradient[1])
    np.testing.assert_allclose(np.asarray(gradient)[[0, 2]], [2.5, 2.25], rtol=1e-9)
    assert (tap["solves"], tap["unconverged"]) == (6, 1)


def test_statistics_of_a_solution(float64):
    """`converged` and `steps` are per lane, and need no tap."""
    equation = Root(lambda y, a: y**2 - a, 1.0)
    stats = jax.vmap(lambda a: solve(equation, a).stats)(jnp.array([4.0, -4.0]))
    assert stats["converged"].tolist() == [True, False]
    assert stats["steps"].dtype == jnp.int32
    assert 3 <= stats["steps"][0] < 10
    assert stats["steps"][1] == solvers.Newton().max_steps


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("a", "fails"), [(0.7, True), (1.7, False)])
@pytest.mark.parametrize("strategy", [Implicit(), pytest.param(Adjoint(), marks=pytest.mark.slow)], ids=str)
def test_a_root_that_fails_inside_an_integral_is_no_zero(strategy, a, fails):
    """Quadax replaces NaN by zero: the integral of sqrt(a - x) over [0, 1] would be one over [0, a], and converged."""

    def integrand(x, a):
        return solve(Root(lambda y, p: y**2 + p, 1.0), x - a).value

    def total(a, tap):
        return solve(Integral(integrand, 0.0, 1.0), a, gradient=strategy, tap=tap).value

    value, (gradient, tap) = jax.jit(jax.value_and_grad(total, (0, 1)))(jnp.array(a), zero_tap())
    assert tap["unconverged"] == fails
    if fails:
        assert np.isnan(value)
        assert np.isnan(gradient)
    else:
        np.testing.assert_allclose(value, 2 / 3 * (a**1.5 - (a - 1) ** 1.5), rtol=1e-8)
        np.testing.assert_allclose(gradient, a**0.5 - (a - 1) ** 0.5, rtol=1e-8)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("strategy", [Implicit(), Adjoint()], ids=str)
def test_infinite_limits(strategy):
    """The derivative's integrand is inf * 0 far out, which is harmless: the weight of Gauss is one over the line."""

    def total(a):
        return solve(Integral(lambda x, a: jnp.exp(-a * x**2), -jnp.inf, jnp.inf), a, gradient=strategy).value

    value, gradient = jax.jit(jax.value_and_grad(total))(jnp.array(1.3))
    np.testing.assert_allclose(value, np.sqrt(np.pi / 1.3), rtol=1e-8)
    np.testing.assert_allclose(gradient, -np.sqrt(np.pi / 1.3**3) / 2, rtol=1e-8)
