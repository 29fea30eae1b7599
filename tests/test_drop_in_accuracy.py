"""Every strategy on closed-form cases that are hard for it: exact ones within ten times what the solution's own error explains,
those that are derivatives of the program to rounding, truncated ones with the error of their theory, from both sides.

`python -m benchmarks.accuracy` has every exact strategy on every case, in both precisions.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from truth_cases import CASES, FIXED_POINTS

sys.path.insert(0, str(Path(__file__).parents[1]))  # the benchmarks are no part of what is installed

from benchmarks.accuracy.condition import misstated
from benchmarks.accuracy.judge import judged, unknown
from benchmarks.accuracy.measure import measured, truth_of
from benchmarks.accuracy.misses import KNOWN
from benchmarks.accuracy.rows import RIGHT
from benchmarks.accuracy.subjects import EXACT, kind_of
from implicitexp import device, solvers, strategies
from implicitexp.equations import FixedPoint
from implicitexp.solving import Solve, solve
from implicitexp.strategies import approximate, over_steps
from implicitexp.truth.doubles import flat

ROUNDED = 1e-10  # float64, relative: two ways through one program, of some hundred steps that amplify rounding
NAMED = {case.name: case for case in CASES}

# Kept here of what the command runs: for each strategy what is hard for it, in float64, and a case or two in float32.
ALGEBRAIC = ("double root, nearly", "Lambert's W at its branch", "ill-conditioned system", "contraction r", "spiral")
KEPT = {
    "implicit": (ALGEBRAIC, ("triple root, nearly",)),
    "adjoint, iterated": (ALGEBRAIC, ("Lambert's W at its branch",)),
    "forward": ((*ALGEBRAIC, "Lorentz peak", "limit and integrand"), ("spiral", "limit and integrand")),
    "Iterated()": (ALGEBRAIC, ("contraction r",)),
    "reuse, Reuse()": (ALGEBRAIC, ("ill-conditioned system",)),
    "shine, Shine(8)": (ALGEBRAIC, ("spiral",)),
    "adjoint, gauss": (("near blow-up", "three output times", "stiff, two scales"), ("near blow-up",)),
    "Gauss()": (("backwards in time", "peak in the field"), ("three output times",)),
    "interpolating, Interpolating()": (("near blow-up", "peak in the field"), ("backwards in time",)),
    "backsolve": (("near blow-up", "backwards in time"), ("growth",)),
    "Backsolve()": (("three output times",), ("near blow-up",)),
    "forward, forward_sensitivity": (("near blow-up", "stiff, two scales"), ("driven",)),
    "ForwardSensitivity()": (("peak in the field", "backwards in time"), ("near blow-up",)),
    "implicit, replay, Replay()": (("three output times", "peak in the field", "stiff, two scales"), ("near blow-up",)),
    "reversible, Reversible()": (("decay to a millionth", "near blow-up", "stiff, two scales"), ("driven",)),
    "implicit, frozen_mesh, FrozenMesh()": (("power with a singular end", "Lorentz peak"), ("limit and integrand",)),
    "adjoint, leibniz": (("Lorentz peak", "limit and integrand"), ("Lorentz peak",)),
    "Leibniz()": (("Lorentz peak", "limit and integrand"), ("oscillating",)),
}  # fmt: skip
FAST = {("double root, nearly", "Iterated()", "float64")}


def rows():
    for name, kept in KEPT.items():
        for precision, cases in zip(("float64", "float32"), kept, strict=True):
            for case in cases:
                marks = [] if (case, name, precision) in FAST else [pytest.mark.slow]
                yield pytest.param(case, name, precision, marks=marks, id=f"{case}-{name}-{precision}")


@pytest.mark.parametrize(("case", "name", "precision"), list(rows()))
def test_exact_ones_are_as_right_as_the_solution(case, name, precision):
    """Error <= 10 kappa times the primal error, or the rounding times kappa, whichever is larger; what is known to miss it does
    so still, in the same way, and by no more."""
    key, case = (case, name, precision), NAMED[case]
    with device.configured("cpu", precision):
        found = measured(case, EXACT[kind_of(case)][name], truth_of(case, precision))
    row = judged(key, kind_of(case), case.condition, found, case.on_the_way)
    assert row.verdict == (KNOWN[key].verdict if key in KNOWN else RIGHT), row
    assert not unknown([row]), row


def test_every_strategy_is_held_in_both_precisions():
    assert set(KEPT) == {name for group in EXACT.values() for name in group}
    assert all(double and single for double, single in KEPT.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["implicit", "adjoint, iterated", "Iterated()", "reuse, Reuse()", "shine, Shine(8)"])
def test_hessian(name, float64):
    """Forward over reverse, of a system of two unknowns."""
    case = NAMED["two unknowns in a dictionary"]
    p, numbers = ravel_pytree(case.init(None))
    found = jax.jit(jax.hessian(lambda v: case.loss(numbers(v), None, Solve(case.solver, EXACT["root"][name]))))(p)
    exact = jax.hessian(lambda v: case.exact(numbers(v)))(p)
    assert np.linalg.norm(found - exact) <= ROUNDED * np.linalg.norm(exact)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["double root, nearly", "spiral", "limit and integrand"])
def test_conditions_of_the_table(name):
    assert misstated(NAMED[name]) is None


@pytest.mark.slow
def test_a_condition_that_is_not_so_is_found():
    wrong = dataclasses.replace(NAMED["square root"], condition=1.2)
    assert misstated(wrong) == "the condition is 1, not 1.2"


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
        assert abs(shares.sum() - tangent) <= ROUNDED * case.condition * np.abs(shares).sum(), strategy


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
