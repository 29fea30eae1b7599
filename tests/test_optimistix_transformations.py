"""Adjoints for Optimistix under vmap, scan and second derivatives, in trees and in single precision, and what they refuse."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import pytest
from optimistix_cases import ANDERSON, NEWTON, PICARD, A, C, M, N, exact, fixed_point, minimum, root, rows, value

from implicitexp.adjoints.implicit.fixed_points import Iterated, Neumann, OneStep, Phantom, Reuse, Shine
from implicitexp.adjoints.implicit.last_steps import Truncated
from implicitexp.adjoints.linear.small_dense import SmallDense
from implicitexp.errors import Unsupported
from implicitexp.solvers.anderson import AndersonAcceleration
from implicitexp.solvers.broyden import Broyden

# y = 0 is the fixed point of a y + b at b = 0, whatever a is: dy/db = 1 / (1 - a), and at a = 1 the system is singular.
LANES = np.array([0.5, 1.0, -0.5])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "adjoint",
    [Iterated(), Iterated(accelerate=None), Iterated(preconditioner="last"), Reuse(preconditioner=-1)],
    ids=str,
)
def test_a_singular_lane_leaves_the_others_alone(adjoint):
    def y(a, b):
        return optx.fixed_point(lambda y, ab: ab[0] * y + ab[1], PICARD, jnp.zeros(()), (a, b), adjoint=adjoint).value

    gradients = jax.jit(jax.vmap(jax.grad(y, argnums=1)))(jnp.asarray(LANES), jnp.zeros(3))
    np.testing.assert_allclose(gradients[jnp.array([0, 2])], [2.0, 2 / 3], rtol=1e-10)
    assert jnp.isnan(gradients[1])


def test_a_diverging_lane_leaves_the_others_alone(float64):
    """The forward solve of the second fails; so its derivative is not finite or flagged, and the others are right."""

    def y(a):
        sol = optx.fixed_point(lambda y, a: a * y + 1, PICARD, jnp.zeros(()), a, adjoint=Iterated(), throw=False)
        return sol.value, sol.result == optx.RESULTS.successful

    (_, converged), gradients = jax.vmap(jax.value_and_grad(y, has_aux=True))(jnp.array([0.5, 40.0, -0.5]))
    np.testing.assert_array_equal(converged, [True, False, True])
    np.testing.assert_allclose(gradients[jnp.array([0, 2])], [4.0, 1 / 1.5**2], rtol=1e-10)


def test_a_singular_newton_lane_leaves_the_others_alone(float64):
    """y^2 = a at a = 0 from y = 0 has a singular Jacobian at once."""

    def y(a, adjoint):
        newton = optx.Newton(1e-12, 1e-12, linear_solver=SmallDense())
        start = jnp.where(a > 0, 1.0, 0.0)
        return optx.root_find(lambda y, a: y**2 - a, newton, start, a, adjoint=adjoint, throw=False).value

    for adjoint in (Shine(), Shine(1), Reuse(), Iterated(), OneStep()):
        gradients = jax.vmap(jax.grad(y), (0, None))(jnp.array([4.0, 0.0, 9.0]), adjoint)
        np.testing.assert_allclose(gradients[jnp.array([0, 2])], [1 / 4, 1 / 6], rtol=1e-9)
        assert not jnp.isfinite(gradients[1])


SECOND = {
    "iterated": (optx.Newton(1e-13, 1e-13), Iterated()),
    "iterated-solver": (optx.Newton(1e-13, 1e-13), Iterated(preconditioner="solver")),
    "reuse": (optx.Newton(1e-13, 1e-13), Reuse()),
    "shine": (optx.Newton(1e-13, 1e-13), Shine()),
    "shine-refined": (Broyden(1e-13, 1e-13), Shine(2)),
    "one_step": (optx.Newton(1e-13, 1e-13), OneStep()),
    "neumann": (optx.Chord(1e-13, 1e-13), Neumann(30)),
    "phantom": (optx.Chord(1e-13, 1e-13), Phantom(30, 0.9)),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", rows(SECOND))
def test_second_derivatives(name):
    """y = (a b)^(1/2) from y^2 = a b: the Hessian by forward over reverse, reverse over forward, reverse over reverse. The
    series converges by a factor of at least three a term, so that 30 terms leave 1e-14."""
    solver, adjoint = SECOND[name]

    def y(ab):
        return optx.root_find(lambda y, ab: y**2 - ab[0] * ab[1], solver, jnp.array(1.3), ab, adjoint=adjoint).value

    a, b = 2.0, 1.25
    root = np.sqrt(a * b)
    hessian = [[-root / (4 * a**2), 1 / (4 * root)], [1 / (4 * root), -root / (4 * b**2)]]
    ab = jnp.array([a, b])
    for second in (jax.hessian(y), jax.jacrev(jax.jacfwd(y)), jax.jacrev(jax.jacrev(y))):
        np.testing.assert_allclose(second(ab), hessian, rtol=1e-9)
    tangent = jax.jvp(lambda ab: jax.vjp(y, ab)[1](jnp.array(1.0))[0], (ab,), (jnp.array([1.0, -2.0]),))[1]
    np.testing.assert_allclose(tangent, np.array(hessian) @ [1.0, -2.0], rtol=1e-9)


@pytest.mark.slow
def test_second_derivatives_of_the_last_steps(float64):
    """Of two steps of Newton's method from a held y: those of the steps themselves."""

    def step(y, a):
        return y - (y**2 - a) / (2 * y)

    def y(a):
        return optx.root_find(lambda y, a: y**2 - a, NEWTON, jnp.array(1.3), a, adjoint=Truncated(2)).value

    for second in (jax.hessian, lambda f: jax.jacrev(jax.jacrev(f))):
        expected = second(lambda a: step(step(jnp.sqrt(2.0), a), a))(2.0)
        np.testing.assert_allclose(second(y)(2.0), expected, rtol=1e-8)


