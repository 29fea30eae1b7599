"""The linear solvers on what Lineax asks of its own: kinds of operator, batches, complex numbers, several types of number."""

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from lineax_cases import system

from implicitexp.adjoints.linear.small_dense import SmallDense
from implicitexp.adjoints.linear.solvers import Auto, NeumannSeries, Preconditioned, Recorded, jacobi


def operators(n):
    """Kinds of operator of Lineax's own tests."""
    a, _ = system(n)
    structure = jax.ShapeDtypeStruct((n,), jnp.float64)
    diagonal = jnp.arange(1.0, n + 1)
    return {
        "transposed": lx.MatrixLinearOperator(a).T,
        "function": lx.FunctionLinearOperator(lambda x: a @ x, structure),
        "jacobian": lx.JacobianLinearOperator(lambda x, _: jnp.sin(a @ x), jnp.ones(n) / 7),
        "diagonal": lx.DiagonalLinearOperator(diagonal),
        "tridiagonal": lx.TridiagonalLinearOperator(5 * diagonal, diagonal[1:], 2 * diagonal[1:]),
        "identity": lx.IdentityLinearOperator(structure),
        "upper": lx.MatrixLinearOperator(jnp.triu(a), lx.upper_triangular_tag),
        "definite": lx.MatrixLinearOperator(a @ a.T, lx.positive_semidefinite_tag),
        "product": lx.MatrixLinearOperator(a)
        @ (-2.5 * lx.MatrixLinearOperator(a) + lx.DiagonalLinearOperator(diagonal)),
    }


GENERAL = {
    "small_dense": (4, SmallDense()),
    "auto-5": (5, Auto()),
    "auto-large": (5, Auto(batch=2**40)),  # products only
}


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", GENERAL)
def test_structured_operators_and_many_right_hand_sides(name):
    """Each kind of operator, by a state that is used again: five right-hand sides under vmap, and the derivative by the
    right-hand side, which is the transposed solve."""
    n, solver = GENERAL[name]
    b = jnp.asarray(np.random.default_rng(3).normal(size=(5, n)))

    @jax.jit
    def run(b):
        found = {}
        for kind, operator in operators(n).items():
            arrays, rest = eqx.partition(solver.init(operator, {}), eqx.is_array)
            state = eqx.combine(jax.lax.stop_gradient(arrays), rest)

            def solve(b, operator=operator, state=state):
                return lx.linear_solve(operator, b, solver, state=state).value

            found[kind] = (jax.vmap(solve)(b), jax.vjp(solve, b[0])[1](b[1])[0])
        return found

    for kind, (many, pulled) in run(b).items():
        matrix = np.asarray(operators(n)[kind].as_matrix())
        np.testing.assert_allclose(many, np.linalg.solve(matrix, b.T).T, rtol=1e-9, atol=1e-10, err_msg=kind)
        np.testing.assert_allclose(pulled, np.linalg.solve(matrix.T, b[1]), rtol=1e-9, atol=1e-10, err_msg=kind)


@pytest.mark.slow
@pytest.mark.parametrize("name", GENERAL)
def test_batches_of_matrices_of_vectors_and_of_both(name, float64):
    """A tangent through vmap, and vmap of tangents, of matrix, right-hand side and both, against those of jnp."""
    n, solver = GENERAL[name]
    rng = np.random.default_rng(4)
    a, da = (jnp.asarray(x + 3 * np.eye(n)) for x in rng.normal(size=(2, 3, n, n)))
    b, db = (jnp.asarray(x) for x in rng.normal(size=(2, 3, n)))

    def ours(a, b):
        return lx.linear_solve(lx.MatrixLinearOperator(a), b, solver).value

    for axes in ((0, 0), (0, None), (None, 0)):
        at = (a if axes[0] == 0 else a[0], b if axes[1] == 0 else b[0])
        along = (da if axes[0] == 0 else da[0], db if axes[1] == 0 else db[0])
        expected = jax.jvp(jax.vmap(jnp.linalg.solve, axes), at, along)
        for found in (
            jax.jit(lambda at, along, axes=axes: jax.jvp(jax.vmap(ours, axes), at, along))(at, along),
            jax.jit(jax.vmap(lambda at, along: jax.jvp(ours, at, along), (axes, axes)))(at, along),
        ):
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_allclose(one, other, rtol=1e-8, atol=1e-9)


COMPLEX = {
    **GENERAL,
    "recorded": (5, Recorded(lx.LU())),
    "preconditioned": (5, Preconditioned(lx.GMRES(1e-13, 1e-13), jacobi)),
    "neumann": (5, NeumannSeries(60, 1.0)),
    "bicgstab": (5, Preconditioned(lx.BiCGStab(1e-13, 1e-13), jacobi)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", COMPLEX)
def test_complex_systems(name, float64):
    """The solve, and the solves with the transposed and the conjugate matrix, as Lineax takes them from the state."""
    n, solver = COMPLEX[name]
    rng = np.random.default_rng(5)
    m = rng.normal(size=(n, n)) + 1j * rng.normal(size=(n, n))
    a = np.eye(n) - 0.3 * m / np.linalg.norm(m, 2)
    b = rng.normal(size=n) - 1j * rng.normal(size=n)
    operator = lx.MatrixLinearOperator(jnp.asarray(a))
    np.testing.assert_allclose(lx.linear_solve(operator, b, solver).value, np.linalg.solve(a, b), rtol=1e-9)
    state = solver.init(operator, {})
    turns = [(solver.transpose(state, {}), a.T)]
    if name not in ("recorded", "auto-5"):  # Lineax's LU (0.1.1) solves with A^H where it should with conj A
        turns.append((solver.conj(state, {}), a.conj()))
    for (turned, options), matrix in turns:
        x, _, _ = solver.compute(turned, jnp.asarray(b), options)
        np.testing.assert_allclose(x, np.linalg.solve(matrix, b), rtol=1e-9)


@pytest.mark.slow
def test_numbers_of_several_types(float64):
    """Whole numbers, single and double precision in one operator, as Lineax's LU takes them."""
    one, two = (jnp.asarray(x, jnp.float32) for x in (1.0, -2.0))
    for entries in ([[one, 5.0], [two, -2.0]], [[1, 5.0], [-2, jnp.array(-2.0)]]):
        operator = lx.PyTreeLinearOperator(entries, jax.eval_shape(lambda: [3.0, 4.0]))
        for solver in (SmallDense(), Auto(), Recorded(SmallDense())):
            x = lx.linear_solve(operator, [3.0, 4.0], solver).value
            np.testing.assert_allclose(jax.tree.leaves(x), [-3.25, 1.25], rtol=1e-6)


def test_a_right_hand_side_that_is_no_number_is_flagged(float64):
    for solver in (SmallDense(), Auto(), Recorded(SmallDense())):
        solution = lx.linear_solve(lx.MatrixLinearOperator(jnp.eye(2)), jnp.array([1.0, jnp.nan]), solver, throw=False)
        assert solution.result == lx.RESULTS.nonfinite_input
