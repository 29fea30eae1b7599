"""`Products`: BiCGStab that does not break down, on systems of which some break every method that it is made of."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

from implicitexp.adjoints.implicit.linear import LinearSolve
from implicitexp.adjoints.linear.products import Products
from implicitexp.adjoints.linear.solvers import Auto, Recorded

N = 40
RTOL = np.finfo(np.float64).eps ** 0.875  # what `Products` takes by default


def rotation(rng):
    return np.linalg.qr(rng.normal(size=(N, N)))[0]


def systems():
    """A row: the matrix, and the products with it that are enough."""
    rng = np.random.default_rng(0)
    q, p, r = rotation(rng), rotation(rng), rng.normal(size=(N, N))
    contraction = 0.9 * r / np.linalg.norm(r, 2)
    angles = rng.uniform(-0.5, 0.5, N // 2)
    turns = np.kron(np.diag(np.cos(angles)), np.eye(2)) + np.kron(np.diag(np.sin(angles)), [[0, 1], [-1, 0]])
    return {
        "identity": (np.eye(N), 5),
        "minus_three": (-3 * np.eye(N), 5),
        "equilibrium": (contraction - np.eye(N), 40),  # of a fixed point: every product of b with it is negative
        "normal": (q @ turns @ q.T, 60),
        "skew": (r - r.T, 150),  # b' A b = 0: BiCGStab cannot begin
        "nearly_skew": (r - r.T + 0.1 * np.eye(N), 400),
        "rotation": (q, 150),  # GMRES sees nothing of it until the last step
        "shift": (np.roll(np.eye(N), 1, axis=0), 150),
        "ill_conditioned": (q @ np.diag(np.logspace(0, -3, N)) @ p, 2000),
        "indefinite": (q @ np.diag(np.linspace(-1, 1, N)) @ q.T, 400),
    }


def solved(matrix, b, solver=None):
    solver = Products() if solver is None else solver
    solution = lx.linear_solve(lx.MatrixLinearOperator(matrix), b, solver, throw=False)
    return solution.value, solution.result == lx.RESULTS.successful, solution.stats["num_steps"]


@pytest.mark.usefixtures("float64")
def test_systems_that_break_other_methods():
    """Each to its residual, within the products that are enough for it, for right-hand sides of any scale; one program."""
    b = np.random.default_rng(1).normal(size=N)
    found = {}
    run = jax.jit(solved)
    for name, (matrix, enough) in systems().items():
        for scale in (1.0, 1e-12):
            x, converged, products = run(jnp.asarray(matrix), scale * b)
            residual = np.linalg.norm(matrix @ x - scale * b) / np.linalg.norm(scale * b)
            rounding = (
                10 * np.finfo(float).eps * np.linalg.norm(matrix, 2) * np.linalg.norm(x / scale) / np.linalg.norm(b)
            )
            found[name, scale] = (bool(converged), residual <= RTOL + rounding, int(products) <= enough)
    assert {key: row for key, row in found.items() if row != (True, True, True)} == {}


@pytest.mark.usefixtures("float64")
def test_lanes_fail_alone():
    """A singular system without a solution among others is flagged, in no endless loop; so is one that is no number."""
    rng = np.random.default_rng(2)
    matrices = np.stack([np.eye(N) + 0.5 * rotation(rng), rng.normal(size=(N, N)), np.diag(np.arange(N)), np.eye(N)])
    b = np.ones((4, N))
    b[3, 0] = np.inf
    x, converged, _ = jax.jit(jax.vmap(solved))(jnp.asarray(matrices), jnp.asarray(b))
    np.testing.assert_array_equal(converged, [True, True, False, False])
    for i in (0, 1):
        np.testing.assert_allclose(matrices[i] @ x[i], b[i], atol=1e-9)


@pytest.mark.usefixtures("float64")
def test_limits_and_statistics():
    """At least the residual asked for, no more products than allowed, and both are said."""
    rng = np.random.default_rng(3)
    matrix, b = jnp.asarray(rng.normal(size=(N, N))), jnp.asarray(rng.normal(size=N))
    solution = lx.linear_solve(lx.MatrixLinearOperator(matrix), b, Products(max_steps=10), throw=False)
    assert solution.result == lx.RESULTS.max_steps_reached
    assert int(solution.stats["num_steps"]) <= 12  # with two that look at the residual
    near = jnp.eye(N) + 0.3 * matrix / jnp.linalg.norm(matrix, 2)

    def report(scale, rtol, atol):
        solver = Recorded(Products(jnp.asarray(rtol), jnp.asarray(atol)))
        found = lx.linear_solve(lx.MatrixLinearOperator(near), scale * b, solver).stats
        return float(found["residual"]), int(found["num_steps"])

    reports = [report(1.0, rtol, 0.0) for rtol in (1e-2, 1e-6, 1e-10)]
    assert all(residual <= rtol for (residual, _), rtol in zip(reports, (1e-2, 1e-6, 1e-10), strict=True))
    taken = [products for _, products in reports]
    assert taken == sorted(set(taken))
    assert report(1e-3, 1e-12, 1e-3 * 1e-2 * float(jnp.linalg.norm(b)))[1] == taken[0]
    with pytest.raises(ValueError, match=r"square matrix, and this one is 3 by 2; use lineax\.QR"):
        lx.linear_solve(lx.MatrixLinearOperator(jnp.ones((3, 2))), jnp.ones(3), Products())


@pytest.mark.usefixtures("float64")
def test_trees_and_the_transposed_solve():
    """Unknowns and equations of different structure; the derivative is the transposed solve."""
    rng = np.random.default_rng(4)
    matrix = jnp.asarray(np.eye(5) + 0.3 * rng.normal(size=(5, 5)))

    def product(x):
        y = matrix @ jnp.concatenate([x["a"], x["b"].ravel()])
        return (y[:4].reshape(2, 2), y[4])

    like = {"a": jax.ShapeDtypeStruct((1,), jnp.float64), "b": jax.ShapeDtypeStruct((2, 2), jnp.float64)}
    operator = lx.FunctionLinearOperator(product, like)

    def solve(b):
        x = lx.linear_solve(operator, (b[:4].reshape(2, 2), b[4]), Auto(batch=2**40)).value
        return jnp.concatenate([x["a"], x["b"].ravel()])

    b, c = jnp.arange(1.0, 6.0), jnp.array([1.0, -1.0, 2.0, 0.5, 0.0])
    x, pullback = jax.vjp(solve, b)
    np.testing.assert_allclose(x, np.linalg.solve(matrix, b), rtol=1e-10)
    np.testing.assert_allclose(pullback(c)[0], np.linalg.solve(matrix.T, c), rtol=1e-10)


def test_in_single_precision_and_in_the_framework():
    """The Jacobian of a fixed point, of 300 unknowns: with Lineax's BiCGStab a breakdown in float32."""
    rng = np.random.default_rng(5)
    matrix = rng.normal(size=(300, 300))
    matrix = 0.9 * matrix / np.linalg.norm(matrix, 2) - np.eye(300)
    b = rng.normal(size=300)
    solve = LinearSolve("auto")
    x, converged, products, residual = jax.jit(lambda a, b: solve(lambda v: a @ v, b))(
        jnp.asarray(matrix, jnp.float32), jnp.asarray(b, jnp.float32)
    )
    assert x.dtype == jnp.float32
    assert converged
    assert residual < 2e-5
    assert products <= 30
    exact = np.linalg.solve(matrix, b)
    assert np.linalg.norm(x - exact) < 1e-4 * np.linalg.norm(exact)
