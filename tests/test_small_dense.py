"""`SmallDense`: up to four unknowns without LAPACK."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from lineax_cases import ROUND_OFF, system

from implicitexp.adjoints.linear.small_dense import SmallDense
from implicitexp.adjoints.linear.solvers import Auto

BATCH = 10_010  # of seven families
FAMILIES = ("random", "rows", "columns", "both", "nearly_singular", "permuted", "symmetric")


def matrices(family, n, count, rng, smallest):
    """`count` matrices of n by n; `smallest`: the singular value that makes a matrix nearly singular."""
    a = rng.normal(size=(count, n, n))
    scales = 10.0 ** rng.uniform(-12, 12, size=(2, count, n))
    if family in ("rows", "both"):
        a = a * scales[0][:, :, None]
    if family in ("columns", "both"):
        a = a * scales[1][:, None, :]
    if family == "nearly_singular":
        u, s, v = np.linalg.svd(a)
        s[:, -1] = smallest * s[:, 0]
        a = (u * s[:, None, :]) @ v
    if family == "permuted":
        places = np.argsort(rng.uniform(size=(count, n)), axis=1)
        a = np.eye(n)[places] * rng.uniform(1, 2, size=(count, n, 1)) + np.triu(a, 1)[np.arange(count)[:, None], places]
    return a + a.transpose(0, 2, 1) if family == "symmetric" else a


def extended(a, b):
    """x with A x = b for a batch, in 80-bit numbers, with pivoting on rows that are scaled to size one."""
    a, b = a.astype(np.longdouble), b.astype(np.longdouble)
    size = np.abs(a).max(axis=2, keepdims=True)
    a, b = a / size, b / size
    columns = np.abs(a).max(axis=1, keepdims=True)
    a, n, every = a / columns, a.shape[1], np.arange(len(a))
    for k in range(n):
        pivot = k + np.abs(a[:, k:, k]).argmax(axis=1)
        for x in (a, b):
            x[every, k], x[every, pivot] = x[every, pivot].copy(), x[every, k].copy()
        factor = a[:, k + 1 :, k] / a[:, k, k][:, None]
        a[:, k + 1 :] -= factor[:, :, None] * a[:, k : k + 1]
        b[:, k + 1 :] -= factor[:, :, None] * b[:, k : k + 1]
    x = np.zeros_like(b)
    for k in reversed(range(n)):
        x[:, k] = (b[:, k] - (a[:, k, k + 1 :, None] * x[:, k + 1 :]).sum(axis=1)) / a[:, k, k][:, None]
    return x / columns[:, 0, :, None]


def errors(solver, a, b, exact, size, transposed):
    """The largest error of each system in units of eps |A^-1| |A| |x| (R. D. Skeel 1979): of order one for a method that
    perturbs each entry of A by its own rounding. It does not change when rows or columns are scaled."""

    def one(a, b):
        operator = lx.MatrixLinearOperator(a)
        state = solver.init(operator, {})
        if transposed:
            operator, state = operator.T, solver.transpose(state, {})[0]
        return lx.linear_solve(operator, b, solver, state=state, throw=False).value

    x = np.asarray(jax.jit(jax.vmap(one))(a, b), np.longdouble)
    return (np.abs(x - exact) / (size * np.finfo(a.dtype).eps)).max(axis=1)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_rounding_is_that_of_lu(n, transposed, precision):
    """10,000 systems, most of them to a fraction of what the rounding of each entry of A would do, as LU's; none is further
    away than the worst of LU's. On scaled systems LU, whose pivots are chosen by size, loses two to four digits at worst."""
    assert np.finfo(np.longdouble).eps < 1e-18
    rng, count = np.random.default_rng(n), BATCH // len(FAMILIES)
    smallest = 1e-10 if precision == "float64" else 1e-4
    a = np.concatenate([matrices(f, n, count, rng, smallest) for f in FAMILIES]).astype(precision)
    m = a.transpose(0, 2, 1) if transposed else a
    b = (m.astype(np.float64) * rng.normal(size=(len(m), 1, n))).sum(axis=2).astype(precision)
    inverse = extended(m, np.broadcast_to(np.eye(n), m.shape))
    exact = extended(m, b[:, :, None])[:, :, 0]
    size = (np.abs(inverse) @ np.abs(m).astype(np.longdouble) @ np.abs(exact)[:, :, None])[:, :, 0]
    ours, lapack = (errors(s, a, b, exact, size, transposed) for s in (SmallDense(), lx.LU()))
    for family, own, other in zip(FAMILIES, ours.reshape(-1, count), lapack.reshape(-1, count), strict=True):
        assert np.median(own) <= max(2 * np.median(other), 0.1), family
        assert np.quantile(own, 0.99) <= 1.5, family
        assert own.max() <= max(other.max(), 2), family


