"""Every cell of the table of strategies against a closed form; then every solver, in both precisions (slow).

Each row is differentiated by all that can be differentiated at once: args, an array leaf that the function holds, a
value it closes over, y0, t0, t1, limits. A strategy that dropped one of them would fail the row.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from strategy_cases import BRACKETED, CASES, PAIR, Case

from implicitexp import solvers
from implicitexp.equations import ODE, FixedPoint, Integral, Root
from implicitexp.solving import solve, zero_tap
from implicitexp.strategies import Adjoint, FiniteDifference, Forward, Implicit, PerKind, ProgramTangent, Unroll
from implicitexp.strategies.approximate import Reuse, Shine
from implicitexp.strategies.over_steps import Interpolating, Replay, Reversible

# Relative errors in float64 with default tolerances (1e-8).
SOLVED = 1e-9  # Newton ends far below the tolerance; a quadrature rule too on a smooth integrand
ITERATED = 1e-8  # the tolerance: a fixed point iteration ends as soon as its step is below it
STEPPED = 2e-7  # an ODE: the steps' errors add up
TRUNCATED = 1e-6  # the last iterations only: what the first ones would add has contracted away
DIFFERENCED = 1e-4  # step^2 = (1e-8)^(2/3) times third derivatives
SINGLE = 2e-3  # float32 with tolerance 1e-5, over ten steps
SINGLE_DIFFERENCED = 3e-2  # float32: the noise 1e-5 over the step 1e-5^(1/3)

STRATEGIES = [Unroll(), Implicit(), Adjoint(), Forward(), FiniteDifference()]
VARIANTS = [
    ("root", Unroll(checkpoints=3)),
    ("root", Unroll(last=3)),
    ("root", Adjoint(preconditioner="start")),
    ("root", Implicit(linear_solver="qr")),
    ("root", Implicit(linear_solver="gmres")),
    ("root", Implicit(linear_solver="bicgstab")),
    ("root", Implicit(linear_solver="normal_cg")),
    ("fixed_point", Unroll(last=5)),
    ("fixed_point", Adjoint(rtol=1e-12, atol=1e-12, max_steps=50)),
    ("ode", Unroll(checkpoints=3)),
    ("ode", Adjoint(method="backsolve")),
    ("ode", PerKind(ode=Adjoint(rtol=1e-9, atol=1e-9))),
    ("ode", ProgramTangent()),
    ("integral", ProgramTangent()),
    ("ode", Replay()),
    ("ode", Replay(store="stages")),
    ("ode", Reversible()),
    ("ode", Interpolating()),
    ("root", Reuse()),
    ("root", Shine()),
    ("fixed_point", Reuse()),
    ("fixed_point", Shine(refine=3)),
]
LANES = np.array([1.0, 1.1])


def tolerance(kind, strategy, precision="float64") -> float:
    if isinstance(strategy, FiniteDifference):
        return DIFFERENCED if precision == "float64" else SINGLE_DIFFERENCED
    if precision == "float32":
        return SINGLE
    if isinstance(strategy, Unroll) and strategy.last:
        return TRUNCATED
    return {"ode": STEPPED, "fixed_point": ITERATED}.get(kind, SOLVED)


def number(value):
    """A loss in which every leaf of a value counts, nonlinearly."""
    return sum(jnp.sum(jnp.sin(x + i)) for i, x in enumerate(jax.tree.leaves(value)))


def numbers(params, lanes=None):
    """The parameters as arrays of the process's precision, with a leading axis of lanes if given."""
    if lanes is None:
        return jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(float)), params)
    return jax.tree.map(lambda x: jnp.asarray(np.multiply.outer(lanes, x), jnp.result_type(float)), params)


def loss(case: Case, strategy, p, tap=None, solver=None):
    equation, args = case.equation(p)
    return number(solve(equation, args, gradient=strategy, tap=tap, solver=solver).value)


def exact_loss(case: Case, p):
    return number(case.exact(p))


def error(gradient, exact) -> float:
    """The largest relative error over leaves, each in its own norm: no leaf hides behind a larger one."""
    pairs = zip(jax.tree.leaves(gradient), jax.tree.leaves(exact), strict=True)
    return max(float(np.linalg.norm(np.asarray(a) - np.asarray(b)) / np.linalg.norm(np.asarray(b))) for a, b in pairs)


def exact_batched_gradient(case, p):
    return jax.grad(lambda p: jnp.sum(jax.vmap(lambda p: exact_loss(case, p))(p)))(p)


def check_tap(tap, solves):
    assert tap["solves"] == tap["adjoint_solves"] == solves
    assert tap["steps"] >= solves
    assert tap["unconverged"] == tap["adjoint_unconverged"] == 0
    assert 0 <= tap["adjoint_residual"] < SOLVED**2


