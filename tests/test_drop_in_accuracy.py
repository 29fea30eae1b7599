"""Every strategy on every closed-form case: exact ones within ten times what the solution's own error explains, those that are
derivatives of the program to rounding, truncated ones with the error of their theory, from both sides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drop_in_accuracy_cases import CONDITION, EXACT, KEPT, MISSES, bound, condition, kind_of, relative_errors
from jax.flatten_util import ravel_pytree
from truth_cases import BY_KIND, CASES, FIXED_POINTS

from implicitexp import solvers, strategies
from implicitexp.equations import FixedPoint
from implicitexp.solving import Solve, solve
from implicitexp.strategies import approximate, over_steps
from implicitexp.truth.doubles import flat

ROUNDED = 1e-10  # float64, relative: two ways through one program, of some hundred steps that amplify rounding
NAMED = {case.name: case for case in CASES}
FAST = {("double root, nearly", "iterated"), ("spiral", "adjoint")}


def rows():
    for kind, group in BY_KIND.items():
        for case in group:
            if case.name in KEPT:
                yield from (row(case, name) for name in EXACT[kind] if not refused(case, name))


def row(case, name):
    marks = [] if (case.name, name) in FAST else [pytest.mark.slow]
    if (case.name, name) in MISSES:
        marks.append(pytest.mark.xfail(strict=True, reason=MISSES[case.name, name]))
    return pytest.param(case, name, marks=marks, id=f"{case.name}-{name}")


def refused(case, name):
    """`reversible` has no implicit methods, and says so."""
    return name == "reversible" and case.solver is not None


@pytest.mark.parametrize(("case", "name"), list(rows()))
def test_exact_ones_are_as_right_as_the_solution(case, name, float64):
    """Error <= 10 kappa times the primal error, or 1e-10 kappa, whichever is larger."""
    primal, error = relative_errors(case, EXACT[kind_of(case)][name])
    assert error <= bound(case, primal, "float64")


SINGLE = [
    ("double root, nearly", "iterated"), ("Lambert's W at its branch", "adjoint"), ("ill-conditioned system", "reuse"),
    ("contraction r", "iterated"), ("spiral", "shine"), ("near blow-up", "adjoint"), ("limit and integrand", "adjoint"),
    pytest.param("Lorentz peak", "adjoint", marks=pytest.mark.xfail(
        strict=True, reason="the derivative's integral does not converge in float32: NaN, where the value is right to 5e-7",
    )),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(("case", "name"), SINGLE)
def test_single_precision(case, name):
    """The same with the rounding of float32; or a gradient that is no number, as the solution then is."""
    case = NAMED[case]
    primal, error = relative_errors(case, EXACT[kind_of(case)][name])
    assert error <= bound(case, primal, "float32") or (np.isnan(error) and np.isnan(primal))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["implicit", "adjoint", "iterated", "reuse", "shine"])
def test_hessian(name, float64):
    """Forward over reverse, of a system of two unknowns."""
    case = NAMED["two unknowns in a dictionary"]
    p, numbers = ravel_pytree(case.init(None))
    found = jax.jit(jax.hessian(lambda v: case.loss(numbers(v), None, Solve(case.solver, EXACT["root"][name]))))(p)
    exact = jax.hessian(lambda v: case.exact(numbers(v)))(p)
    assert np.linalg.norm(found - exact) <= ROUNDED * np.linalg.norm(exact)


def test_every_case_has_a_condition():
    assert set(CONDITION) == set(NAMED)
    assert set(NAMED) >= KEPT


@pytest.mark.slow
@pytest.mark.parametrize("name", ["double root, nearly", "spiral", "limit and integrand"])
def test_conditions_of_the_table(name, float64):
    assert condition(NAMED[name]) == pytest.approx(CONDITION[name], rel=0.05)


# -- derivatives of the program ---------------------------------------------------------------------------------------

PROGRAMS = {
    "root": {"unroll": strategies.Unroll()},
    "fixed_point": {"unroll": strategies.Unroll()},
    "ode": {"unroll": strategies.Unroll(), "replay": over_steps.Replay()},
    "integral": {"unroll": strategies.Unroll(), "implicit": strategies.Implicit()},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["double root, nearly", "spiral", "three output times", "peak in the field", "Lorentz peak"]
)
def test_those_of_the_program_are_so_to_rounding(name, float64):
    """Against forward mode through the solver's own loop, along a direction in which no parameter's share is lost."""
    case = NAMED[name]
    kind = kind_of(case)
    p = case.init(None)
    along = {name: x * (1 + 0.1 * i) for i, (name, x) in enumerate(p.items())}

    @jax.jit
    def both(p):
        def loss(p, strategy):
            return case.loss(p, None, Solve(case.solver, strategy))

        _, tangent = jax.jvp(lambda p: loss(p, strategies.ProgramTangent()), (p,), (along,))
        return tangent, {name: jax.grad(loss)(p, strategy) for name, strategy in PROGRAMS[kind].items()}

    tangent, gradients = both(p)
    for strategy, found in gradients.items():
        shares = np.array([float(found[key] * along[key]) for key in p])
        assert abs(shares.sum() - tangent) <= ROUNDED * CONDITION[name] * np.abs(shares).sum(), strategy


# -- truncated ones ---------------------------------------------------------------------------------------------------

# Strategy, and what is left of a term of the error in a direction in which T contracts by r.
POLYNOMIALS = {
    "one step": (approximate.OneStep(), lambda r: r),
    "neumann 4": (approximate.Neumann(terms=4), lambda r: r**4),
    "neumann 25": (approximate.Neumann(terms=25), lambda r: r**25),
    "phantom 4": (approximate.Phantom(steps=4, damping=0.5), lambda r: (1 - 0.5 * (1 - r)) ** 4),
    "phantom 25": (approximate.Phantom(steps=25, damping=0.8), lambda r: (1 - 0.8 * (1 - r)) ** 25),
    "last 1": (strategies.Unroll(last=1), lambda r: r),
    "last 4": (strategies.Unroll(last=4), lambda r: r**4),
}
SHORT = ("one step", "neumann 4", "phantom 4", "last 4")
SPECTRUM = np.array([0.9, 0.4, 0.0, -0.5, -0.95])
TIGHT = {"rtol": 1e-14, "atol": 1e-14}
PICARD = solvers.Picard(max_steps=5000, **TIGHT)


@pytest.mark.parametrize(
    "name", [n if n == "neumann 4" else pytest.param(n, marks=pytest.mark.slow) for n in POLYNOMIALS]
)
def test_truncated_ones_have_the_error_of_each_eigenvalue(name, float64):
    """T = M y + a with the eigenvalues of SPECTRUM: the derivative along an eigenvector is short by r^k of itself, and by
    nothing across."""
    strategy, left = POLYNOMIALS[name]
    q, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(SPECTRUM.size,) * 2))
    m = jnp.asarray(q * SPECTRUM @ q.T)
    equation = FixedPoint(lambda y, a: m @ y + a, np.zeros(SPECTRUM.size))
    jacobian = jax.jit(jax.jacrev(lambda a: solve(equation, a, solver=PICARD, gradient=strategy).value))
    missing = np.eye(SPECTRUM.size) - q.T @ np.asarray(jacobian(jnp.asarray(q[0]))) @ q * (1 - SPECTRUM)
    np.testing.assert_allclose(missing, np.diag(left(SPECTRUM)), rtol=1e-10, atol=1e-12)


def linearized(case, solution):
    """c, df/dy, df/dp (a column for each number), at the solution; f is fn, of a fixed point fn - y."""
    p = case.init(None)
    equation, _ = case.equation(p)
    y, unravel = ravel_pytree(solution)
    vector, numbers = ravel_pytree(p)
    own = 0 if equation.kind == "root" else 1

    def f(y, vector):
        equation, args = case.equation(numbers(vector))
        return ravel_pytree(equation.fn(unravel(y), args))[0] - own * y

    c = jax.grad(lambda y: case.outcome(unravel(y)))(y)
    return tuple(map(np.asarray, (c, jax.jacfwd(f)(y, vector), jax.jacfwd(f, 1)(y, vector))))


def check_theory(case, solver, names, inverse):
    """Each gradient is short by c^T R (df/dy)^-1 df/dp, with R the polynomial of 1 - B^-1 df/dy: to a millionth of that."""
    p = case.init(None)

    @jax.jit
    def run(p):
        def loss(p, strategy):
            return case.loss(p, None, Solve(solver, strategy))

        equation, args = case.equation(p)
        gradients = {name: jax.grad(loss)(p, POLYNOMIALS[name][0]) for name in names}
        return solve(equation, args, solver=solver).value, gradients

    solution, gradients = run(p)
    c, jacobian, slope = linearized(case, solution)
    values, vectors = np.linalg.eig(np.eye(c.size) - inverse(case) @ jacobian)
    exact = -c @ np.linalg.solve(jacobian, slope)
    for name in names:
        rest = (vectors * POLYNOMIALS[name][1](values) @ np.linalg.inv(vectors)).real
        missing = -c @ rest @ np.linalg.solve(jacobian, slope)
        off = np.linalg.norm(exact - flat(gradients[name]) - missing)
        assert off <= 1e-6 * np.linalg.norm(missing) + 1e-10 * np.linalg.norm(exact), name


@pytest.mark.slow
@pytest.mark.parametrize("case", FIXED_POINTS, ids=str)
def test_truncated_ones_on_fixed_points(case, float64):
    """Against dense linear algebra at the solution; with the eigenvalues of dT/dy, 0.99 and -0.99 among them."""
    check_theory(
        case, PICARD, POLYNOMIALS, lambda case: -np.eye(ravel_pytree(case.equation(case.init(None))[0].y0)[0].size)
    )


def jacobian_at_start(case):
    equation, _ = case.equation(case.init(None))
    return linearized(case, jax.tree.map(jnp.asarray, equation.y0))[1]


CHORD = (
    "square root",
    "double root, nearly",
    "logarithm, small",
    "two unknowns in a dictionary",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHORD)
def test_truncated_ones_on_roots(name, float64):
    """With the chord method, whose B is the Jacobian at the start."""
    chord = solvers.Chord(max_steps=2000, **TIGHT)
    check_theory(NAMED[name], chord, SHORT, lambda case: np.linalg.inv(jacobian_at_start(case)))
