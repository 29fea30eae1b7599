"""Cases 9 and 10: many small roots, and a large one with a dense Jacobian."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx

from benchmarks.peers import jaxopt_programs
from benchmarks.peers.cases import Case, Program, Reference
from implicitexp import adjoints
from implicitexp.adjoints import Auto, Reuse, Shine
from implicitexp.solvers.broyden import Broyden

TOLERANCE = 1e-8
MAX_STEPS = 100
ONE_ROOT = "No root finder of JAXopt but Broyden's method can be compiled; that is its row."


def equation(y, args):
    """y + tanh(M y) / 2 - a = 0, which has one root for |M| < 2. Written without a product of matrices for small M."""
    matrix, a = args
    product = jnp.sum(matrix * y, axis=1) if y.size <= 4 else matrix @ y
    return y + 0.5 * jnp.tanh(product) - a


def find(solver: optx.AbstractRootFinder, adjoint: optx.AbstractAdjoint) -> Callable:
    """(matrix, a) -> the root, from zero on."""

    def root(matrix, a):
        sol = optx.root_find(
            equation, solver, jnp.zeros_like(a), (matrix, a), adjoint=adjoint, max_steps=MAX_STEPS, throw=False
        )
        return sol.value

    return root


def broyden(matrix, a):
    return jaxopt_programs.root(equation, jnp.zeros_like(a), (matrix, a), TOLERANCE, MAX_STEPS)


def gradient(root: Callable, many: bool) -> Callable:
    """Of the sum of squares, by the matrix and a."""

    def loss(matrix, a):
        return jnp.sum((jax.vmap(root) if many else root)(matrix, a) ** 2)

    return jax.grad(loss, argnums=(0, 1))


def _newton(solver: lx.AbstractLinearSolver | None = None) -> optx.Newton:
    return (
        optx.Newton(TOLERANCE, TOLERANCE) if solver is None else optx.Newton(TOLERANCE, TOLERANCE, linear_solver=solver)
    )


# -- case 9 ---------------------------------------------------------------------------------------------------------------


def many_roots(small: bool) -> Case:
    """Case 9."""
    count, n = (3 if small else 10_000), 2
    rng = np.random.default_rng(9)
    matrix = rng.normal(size=(count, n, n))
    matrix /= 1 + np.linalg.norm(matrix, axis=(1, 2), keepdims=True)
    args = (jnp.asarray(matrix), jnp.asarray(rng.normal(size=(count, n))))
    roots = {
        ("ours", "implicitexp", "Newton and ImplicitAdjoint with Auto()"): find(
            _newton(Auto()), optx.ImplicitAdjoint(linear_solver=Auto())
        ),
        ("jax", "Optimistix", "Newton, ImplicitAdjoint()"): find(_newton(), optx.ImplicitAdjoint()),
        ("jax", "Optimistix", "Newton and ImplicitAdjoint with LU()"): find(
            _newton(lx.LU()), optx.ImplicitAdjoint(linear_solver=lx.LU())
        ),
        ("jax", "JAXopt", "Broyden, implicit"): broyden,
    }
    programs = [Program(*who, gradient(root, True)) for who, root in roots.items()]  # pyright: ignore[reportArgumentType]
    reference = _reference(*args)
    return Case(
        9,
        f"{count:,} roots of size {n}, vmapped, 1e-8",
        TOLERANCE,
        args,
        [*programs, _small_floor(*args)],
        lambda: reference,
        remarks=(ONE_ROOT,),
    )


def _small_floor(matrix, a) -> Program:
    """Newton's method written out for 2 x 2, as many steps as the slowest root takes; the transposed system; the vjp."""
    steps = _newton_steps(np.asarray(matrix), np.asarray(a))

    def solve(m, b):
        det = m[0, 0] * m[1, 1] - m[0, 1] * m[1, 0]
        return jnp.stack([m[1, 1] * b[0] - m[0, 1] * b[1], m[0, 0] * b[1] - m[1, 0] * b[0]]) / det

    def one(matrix, a):
        def step(_, y):
            return y - solve(jax.jacfwd(equation)(y, (matrix, a)), equation(y, (matrix, a)))

        y = jax.lax.fori_loop(0, steps, step, jnp.zeros_like(a))
        adjoint = solve(jax.jacfwd(equation)(y, (matrix, a)).T, -2 * y)
        return jax.vjp(lambda args: equation(y, args), (matrix, a))[1](adjoint)[0]

    return Program("floor", "floor", f"{steps} steps of Newton by hand, one solve, one vjp", jax.vmap(one))