CELLS = [(kind, strategy) for kind in CASES for strategy in STRATEGIES]


@pytest.mark.parametrize(("kind", "strategy"), CELLS, ids=str)
def test_gradient_matches_closed_form(kind, strategy, float64):
    """The table: under jit, with the tap."""
    case = CASES[kind]
    p = numbers(case.params)
    gradient, tap = jax.jit(jax.grad(lambda p, tap: loss(case, strategy, p, tap), (0, 1)))(p, zero_tap())
    assert error(gradient, jax.grad(lambda p: exact_loss(case, p))(p)) < tolerance(kind, strategy)
    check_tap(tap, 1)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "strategy"), CELLS + VARIANTS, ids=str)
def test_gradient_of_a_vmap(kind, strategy, float64):
    """Two lanes differentiated together; the tap counts both."""
    case = CASES[kind]
    p = numbers(case.params, LANES)

    def total(p, tap):
        return jnp.sum(jax.vmap(lambda p: loss(case, strategy, p, tap))(p))

    gradient, tap = jax.jit(jax.grad(total, (0, 1)))(p, zero_tap())
    assert error(gradient, exact_batched_gradient(case, p)) < tolerance(kind, strategy)
    check_tap(tap, len(LANES))


@pytest.mark.parametrize("kind", CASES)
def test_closed_forms_are_right(kind, float64):
    """The table itself: the solver's value is the closed form's."""
    case = CASES[kind]
    p = numbers(case.params)
    equation, args = case.equation(p)
    value = solve(equation, args).value
    assert error(value, case.exact(p)) < STEPPED


@pytest.mark.slow
@pytest.mark.parametrize("kind", CASES)
def test_forward_mode_and_second_derivatives(kind, float64):
    """A tangent through the same rule, and the derivative of the gradient along it (forward over reverse)."""
    case, strategy = CASES[kind], Implicit()
    p = numbers(case.params)
    direction = jax.tree.map(jnp.ones_like, p)
    if kind == "ode":  # reverse mode through a Diffrax loop has no forward mode: the adjoint has
        strategy = Adjoint()
    _, tangent = jax.jvp(lambda p: loss(case, strategy, p), (p,), (direction,))
    _, exact = jax.jvp(lambda p: exact_loss(case, p), (p,), (direction,))
    assert error(tangent, exact) < STEPPED
    if kind in ("root", "fixed_point"):
        _, second = jax.jvp(jax.grad(lambda p: loss(case, strategy, p)), (p,), (direction,))
        _, exact = jax.jvp(jax.grad(lambda p: exact_loss(case, p)), (p,), (direction,))
        assert error(second, exact) < STEPPED


@pytest.mark.parametrize("kind", ["root", "fixed_point", pytest.param("ode", marks=pytest.mark.slow), "integral"])
def test_single_precision(kind):
    """The results stay float32, and are right to single precision."""
    case = CASES[kind]
    p = numbers(case.params)
    gradient = jax.jit(jax.grad(lambda p: loss(case, Adjoint(), p)))(p)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(gradient))
    assert error(gradient, jax.grad(lambda p: exact_loss(case, p))(p)) < SINGLE


# Those that stop a factor short of their tolerance's accuracy get a tighter one in float64.
TIGHT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
FIRST_ORDER = 1e-3  # the step, 1e-4 (or what a tolerance of 1e-8 makes of it), times what the derivatives add
SECOND_ORDER = 5e-6  # the square of the step, 1e-3, times the same
SOLVERS = [  # case, solver, and its bound in float64 where it is not the one of its kind
    (CASES["root"], solvers.Newton(), SOLVED),
    (CASES["root"], solvers.Dogleg(), STEPPED),
    (CASES["root"], solvers.Chord(**TIGHT), STEPPED),
    (CASES["root"], solvers.LevenbergMarquardt(), SOLVED),
    (BRACKETED, solvers.Bisection(**TIGHT), ITERATED),
    (CASES["fixed_point"], solvers.Picard(**TIGHT), STEPPED),
    (CASES["fixed_point"], solvers.Picard(damping=0.7, **TIGHT), STEPPED),
    (CASES["fixed_point"], solvers.Anderson(), ITERATED),
    (CASES["fixed_point"], solvers.NewtonFixedPoint(), SOLVED),
    (CASES["ode"], solvers.Euler(dt0=1e-4), FIRST_ORDER),
    (CASES["ode"], solvers.FixedStep(method="heun", dt0=1e-3), SECOND_ORDER),
    (CASES["ode"], solvers.Midpoint(), STEPPED),
    (CASES["ode"], solvers.Heun(), STEPPED),
    (CASES["ode"], solvers.Tsit5(), STEPPED),
    (CASES["ode"], solvers.Dopri5(), STEPPED),
    (CASES["ode"], solvers.Dopri8(), STEPPED),
    (CASES["ode"], solvers.ImplicitEuler(), FIRST_ORDER),
    (CASES["ode"], solvers.Kvaerno3(**TIGHT), STEPPED),
    (CASES["ode"], solvers.Kvaerno5(**TIGHT), STEPPED),
    (PAIR, solvers.Leapfrog(dt0=1e-3), SECOND_ORDER),
    (CASES["integral"], solvers.GaussKronrod(), SOLVED),
    (CASES["integral"], solvers.ClenshawCurtis(), SOLVED),
    (CASES["integral"], solvers.TanhSinh(), SOLVED),
    (CASES["integral"], solvers.Romberg(), SOLVED),
    (CASES["integral"], solvers.GaussLegendre(nodes=10, panels=2), SOLVED),
]
DEFAULTS = (solvers.Newton, solvers.Anderson, solvers.Tsit5, solvers.GaussKronrod)  # in the table above, in float64


