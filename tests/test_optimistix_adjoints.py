"""Adjoints for Optimistix: exact ones against closed forms, truncated ones against the error of their theory."""

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
from optimistix_cases import (
    ANDERSON,
    BFGS,
    BROYDEN,
    CHORD,
    EXACT,
    FORMULA,
    NEWTON,
    PICARD,
    SYMMETRIC,
    A,
    C,
    M,
    N,
    exact,
    fixed_point,
    jacobian_of_root,
    minimum,
    nonlinear,
    root,
    rows,
    value,
)

from implicitexp.adjoints.implicit.fixed_points import Iterated, Neumann, OneStep, Phantom, Reuse, Shine
from implicitexp.adjoints.implicit.last_steps import Truncated
from implicitexp.solvers.anderson import AndersonAcceleration


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


def test_reuse_of_a_bad_inverse(float64):
    """A contraction of 0.99, on which Anderson's five differences say little: all of its 100 directions are needed, and kept."""
    rng = np.random.default_rng(13)
    basis = np.linalg.qr(rng.normal(size=(100, 100)))[0]
    matrix = jnp.asarray((basis * np.linspace(-0.99, 0.99, 100)) @ basis.T)
    solver = AndersonAcceleration(1e-8, 1e-8)

    def total(a):
        y = optx.fixed_point(lambda y, a: matrix @ y + a, solver, a, a, adjoint=Reuse(), max_steps=1000).value
        return jnp.sum(y)

    exactly = np.linalg.solve(np.eye(100) - matrix.T, np.ones(100))
    gradient = jax.grad(total)(jnp.asarray(rng.normal(size=100)))
    np.testing.assert_allclose(gradient, exactly, atol=1e-7 * np.linalg.norm(exactly))  # 1e-9 times a condition of 100


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("solver", "reach"), [(PICARD, 2**-39), (optx.FixedPointIteration(1e-5, 1e-5), 1e-7)])
def test_the_adjoint_of_a_rough_solution_is_no_better_than_it(solver, reach):
    """eps^(3/4), or a hundredth of the solver's rtol: M is 0.7 times a rotation, so that the plain steps can be counted."""
    seen = []
    adjoint = Iterated(accelerate=None, record=lambda residual, steps: seen.append((float(residual), int(steps))))
    jax.block_until_ready(jax.grad(lambda a: value((fixed_point, solver, adjoint))(a) @ C)(jnp.asarray(A)))
    jax.effects_barrier()
    ((residual, steps),) = seen
    assert abs(steps - np.log(reach) / np.log(0.7)) < 4  # the tolerance is between once and twice `reach`, as |w| is
    assert residual < 2 * reach
