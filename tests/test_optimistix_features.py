"""Adjoints for Optimistix on what its own are tested for: every solver and function of the library, nesting, y0, aux; and
second derivatives of fixed points and minima."""

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
from optimistix_cases import ANDERSON, BFGS, LEVENBERG, NEWTON, PICARD, TOLERANCE, rows

from implicitexp.adjoints.implicit.fixed_points import Iterated, Neumann, OneStep, Phantom, Reuse, Shine
from implicitexp.adjoints.implicit.last_steps import Truncated

# -- every solver and every function ------------------------------------------------------------------------------------
# What is looked for is y = a, from where the solver starts; its derivative is one, whatever the solver.


def as_root(y, a):
    return (y - a) * (1 + (y - a) ** 2)


def as_minimum(y, a):
    return 1 + (y - a) ** 2 + (y - a) ** 4


def as_fixed_point(y, a):
    return y - 0.5 * (y - a)


BOX = {"lower": jnp.array(-3.0), "upper": jnp.array(5.0)}
FUNCTIONS = {
    "bisection": (optx.root_find, as_root, optx.Bisection(TOLERANCE, TOLERANCE), BOX),
    "best newton": (optx.root_find, as_root, optx.BestSoFarRootFinder(NEWTON), {}),
    "root by dogleg": (optx.root_find, as_root, optx.Dogleg(TOLERANCE, TOLERANCE), {}),
    "root by levenberg": (optx.root_find, as_root, LEVENBERG, {}),
    "root by bfgs": (optx.root_find, as_root, BFGS, {}),
    "fixed point by newton": (optx.fixed_point, as_fixed_point, NEWTON, {}),
    "fixed point by levenberg": (optx.fixed_point, as_fixed_point, LEVENBERG, {}),
    "fixed point by bfgs": (optx.fixed_point, as_fixed_point, BFGS, {}),
    "best picard": (optx.fixed_point, as_fixed_point, optx.BestSoFarFixedPoint(PICARD), {}),
    "gauss-newton": (optx.least_squares, as_root, optx.GaussNewton(TOLERANCE, TOLERANCE), {}),
    "least squares by bfgs": (optx.least_squares, as_root, BFGS, {}),
    "nelder-mead": (optx.minimise, as_minimum, optx.NelderMead(1e-12, 1e-12), {}),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", rows(FUNCTIONS, "root by dogleg"))
def test_every_solver_and_function_of_the_library(name):
    """`Iterated` needs nothing of the solver but its solution."""
    solve, fn, solver, options = FUNCTIONS[name]

    def y(y0, a):
        return solve(
            fn, solver, y0, a, options=dict(options), adjoint=Iterated(), max_steps=2000, throw=False
        ).value  # fmt: skip

    value, tangent = jax.jvp(y, (jnp.array(1.5), jnp.array(1.2)), (jnp.array(7.0), jnp.array(1.0)))
    assert value == pytest.approx(1.2, abs=1e-3)
    assert tangent == pytest.approx(1, rel=1e-4)
    start, moved = jax.grad(y, (0, 1))(jnp.array(1.5), jnp.array(1.2))
    assert start == 0, "where a solver starts has no derivative"
    assert moved == pytest.approx(float(tangent), rel=1e-12)


# -- nesting ------------------------------------------------------------------------------------------------------------

PAIRS = {
    "iterated": (NEWTON, Iterated(), PICARD, Iterated()),
    "reuse": (NEWTON, Reuse(), ANDERSON, Reuse()),
    "shine": (NEWTON, Shine(), NEWTON, Shine()),
    "series": (optx.Chord(TOLERANCE, TOLERANCE), Neumann(60), PICARD, Phantom(80, 0.9)),
    "truncated": (NEWTON, OneStep(), PICARD, Truncated(60)),
    "with theirs": (NEWTON, optx.ImplicitAdjoint(), PICARD, Iterated()),
    "in theirs": (NEWTON, Iterated(), PICARD, optx.ImplicitAdjoint()),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", rows(PAIRS))
def test_a_root_inside_a_fixed_point(name):
    """z + 0.4 tanh z = y + a inside y = 0.3 sin z + a: forward, reverse, and reverse under vmap."""
    root_solver, root_adjoint, solver, adjoint = PAIRS[name]

    def z(y, a):
        def inner(z, b):
            return z + 0.4 * jnp.tanh(z) - b

        return optx.root_find(inner, root_solver, jnp.zeros(()), y + a, adjoint=root_adjoint).value

    def y(a):
        def outer(y, a):
            return 0.3 * jnp.sin(z(y, a)) + a

        return optx.fixed_point(outer, solver, jnp.zeros(()), a, adjoint=adjoint).value

    a = jnp.array([0.3, -1.1])
    value, gradient = jax.jit(jax.vmap(jax.value_and_grad(y)))(a)
    inside = np.asarray(jax.vmap(z)(value, a))
    share = 0.3 * np.cos(inside) / (1 + 0.4 / np.cosh(inside) ** 2)
    np.testing.assert_allclose(gradient, (1 + share) / (1 - share), rtol=1e-9)
    tangent = jax.jvp(y, (a[0],), (jnp.array(1.0),))[1]
    np.testing.assert_allclose(tangent, gradient[0], rtol=1e-9)


# -- aux ----------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("adjoint", [Iterated(), Truncated(40), optx.ImplicitAdjoint()], ids=lambda x: type(x).__name__)
def test_aux(adjoint):
    """Aux belongs to the last evaluation. Only `Truncated` differentiates it: for others it is a constant, as for Optimistix."""

    def fn(y, a):
        return 0.5 * jnp.cos(y) + a, {"twice": 2 * y * a}

    def aux(a):
        return optx.fixed_point(fn, PICARD, jnp.zeros(()), a, has_aux=True, adjoint=adjoint).aux["twice"]

    a = jnp.array(0.3)
    y = optx.fixed_point(lambda y, a: fn(y, a)[0], PICARD, jnp.zeros(()), a).value
    np.testing.assert_allclose(aux(a), 2 * y * a, rtol=1e-12)
    expected = 2 * (y + a / (1 + 0.5 * jnp.sin(y))) if isinstance(adjoint, Truncated) else 0.0
    np.testing.assert_allclose(jax.grad(aux)(a), expected, rtol=1e-9)


# -- second derivatives -------------------------------------------------------------------------------------------------

SECOND = {
    "iterated": (optx.fixed_point, PICARD, Iterated()),
    "reuse": (optx.fixed_point, ANDERSON, Reuse()),
    "shine": (optx.fixed_point, NEWTON, Shine()),
    "neumann": (optx.fixed_point, PICARD, Neumann(60)),
    "phantom": (optx.fixed_point, PICARD, Phantom(80, 0.9)),
    "truncated": (optx.fixed_point, PICARD, Truncated(60)),
    "iterated-minimum": (optx.minimise, BFGS, Iterated()),
    "reuse-minimum": (optx.minimise, BFGS, Reuse()),
    "iterated-least_squares": (optx.least_squares, LEVENBERG, Iterated()),
}
OF_SQUARE_ROOT = {
    optx.fixed_point: lambda y, p: jnp.sqrt(p + y),
    optx.minimise: lambda y, p: y**3 / 3 - y**2 / 2 - p * y,
    optx.least_squares: lambda y, p: y**2 - y - p,
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", rows(SECOND))
def test_second_derivatives(name):
    """y^2 - y = a b, so that y = (1 + sqrt(1 + 4 a b)) / 2: every order of the two modes."""
    solve, solver, adjoint = SECOND[name]

    def y(ab):
        p = ab[0] * ab[1]
        return solve(
            OF_SQUARE_ROOT[solve], solver, jnp.array(2.0), p, adjoint=adjoint, max_steps=2000, throw=False
        ).value  # fmt: skip

    def exact(ab):
        return (1 + jnp.sqrt(1 + 4 * ab[0] * ab[1])) / 2

    ab = jnp.array([2.0, 1.25])
    hessian = jax.hessian(exact)(ab)
    along = jnp.array([1.0, -2.0])

    @jax.jit
    def every(ab):
        tangent = jax.jvp(lambda ab: jax.vjp(y, ab)[1](jnp.array(1.0))[0], (ab,), (along,))[1]
        return jax.hessian(y)(ab), jax.jacrev(jax.jacfwd(y))(ab), jax.jacrev(jax.jacrev(y))(ab), tangent

    *seconds, tangent = every(ab)
    for second in seconds:
        np.testing.assert_allclose(second, hessian, rtol=1e-6)
    np.testing.assert_allclose(tangent, hessian @ along, rtol=1e-6)