# What Optimistix's own adjoints are asked for: trees, aux, options, tags, scan, eager numbers, every leaf of the arguments.
ANY = {
    "iterated": (PICARD, Iterated()),
    "neumann": (PICARD, Neumann(100)),
    "phantom": (PICARD, Phantom(200, 0.9)),
    "truncated": (PICARD, Truncated(100)),
    "shine": (NEWTON, Shine()),
    "one_step": (NEWTON, OneStep()),
    "reuse": (ANDERSON, Reuse()),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", rows(ANY, "neumann"))
def test_trees_aux_closures_and_scan(name):
    """A tree of unknowns of two shapes, a parameter that the function closes over, aux, a scan of solves, an unused argument."""
    solver, adjoint = ANY[name]

    def loss(theta, adjoint):
        def fn(y, args):
            a, _ = args
            u = 0.2 * jnp.sin(y["v"].sum()) * jnp.ones(2) + theta["closed"]
            return {"u": u, "v": 0.3 * y["u"][:, None] * jnp.ones((2, 3)) + a}, {"sum": y["u"].sum()}

        def advance(y0, a):
            y0 = {"u": y0["u"], "v": y0["v"]}
            sol = optx.fixed_point(fn, solver, y0, (a, 7), has_aux=True, adjoint=adjoint, max_steps=1000)
            return sol.value, sol.value["u"][0] * sol.value["v"][1, 2]

        start = {"u": jnp.zeros(2), "v": jnp.zeros((2, 3))}
        return jnp.sum(jax.lax.scan(advance, start, theta["each"])[1])

    theta = {"closed": jnp.array([0.1, 0.7]), "each": jnp.array([0.2, -0.3, 0.5]), "unused": jnp.ones(3)}
    ours = jax.grad(loss)(theta, adjoint)
    theirs = jax.grad(loss)(theta, optx.ImplicitAdjoint())
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", rows(ANY, "iterated", "truncated"))
def test_an_eager_number(name):
    solver, adjoint = ANY[name]

    def y(a):
        return optx.fixed_point(lambda y, a: 0.5 * jnp.cos(a * y), solver, jnp.array(0.4), a, adjoint=adjoint).value

    v = float(y(0.3))
    sine = 0.5 * np.sin(0.3 * v)
    np.testing.assert_allclose(jax.grad(y)(0.3), -sine * v / (1 + 0.3 * sine), rtol=1e-9)


@pytest.mark.slow
def test_options_and_tags(float64):
    """The box of Newton's options: at the root inside it. The tag of a diagonal Jacobian."""
    a = jnp.array([4.0, 9.0])
    options = {"lower": jnp.array(0.1), "upper": jnp.array(10.0)}
    for adjoint in (Iterated(), Shine(), Reuse(), OneStep(), Truncated(9)):
        gradient = jax.grad(
            lambda a, adjoint=adjoint: optx.root_find(
                lambda y, a: y**2 - a,
                NEWTON,
                jnp.ones(2),
                a,
                options=options,
                adjoint=adjoint,
                tags=frozenset({lx.diagonal_tag}),
            ).value.sum()
        )(a)
        np.testing.assert_allclose(gradient, 0.5 / jnp.sqrt(a), rtol=1e-9)


@pytest.mark.parametrize("name", rows(ANY, "shine"))
def test_single_precision(name):
    solver, adjoint = ANY[name]
    kinds = {optx.FixedPointIteration: 1e-6, optx.Newton: 1e-5, AndersonAcceleration: 1e-6}
    solver = type(solver)(kinds[type(solver)], kinds[type(solver)])
    m, a = jnp.asarray(M, jnp.float32), jnp.asarray(A, jnp.float32)

    def y(a):
        return optx.fixed_point(lambda y, a: m @ y + a, solver, jnp.zeros(N), a, adjoint=adjoint).value

    gradient = jax.grad(lambda a: y(a) @ jnp.asarray(C, jnp.float32))(a)
    assert gradient.dtype == jnp.float32
    exactly = exact(fixed_point, None).T @ C
    assert np.linalg.norm(gradient - exactly) / np.linalg.norm(exactly) < 1e-5


@pytest.mark.slow
def test_the_solution_is_that_of_the_library(float64):
    """Value, statistics, state and aux are what the solver gives under any other adjoint."""
    a = jnp.asarray(A)
    theirs = root(NEWTON, optx.ImplicitAdjoint(), a)
    for adjoint in (Iterated(), Shine(), Reuse(), OneStep(), Neumann(2), Phantom(2), Truncated(2)):
        ours = root(NEWTON, adjoint, a)
        assert jax.tree.structure(ours.state) == jax.tree.structure(theirs.state)
        assert ours.stats["num_steps"] == theirs.stats["num_steps"]
        assert ours.result == theirs.result
        np.testing.assert_allclose(ours.value, theirs.value, rtol=1e-14)


REFUSED = {
    "dogleg": (root, optx.Dogleg(1e-8, 1e-8), Shine(), "Dogleg builds none.*Newton.*preconditioner='last'"),
    "one_step": (root, optx.Dogleg(1e-8, 1e-8), OneStep(), "OneStep uses the inverse that the solver builds"),
    "picard": (fixed_point, PICARD, Reuse(), "FixedPointIteration builds none"),
    "gradient_descent": (minimum, optx.GradientDescent(0.1, 1e-8, 1e-8), Neumann(3), "such as the learning rate"),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", REFUSED)
def test_refusals_name_what_works(name):
    problem, solver, adjoint, message = REFUSED[name]
    with pytest.raises(Unsupported, match=message):
        jax.grad(lambda a: value((problem, solver, adjoint))(a).sum())(jnp.asarray(A))


def test_more_refusals(float64):
    a = jnp.asarray(A)
    gmres = optx.Newton(1e-8, 1e-8, linear_solver=lx.GMRES(1e-8, 1e-8))
    with pytest.raises(Unsupported, match="keeps no factorization.*SmallDense"):
        root(gmres, Shine(), a)
    with pytest.raises(ValueError, match="real unknowns"), pytest.warns(UserWarning, match="Complex"):
        optx.root_find(lambda y, a: y**2 + a, NEWTON, jnp.array(1j), 1.0, adjoint=Iterated())
    newton = optx.Newton(1e-8, 1e-8, linear_solver=lx.QR())

    def overdetermined(a):
        def fn(y, a):
            return jnp.stack([y[0] - a, y[1] - a, y[0] - y[1]])

        return optx.root_find(fn, newton, jnp.ones(2), a, adjoint=Iterated()).value.sum()

    with pytest.raises(ValueError, match="as many equations as unknowns, and these are 3 and 2"):
        jax.grad(overdetermined)(1.0)
    for make, message in (
        (lambda: Neumann(0), "at least one term"),
        (lambda: Phantom(0), "at least one step"),
        (lambda: Truncated(0), "at least one iteration"),
        (lambda: Shine(-1), "number of steps"),
        (lambda: Iterated(accelerate="aitken"), "'anderson'"),  # in the tests the type checker says it first
        (lambda: Iterated(preconditioner="lu"), "solver.*last.*start.*identity"),
    ):
        with pytest.raises((ValueError, TypeError), match=message):
            make()