# -- case 10 --------------------------------------------------------------------------------------------------------------


def large_root(small: bool) -> Case:
    """Case 10."""
    n = 8 if small else 1000
    rng = np.random.default_rng(10)
    args = (jnp.asarray(rng.normal(size=(n, n)) / np.sqrt(n)), jnp.asarray(rng.normal(size=n)))
    roots = {
        ("ours", "implicitexp", "Newton, Reuse()"): find(_newton(), Reuse()),
        ("ours", "implicitexp", "Newton, Shine()"): find(_newton(), Shine()),
        ("ours", "implicitexp", "Newton and ImplicitAdjoint with Auto()"): find(
            _newton(Auto()), optx.ImplicitAdjoint(linear_solver=Auto())
        ),
        ("ours", "implicitexp", "Broyden, Reuse()"): find(Broyden(TOLERANCE, TOLERANCE), adjoints.Reuse()),
        ("jax", "Optimistix", "Newton, ImplicitAdjoint()"): find(_newton(), optx.ImplicitAdjoint()),
        ("jax", "Optimistix", "Newton and ImplicitAdjoint with GMRES"): find(
            _newton(lx.GMRES(TOLERANCE, TOLERANCE)),
            optx.ImplicitAdjoint(linear_solver=lx.GMRES(TOLERANCE, TOLERANCE)),
        ),
        ("jax", "JAXopt", "Broyden, implicit"): broyden,
    }
    programs = [Program(*who, gradient(root, False)) for who, root in roots.items()]  # pyright: ignore[reportArgumentType]
    reference = _reference(*(x[None] for x in args))
    return Case(
        10,
        f"one root, n = {n}, dense Jacobian, 1e-8",
        TOLERANCE,
        args,
        [*programs, _large_floor(*args)],
        lambda: reference,
        remarks=(ONE_ROOT,),
    )


def _large_floor(matrix, a) -> Program:
    """Newton's method with LU, a solve with the transposed factors of the last step, and the vjp."""
    steps = _newton_steps(np.asarray(matrix)[None], np.asarray(a)[None])

    def program(matrix, a):
        def step(_, carry):
            y, _, _ = carry
            factors = jax.scipy.linalg.lu_factor(jax.jacfwd(equation)(y, (matrix, a)))
            return y - jax.scipy.linalg.lu_solve(factors, equation(y, (matrix, a))), *factors

        start = (jnp.zeros_like(a), jnp.zeros_like(matrix), jnp.zeros(a.size, jnp.int32))
        y, *factors = jax.lax.fori_loop(0, steps, step, start)
        adjoint = jax.scipy.linalg.lu_solve(tuple(factors), -2 * y, trans=1)
        return jax.vjp(lambda args: equation(y, args), (matrix, a))[1](adjoint)[0]

    return Program("floor", "floor", f"{steps} steps of Newton by hand, one solve with the last LU, one vjp", program)


# -- the reference --------------------------------------------------------------------------------------------------------


def _jacobians(matrix, a, y):
    """df/dy of each root, and the slope of its tanh."""
    slope = 0.5 / np.cosh(np.einsum("kij,kj->ki", matrix, y)) ** 2
    return np.eye(a.shape[1]) + slope[..., None] * matrix, slope


def _residual(matrix, a, y):
    return y + 0.5 * np.tanh(np.einsum("kij,kj->ki", matrix, y)) - a


def _newton_steps(matrix, a) -> int:
    """As many as the slowest root takes to a step below the tolerance."""
    y, steps = np.zeros_like(a), 0
    while True:
        step = np.linalg.solve(_jacobians(matrix, a, y)[0], _residual(matrix, a, y)[..., None])[..., 0]
        y, steps = y - step, steps + 1
        if np.max(np.abs(step) / (TOLERANCE + TOLERANCE * np.abs(y))) < 1:
            return steps


def _reference(matrix, a) -> Reference:
    """By NumPy: Newton's method until it stands still, and the implicit function theorem; the uncertainty is what one more
    step changes."""
    matrix, a = np.asarray(matrix), np.asarray(a)
    y, found = np.zeros_like(a), []
    for i in range(12):
        jacobian, slope = _jacobians(matrix, a, y)
        if i >= 10:
            adjoint = np.linalg.solve(jacobian.transpose(0, 2, 1), 2 * y[..., None])[..., 0]
            by_matrix = -(slope * adjoint)[..., None] * y[:, None, :]
            found.append((by_matrix, adjoint))
        y = y - np.linalg.solve(jacobian, _residual(matrix, a, y)[..., None])[..., 0]
    return Reference.of_two(found[1], found[0])
