"""Every cell of the table of strategies against a closed form; then every solver, in both precisions (slow).

Each row is differentiated by all that can be differentiated at once: args, an array leaf that the function holds, a
value it closes over, y0, t0, t1, limits. A strategy that dropped one of them would fail the row.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from strategy_cases import CASES, Case

from implicitexp import solvers
from implicitexp.equations import Root
from implicitexp.solving import solve, zero_tap
from implicitexp.strategies import Adjoint, FiniteDifference, Forward, Implicit, PerKind, ProgramTangent, Unroll

# Relative errors in float64 with default tolerances (1e-8).
SOLVED = 1e-9  # Newton and Anderson end far below the tolerance; a quadrature rule too on a smooth integrand
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
]
LANES = np.array([1.0, 1.1])


def tolerance(kind, strategy, precision="float64") -> float:
    if isinstance(strategy, FiniteDifference):
        return DIFFERENCED if precision == "float64" else SINGLE_DIFFERENCED
    if precision == "float32":
        return SINGLE
    if isinstance(strategy, Unroll) and strategy.last:
        return TRUNCATED
    return STEPPED if kind == "ode" else SOLVED


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


def batched_gradient(case, strategy, p, solver=None):
    """The gradient of a sum over lanes, compiled, and the tap's statistics."""

    def total(p, tap):
        return jnp.sum(jax.vmap(lambda p: loss(case, strategy, p, tap, solver))(p))

    return jax.jit(jax.grad(total, (0, 1)))(p, zero_tap())


def exact_batched_gradient(case, p):
    return jax.grad(lambda p: jnp.sum(jax.vmap(lambda p: exact_loss(case, p))(p)))(p)


CELLS = [(kind, strategy) for kind in CASES for strategy in STRATEGIES] + [
    pytest.param(*row, marks=pytest.mark.slow) for row in VARIANTS
]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("kind", "strategy"), CELLS, ids=str)
def test_gradient_matches_closed_form(kind, strategy):
    """Under jit, and as the gradient of a vmap; the tap counts both lanes."""
    case = CASES[kind]
    p = numbers(case.params, LANES)
    gradient, tap = batched_gradient(case, strategy, p)
    assert error(gradient, exact_batched_gradient(case, p)) < tolerance(kind, strategy)
    assert tap["solves"] == len(LANES)
    assert tap["adjoint_solves"] == len(LANES)
    assert tap["steps"] >= len(LANES)
    assert tap["unconverged"] == tap["adjoint_unconverged"] == 0
    assert 0 <= tap["adjoint_residual"] < SOLVED**2


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


SOLVERS = [
    ("root", solvers.Newton()),
    ("root", solvers.Dogleg()),
    ("fixed_point", solvers.Picard()),
    ("fixed_point", solvers.Anderson()),
    ("ode", solvers.Euler(dt0=1e-4)),
    ("ode", solvers.Tsit5()),
    ("ode", solvers.Dopri8()),
    ("ode", solvers.Kvaerno5()),
    ("integral", solvers.GaussKronrod()),
    ("integral", solvers.TanhSinh()),
]
EULER = 1e-3  # first order: the step, 1e-4, times what the derivatives add
TIGHT = {"rtol": 1e-10, "atol": 1e-10}  # in float64, for those that stop a factor short of their tolerance's accuracy


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
@pytest.mark.parametrize(("kind", "solver"), SOLVERS, ids=lambda x: type(x).__name__ if x != "root" else x)
def test_every_solver(kind, solver, strategy, precision):
    case = CASES[kind]
    p = numbers(case.params)
    if precision == "float64" and isinstance(solver, solvers.Picard | solvers.Kvaerno5):
        solver = dataclasses.replace(solver, **TIGHT)
    gradient = jax.jit(jax.grad(lambda p: loss(case, strategy, p, solver=solver)))(p)
    bound = tolerance(kind, strategy, precision)
    bound = max(bound, EULER) if isinstance(solver, solvers.Euler) else bound
    bound = max(bound, STEPPED) if isinstance(solver, solvers.Dogleg | solvers.Picard) else bound
    assert error(gradient, jax.grad(lambda p: exact_loss(case, p))(p)) < bound


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "strategy"), CELLS, ids=str)
def test_eager_and_vmap_of_gradient(kind, strategy, float64):
    """Not compiled, and as the vmap of a gradient: the same numbers as in the table."""
    case = CASES[kind]
    p = numbers(case.params, LANES)
    expected = exact_batched_gradient(case, p)
    inside = jax.vmap(jax.grad(lambda p: loss(case, strategy, p)))(p)
    assert error(inside, expected) < tolerance(kind, strategy)
    first = jax.tree.map(lambda x: x[0], p)
    eager = jax.grad(lambda p: loss(case, strategy, p))(first)
    assert error(eager, jax.tree.map(lambda x: x[0], expected)) < tolerance(kind, strategy)


@pytest.mark.parametrize("strategy", [Implicit(), Unroll()], ids=["implicit", "unroll"])
def test_eager_gradient_by_a_plain_number(strategy):
    """`jax.grad(f)(0.1)` without jit hands the number itself, no array, to the derivative rules. Kepler's equation:
    dE/de = sin E / (1 - e cos E)."""

    def anomaly(e):
        return solve(Root(lambda E, e: E - e * jnp.sin(E) - 1.0, 1.0), e, gradient=strategy).value

    E = float(anomaly(0.1))
    assert float(jax.grad(anomaly)(0.1)) == pytest.approx(np.sin(E) / (1 - 0.1 * np.cos(E)), rel=1e-5)