def strategy_name(strategy) -> str:
    return {"Unroll": "unroll", "Adjoint": "adjoint"}.get(type(strategy).__name__, "")


MATRIX = [
    pytest.param(case, solver, strategy, precision, bound, id=f"{type(solver).__name__}{i}-{strategy}-{precision}")
    for i, (case, solver, bound) in enumerate(SOLVERS)
    for strategy in STRATEGIES
    for precision in ("float32", "float64")
    if (isinstance(strategy, Implicit) if precision == "float32" else not isinstance(solver, DEFAULTS))
    if strategy_name(strategy) not in solver.refuses  # those rows are in test_refusals.py
]
SINGLE_FIRST_ORDER = 1e-2  # float32: a few times the square root of the tolerance 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("case", "solver", "strategy", "precision", "bound"), MATRIX, indirect=["precision"])
def test_every_solver(case, solver, strategy, precision, bound):
    p = numbers(case.params)
    if precision == "float32":
        solver = dataclasses.replace(solver, **{name: None for name in TIGHT if hasattr(solver, name)})
        bound = SINGLE_FIRST_ORDER if isinstance(solver, solvers.ImplicitEuler) else SINGLE
    if isinstance(strategy, FiniteDifference):
        bound = max(bound, tolerance(case.kind, strategy, precision))
    gradient = jax.jit(jax.grad(lambda p: loss(case, strategy, p, solver=solver)))(p)
    assert error(gradient, jax.grad(lambda p: exact_loss(case, p))(p)) < bound


def test_every_solver_is_in_the_table():
    assert {type(solver) for _, solver, _ in SOLVERS} == set(solvers.SOLVERS)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [Unroll(), Implicit(), Adjoint()], ids=str)
@pytest.mark.parametrize("kind", CASES)
def test_vmap_of_gradient(kind, strategy, float64):
    """A lane at a time differentiated, where the table differentiates the lanes together."""
    case = CASES[kind]
    p = numbers(case.params, LANES)
    inside = jax.jit(jax.vmap(jax.grad(lambda p: loss(case, strategy, p))))(p)
    assert error(inside, exact_batched_gradient(case, p)) < tolerance(kind, strategy)


EAGER = {  # of a plain number a, value and derivative at a = 2
    "root": (lambda a: (Root(lambda y, a: y**2 - a, 1.0), a), 0.5 / np.sqrt(2)),
    "fixed_point": (lambda a: (FixedPoint(lambda y, a: 0.5 * y + a, 0.0), a), 2.0),
    "ode": (lambda a: (ODE(lambda t, y, a: -a * y, 1.0, 0.0, 1.0), a), -np.exp(-2)),
    "integral": (lambda a: (Integral(lambda x, a: x**2 * a, 0.0, 1.0), a), 1 / 3),
}


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
@pytest.mark.parametrize("kind", EAGER)
def test_eager_gradient(kind, strategy, float64):
    """Without jit."""
    equation, exact = EAGER[kind]
    gradient = jax.grad(lambda a: solve(*equation(a), gradient=strategy).value)(2.0)
    assert abs(gradient / exact - 1) < max(tolerance(kind, strategy), STEPPED)


@pytest.mark.parametrize("strategy", [Implicit(), Unroll(), Unroll(last=3)], ids=["implicit", "unroll", "last"])
def test_eager_gradient_by_a_plain_number(strategy):
    """`jax.grad(f)(0.1)` without jit hands the number itself, no array, to the derivative rules. Kepler's equation:
    dE/de = sin E / (1 - e cos E)."""

    def anomaly(e):
        return solve(Root(lambda E, e: E - e * jnp.sin(E) - 1.0, 1.0), e, gradient=strategy).value

    E = float(anomaly(0.1))
    assert float(jax.grad(anomaly)(0.1)) == pytest.approx(np.sin(E) / (1 - 0.1 * np.cos(E)), rel=1e-5)
