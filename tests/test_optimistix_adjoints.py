"""Adjoints for Optimistix: exact ones against closed forms, truncated ones against the error of their theory."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import pytest

from implicitexp.adjoints.fixed_points import Iterated, Neumann, OneStep, Phantom, Reuse, Shine
from implicitexp.adjoints.last_steps import Truncated
from implicitexp.adjoints.small_dense import SmallDense
from implicitexp.errors import Unsupported
from implicitexp.solvers.anderson import AndersonAcceleration
from implicitexp.solvers.broyden import Broyden

TOLERANCE = 1e-13  # of the forward solves
FORMULA = (
    1e-10  # two ways to compute the same sum of products, a condition of up to 10 and a solve to TOLERANCE between them
)
N = 4
PICARD = optx.FixedPointIteration(TOLERANCE, TOLERANCE)
ANDERSON = AndersonAcceleration(TOLERANCE, TOLERANCE)
NEWTON = optx.Newton(TOLERANCE, TOLERANCE)
CHORD = optx.Chord(TOLERANCE, TOLERANCE)
BROYDEN = Broyden(TOLERANCE, TOLERANCE)
BFGS = optx.BFGS(1e-14, 1e-14)


def rows(table, *fast):
    """The names of a table's rows; all but the `fast` ones run with the slow tests."""
    return [name if name in fast else pytest.param(name, marks=pytest.mark.slow) for name in table]