def test_both_sides_of_four_unknowns(float64):
    """Four are solved; five are refused by name, and `Auto` goes over to LU there."""
    for n in (1, 4):
        a, b = system(n)
        x = lx.linear_solve(lx.MatrixLinearOperator(a), b, SmallDense()).value
        np.testing.assert_allclose(a @ x, b, rtol=ROUND_OFF, atol=ROUND_OFF)
    with pytest.raises(ValueError, match="up to 4 unknowns, and this one has 5.*Auto"):
        lx.linear_solve(lx.MatrixLinearOperator(jnp.eye(5)), jnp.ones(5), SmallDense())
    with pytest.raises(ValueError, match="3 by 2"):
        lx.linear_solve(lx.MatrixLinearOperator(jnp.ones((3, 2))), jnp.ones(3), SmallDense())
    for n, taken in ((4, SmallDense), (5, lx.LU)):
        a, b = system(n)
        operator = lx.MatrixLinearOperator(a)
        assert isinstance(Auto().choose(operator).solver, taken)
        np.testing.assert_allclose(a @ lx.linear_solve(operator, b, Auto()).value, b, rtol=ROUND_OFF, atol=ROUND_OFF)


def test_singular_systems_are_flagged_each_for_itself(float64):
    a = jnp.stack([jnp.eye(3), jnp.ones((3, 3)), jnp.zeros((3, 3)), jnp.full((3, 3), jnp.nan), 2 * jnp.eye(3)])

    def one(a):
        sol = lx.linear_solve(lx.MatrixLinearOperator(a), jnp.arange(3.0), SmallDense(), throw=False)
        return sol.value, sol.result == lx.RESULTS.successful

    x, successful = jax.vmap(one)(a)
    np.testing.assert_array_equal(successful, [True, False, False, False, True])
    np.testing.assert_allclose(x[jnp.array([0, 4])], jnp.stack([jnp.arange(3.0), jnp.arange(3.0) / 2]))


@pytest.mark.slow
def test_complex_matrices_and_half_precision(float64):
    a, b = system(4)
    a, b = a + 1j * jnp.roll(a, 1), b - 2j * b
    x = lx.linear_solve(lx.MatrixLinearOperator(a), b, SmallDense()).value
    np.testing.assert_allclose(a @ x, b, rtol=ROUND_OFF, atol=ROUND_OFF)
    state = SmallDense().conj(SmallDense().init(lx.MatrixLinearOperator(a), {}), {})[0]
    np.testing.assert_allclose(a.conj() @ SmallDense().compute(state, b, {})[0], b, rtol=ROUND_OFF, atol=ROUND_OFF)
    half = lx.linear_solve(
        lx.MatrixLinearOperator(jnp.eye(2, dtype=jnp.float16) / 4), jnp.ones(2, jnp.float16), SmallDense()
    )
    assert half.value.dtype == jnp.float16
    np.testing.assert_array_equal(half.value, [4, 4])


@pytest.mark.slow
def test_derivatives_of_a_solve(float64):
    """First and second, forward and reverse, against those of LU."""
    a, b = system(3)

    def loss(solver, a):
        return jnp.sum(jnp.sin(lx.linear_solve(lx.MatrixLinearOperator(a), b, solver).value))

    for derivative in (jax.grad, jax.jacfwd, lambda f: jax.jacfwd(jax.grad(f)), lambda f: jax.jacrev(jax.jacfwd(f))):
        ours, lapack = (derivative(lambda a, s=s: loss(s, a))(a) for s in (SmallDense(), lx.LU()))
        np.testing.assert_allclose(ours, lapack, rtol=1e-10, atol=1e-10)