def rotation(size=0.7, seed=0):
    """A contraction by `size` in every direction, not symmetric."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(N, N)))
    return size * q


M = rotation()
SYMMETRIC = M @ M.T + np.diag([1.0, 2.0, 3.0, 4.0])
A = np.array([0.5, -0.2, 0.1, 0.3])
C = np.array([1.0, 2.0, -1.0, 0.5])


# A row: how y(a) is found, and dy/da in closed form. All are used with a vector a.
def fixed_point(solver, adjoint, a, **options):
    return optx.fixed_point(lambda y, a: M @ y + a, solver, jnp.zeros(N), a, adjoint=adjoint, max_steps=5000, **options)


def nonlinear(y, a):
    return y + 0.4 * jnp.tanh(M @ y) - a


def root(solver, adjoint, a, **options):
    return optx.root_find(nonlinear, solver, jnp.zeros(N), a, adjoint=adjoint, max_steps=500, **options)


def minimum(solver, adjoint, a, **options):
    def objective(y, a):
        return 0.5 * y @ SYMMETRIC @ y - y @ a

    return optx.minimise(objective, solver, jnp.zeros(N), a, adjoint=adjoint, max_steps=5000, **options)


def least_squares(solver, adjoint, a, **options):
    def residuals(y, a):
        return jnp.concatenate([SYMMETRIC @ y - a, y - a])

    return optx.least_squares(residuals, solver, jnp.zeros(N), a, adjoint=adjoint, **options)


def jacobian_of_root(y):
    return np.eye(N) + 0.4 * (1 - np.tanh(M @ y) ** 2)[:, None] * M


def exact(problem, y):
    """dy/da."""
    if problem is fixed_point:
        return np.linalg.inv(np.eye(N) - M)
    if problem is root:
        return np.linalg.inv(jacobian_of_root(np.asarray(y)))
    if problem is minimum:
        return np.linalg.inv(SYMMETRIC)
    return np.linalg.solve(SYMMETRIC @ SYMMETRIC + np.eye(N), SYMMETRIC + np.eye(N))


LEVENBERG = optx.LevenbergMarquardt(1e-14, 1e-14)
EXACT = {
    "iterated-picard": (fixed_point, PICARD, Iterated()),
    "iterated-anderson": (fixed_point, ANDERSON, Iterated()),
    "iterated-plain": (fixed_point, PICARD, Iterated(accelerate=None)),
    "iterated-fixed_point-newton": (fixed_point, NEWTON, Iterated()),
    "iterated-root": (root, NEWTON, Iterated()),
    "iterated-root-solver": (root, NEWTON, Iterated(preconditioner="solver")),
    "iterated-root-start": (root, CHORD, Iterated(preconditioner="start")),
    "iterated-root-identity": (root, CHORD, Iterated(preconditioner="identity")),
    "iterated-dogleg": (root, optx.Dogleg(TOLERANCE, TOLERANCE), Iterated()),
    "iterated-minimum": (minimum, BFGS, Iterated()),
    "iterated-minimum-rate": (minimum, BFGS, Iterated(preconditioner=0.2)),
    "iterated-least_squares": (least_squares, LEVENBERG, Iterated()),
    "reuse-newton": (root, NEWTON, Reuse()),
    "reuse-newton-small": (root, optx.Newton(TOLERANCE, TOLERANCE, linear_solver=SmallDense()), Reuse()),
    "reuse-newton-qr": (root, optx.Newton(TOLERANCE, TOLERANCE, linear_solver=lx.QR()), Reuse()),
    "reuse-chord": (root, CHORD, Reuse()),
    "reuse-broyden": (root, BROYDEN, Reuse()),
    "reuse-anderson": (fixed_point, ANDERSON, Reuse()),
    "reuse-fixed_point-newton": (fixed_point, NEWTON, Reuse()),
    "reuse-bfgs": (minimum, BFGS, Reuse()),
    "reuse-nothing": (least_squares, LEVENBERG, Reuse(preconditioner=0.1)),
    "shine-newton": (root, NEWTON, Shine()),
    "shine-chord-refined": (root, CHORD, Shine(refine=N)),
    "shine-broyden-refined": (root, BROYDEN, Shine(refine=N)),
    "shine-anderson-refined": (fixed_point, ANDERSON, Shine(refine=N)),
    "shine-bfgs-refined": (minimum, BFGS, Shine(refine=N)),
}


def value(row, adjoint=None, throw=True):
    problem, solver, own = row
    return lambda a: problem(solver, own if adjoint is None else adjoint, a, throw=throw).value


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "name", rows(EXACT, "iterated-picard", "iterated-root", "reuse-newton", "shine-broyden-refined")
)
def test_exact_in_both_modes(name):
    """Within 10 kappa times the solve's own error (about 1e-12), or 1e-10 kappa: the condition of these derivatives is below 10.
    Under jit and vmap; one program gives both."""
    row = EXACT[name]
    f = value(row)
    a = jnp.stack([jnp.asarray(A), -2 * jnp.asarray(A)])

    @jax.jit
    @jax.vmap
    def both(a):
        y, pullback = jax.vjp(f, a)
        return y, pullback(jnp.asarray(C))[0], jax.jvp(f, (a,), (jnp.asarray(C),))[1]

    for y, reverse, forward in zip(*both(a), strict=True):
        jacobian = exact(row[0], y)
        scale = np.linalg.norm(jacobian) * np.linalg.norm(C)
        assert np.linalg.norm(reverse - jacobian.T @ C) < 1e-10 * scale
        assert np.linalg.norm(forward - jacobian @ C) < 1e-10 * scale


def powers(matrix, k):
    """1 + matrix + ... + matrix^(k - 1)."""
    return sum(np.linalg.matrix_power(matrix, j) for j in range(k))


CHORD_START = np.linalg.inv(jacobian_of_root(np.zeros(N)))


def theory(problem, y, inverse, k, damping=1.0):
    """The truncated inverse times -df/da = 1 (T = M y + a, f = ... - a, gradient = H y - a): d sum (1 - d B^-1 A)^k B^-1."""
    jacobian = {fixed_point: M - np.eye(N), root: jacobian_of_root(np.asarray(y)), minimum: SYMMETRIC}[problem]
    sign = -1 if problem is fixed_point else 1  # of -df/da
    inverse = inverse if np.ndim(inverse) else inverse * np.eye(N)
    return sign * damping * powers(np.eye(N) - damping * inverse @ jacobian, k) @ inverse


TRUNCATED = {
    "one_step": (fixed_point, PICARD, OneStep(), (-1, 1)),
    "one_step-anderson": (fixed_point, ANDERSON, OneStep(), (-1, 1)),
    "one_step-chord": (root, CHORD, OneStep(), (CHORD_START, 1)),
    "one_step-rate": (minimum, BFGS, OneStep(preconditioner=0.2), (0.2, 1)),
    "neumann-1": (fixed_point, PICARD, Neumann(1), (-1, 1)),
    "neumann-2": (fixed_point, PICARD, Neumann(2), (-1, 2)),
    "neumann-9": (fixed_point, ANDERSON, Neumann(9), (-1, 9)),
    "neumann-chord": (root, CHORD, Neumann(3), (CHORD_START, 3)),
    "neumann-start": (root, NEWTON, Neumann(3, "start"), (CHORD_START, 3)),
    "neumann-identity": (root, NEWTON, Neumann(4, "identity"), (1, 4)),
    "neumann-rate": (minimum, BFGS, Neumann(5, 0.2), (0.2, 5)),
    "phantom-1": (fixed_point, PICARD, Phantom(1), (-1, 1, 0.5)),
    "phantom-6": (fixed_point, PICARD, Phantom(6, 0.8), (-1, 6, 0.8)),
    "phantom-root": (root, CHORD, Phantom(3, 0.7), (CHORD_START, 3, 0.7)),
    "shine-chord": (root, CHORD, Shine(), (CHORD_START, 1)),
    "truncated-1": (fixed_point, PICARD, Truncated(1), (-1, 1)),
    "truncated-7": (fixed_point, PICARD, Truncated(7), (-1, 7)),
    "truncated-damped": (fixed_point, optx.FixedPointIteration(1e-14, 1e-14, damp=0.4), Truncated(5), (-1, 5, 0.6)),
    "truncated-chord": (root, CHORD, Truncated(3), (CHORD_START, 3)),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", rows(TRUNCATED, "one_step", "neumann-2", "phantom-6", "shine-chord", "truncated-7"))
def test_truncated_has_the_error_of_its_theory(name):
    """The derivative is that of the truncated series, so that its error is (1 - B^-1 A)^k times the derivative."""
    problem, solver, adjoint, series = TRUNCATED[name]
    f = value((problem, solver, adjoint))
    a, c = jnp.asarray(A), jnp.asarray(C)
    y, pullback = jax.vjp(f, a)
    expected = theory(problem, y, *series)
    np.testing.assert_allclose(pullback(c)[0], expected.T @ C, rtol=FORMULA, atol=FORMULA)
    np.testing.assert_allclose(jax.jvp(f, (a,), (c,))[1], expected @ C, rtol=FORMULA, atol=FORMULA)


@pytest.mark.slow
def test_the_error_falls_by_the_contraction(float64):
    """M is 0.7 times a rotation: each term lowers the error by exactly 0.7, over twelve decades."""
    errors = []
    for terms in (1, 5, 20, 60):
        gradient = jax.grad(lambda a, k=terms: value((fixed_point, PICARD, Neumann(k)))(a) @ C)(jnp.asarray(A))
        errors.append(np.linalg.norm(gradient - exact(fixed_point, None).T @ C))
    size = np.linalg.norm(exact(fixed_point, None).T @ C)
    np.testing.assert_allclose(errors, [0.7**k * size for k in (1, 5, 20, 60)], rtol=1e-4)


def test_one_step_of_newton_is_implicit_with_the_last_jacobian(float64):
    """After three steps the y that is returned is y_3, and the factors are those of the Jacobian at y_2."""
    y, a = np.zeros(N), 3 * A
    for _ in range(3):
        before, y = y, y - np.linalg.solve(jacobian_of_root(y), np.asarray(nonlinear(y, a)))

    def f(a, adjoint):
        return optx.root_find(nonlinear, NEWTON, jnp.zeros(N), a, adjoint=adjoint, max_steps=3, throw=False).value

    for adjoint in (OneStep(), Shine()):
        found, pullback = jax.vjp(lambda a, adjoint=adjoint: f(a, adjoint), jnp.asarray(a))
        np.testing.assert_allclose(found, y, rtol=1e-10)
        np.testing.assert_allclose(
            pullback(jnp.asarray(C))[0], np.linalg.solve(jacobian_of_root(before).T, C), rtol=1e-9
        )


@pytest.mark.slow
def test_shine_is_the_solvers_own_inverse(float64):
    """Broyden's, Anderson's and BFGS's, unrefined: what the solver's final state says, in both modes."""
    a, c = jnp.asarray(A), jnp.asarray(C)
    state = root(BROYDEN, Shine(), a).state
    forward, transposed = BROYDEN.inverse(state)
    f = value((root, BROYDEN, Shine()))
    np.testing.assert_allclose(jax.vjp(f, a)[1](c)[0], transposed(c), rtol=FORMULA)
    np.testing.assert_allclose(jax.jvp(f, (a,), (c,))[1], forward(c), rtol=FORMULA)
    f, hessian = value((minimum, BFGS, Shine())), minimum(BFGS, Shine(), a).state.f_info.hessian_inv
    np.testing.assert_allclose(jax.vjp(f, a)[1](c)[0], hessian.mv(c), rtol=FORMULA)
    f = value((fixed_point, ANDERSON, Shine()))
    reverse, forward = jax.vjp(f, a)[1](c)[0], jax.jvp(f, (a,), (c,))[1]
    np.testing.assert_allclose(reverse @ a, jax.jvp(f, (a,), (a,))[1] @ c, rtol=FORMULA)
    assert np.linalg.norm(forward - exact(fixed_point, None) @ C) < np.linalg.norm(C - exact(fixed_point, None) @ C)


@pytest.mark.usefixtures("float64")
@pytest.mark.slow
@pytest.mark.parametrize(("problem", "solver"), [(root, BROYDEN), (fixed_point, ANDERSON), (root, CHORD)])
def test_refinement_lowers_the_residual(problem, solver):
    """Never up, and to rounding in as many steps as there are unknowns."""
    seen = []
    for refine in range(N + 1):
        adjoint = Shine(refine, lambda residual, steps: seen.append((float(residual), int(steps))))
        jax.block_until_ready(jax.grad(lambda a, s=adjoint: value((problem, solver, s))(a) @ C)(jnp.asarray(A)))
        jax.effects_barrier()
    residuals = [residual for residual, _ in seen]
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in zip(residuals, residuals[1:], strict=False))
    assert residuals[-1] < 1e-12


@pytest.mark.slow
def test_reports_of_the_adjoint_solve(float64):
    """Its own residual and steps, for each lane; acceleration and a preconditioner save steps."""

    def slow(solver, adjoint, a):
        return optx.fixed_point(lambda y, a: a[0] * (M @ y) + a, solver, a, a, adjoint=adjoint, max_steps=5000)

    def report(adjoint, solver=PICARD, problem=slow):
        seen = []
        adjoint = adjoint(lambda residual, steps: seen.append((float(residual), int(steps))))
        batch = jnp.asarray(0.95 / 0.7 * np.array([[1.0, 2.0, 3.0, 4.0], [-1.0, 2.0, -3.0, 4.0]]))
        jax.block_until_ready(jax.vmap(jax.grad(lambda a: problem(solver, adjoint, a).value @ C))(batch))
        jax.effects_barrier()
        assert len(seen) == 2
        return max(r for r, _ in seen), max(s for _, s in seen)

    plain = report(lambda record: Iterated(1e-8, 1e-8, accelerate=None, record=record))
    fast = report(lambda record: Iterated(1e-8, 1e-8, record=record))
    assert max(plain[0], fast[0]) < 1e-6
    assert np.log(1e-8) / np.log(0.95) * 0.9 < plain[1] < 450
    assert fast[1] < 20
    reused = report(lambda record: Reuse(record=record), NEWTON, root)
    assert reused[1] <= 2
    assert reused[0] < 1e-11


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("rtol", rows([1e-2, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12], 1e-6))
def test_the_tolerance_of_iterated_means_what_it_says(rtol):
    """The iteration stops at a residual of the tolerance, so that its error is at most 1 / (1 - 0.7) times as large, and more
    than a hundredth of it: six decades."""
    adjoint = Iterated(rtol, rtol, accelerate=None)
    gradient = jax.grad(lambda a: value((fixed_point, PICARD, adjoint))(a) @ C)(jnp.asarray(A))
    exactly = exact(fixed_point, None).T @ C
    error = np.linalg.norm(gradient - exactly) / np.linalg.norm(C)
    bound = rtol * (1 + np.linalg.norm(exactly)) * N / 0.3
    assert bound / 100 < error < bound or (rtol == 1e-12 and error < bound)


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
@pytest.mark.parametrize("name", rows(SECOND, "reuse"))
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
