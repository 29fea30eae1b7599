"""The linear solvers for Lineax: alone, inside Optimistix's Newton, and inside its implicit adjoint."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import pytest
from lineax_cases import ROUND_OFF, system

from implicitexp.adjoints.linear.products import Products
from implicitexp.adjoints.linear.small_dense import SmallDense
from implicitexp.adjoints.linear.solvers import Auto, NeumannSeries, Preconditioned, Recorded, jacobi


# Every solver, where a user of Optimistix puts it. y + 0.3 tanh(M y) - a has a Jacobian near one, so that the Neumann series
# converges, by a factor of at least three a term.
def equation(y, args):
    m, a = args
    return y + 0.3 * jnp.tanh(m @ y) - a


def exact_gradient(m, a, y):
    """Of the sum of sin y by a: (df/dy)^-T cos y."""
    jacobian = np.eye(len(a)) + 0.3 * (1 - np.tanh(m @ y) ** 2)[:, None] * np.asarray(m)
    return np.linalg.solve(jacobian.T, np.cos(y))


LINEAR_SOLVERS = {
    "small_dense": SmallDense(),
    "neumann": NeumannSeries(40),
    "preconditioned_gmres": Preconditioned(lx.GMRES(1e-12, 1e-12), jacobi),
    "preconditioned_bicgstab": Preconditioned(lx.BiCGStab(1e-12, 1e-12), jacobi),
    "preconditioned_normal": Preconditioned(lx.Normal(lx.CG(1e-12, 1e-12)), jacobi),
    "recorded_lu": Recorded(lx.LU()),
    "recorded_gmres": Recorded(lx.GMRES(1e-12, 1e-12)),
    "auto": Auto(),
}


@pytest.mark.parametrize(
    "name",
    [
        x if x in ("small_dense", "preconditioned_gmres", "auto") else pytest.param(x, marks=pytest.mark.slow)
        for x in LINEAR_SOLVERS
    ],
)
def test_in_newton_and_in_the_implicit_adjoint(name, float64):
    solver = LINEAR_SOLVERS[name]
    q, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    m, a = jnp.asarray(q), jnp.stack([jnp.array([0.5, -0.2, 0.1]), jnp.array([1.0, 2.0, -1.0])])

    def root(a):
        newton = optx.Newton(1e-12, 1e-12, linear_solver=solver)
        return optx.root_find(
            equation, newton, jnp.zeros(3), (m, a), adjoint=optx.ImplicitAdjoint(linear_solver=solver)
        ).value

    y = root(a[0])
    np.testing.assert_allclose(equation(y, (m, a[0])), 0, atol=1e-11)
    gradients = jax.jit(jax.vmap(jax.grad(lambda a: jnp.sum(jnp.sin(root(a))))))(a)
    for gradient, row in zip(gradients, a, strict=True):
        np.testing.assert_allclose(gradient, exact_gradient(m, row, np.asarray(root(row))), rtol=1e-10, atol=1e-10)


def test_trees_of_unknowns_and_of_equations(float64):
    """Unknowns and equations are trees of different structure."""

    def fn(y, a):
        x, z = y["x"], y["z"]
        return (x[0] * x[1] - a, jnp.stack([x[0] - x[1] - z, z**3 - a]))

    def value(a, solver):
        y0 = {"x": jnp.array([2.0, 1.0]), "z": jnp.array(1.0)}
        newton = optx.Newton(1e-12, 1e-12, linear_solver=solver)
        y = optx.root_find(fn, newton, y0, a, adjoint=optx.ImplicitAdjoint(linear_solver=solver)).value
        return y["x"] @ jnp.array([1.0, 2.0]) + y["z"]

    a = jnp.array(1.7)
    for derivative in (jax.grad, jax.jacfwd):
        ours, lapack = (derivative(lambda a, s=s: value(a, s))(a) for s in (SmallDense(), lx.LU()))
        np.testing.assert_allclose(ours, lapack, rtol=1e-11)


def contraction(n, size, seed=0):
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(n, n)))
    return jnp.asarray(size * q)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("terms", [1, 3])
@pytest.mark.parametrize("sign", [1, -1])
def test_neumann_series_has_the_error_of_its_theory(terms, sign):
    """x - sum = (I - s A)^terms x; the sign of s is found."""
    m, x = contraction(6, 0.7), jnp.arange(1.0, 7.0)
    a = sign * (jnp.eye(6) - m)
    for scale in (None, sign):
        solver = NeumannSeries(terms, scale)
        for transposed in (False, True):
            a_, m_ = (a.T, m.T) if transposed else (a, m)
            operator = lx.MatrixLinearOperator(a).T if transposed else lx.MatrixLinearOperator(a)
            found = lx.linear_solve(operator, a_ @ x, solver).value
            np.testing.assert_allclose(x - found, jnp.linalg.matrix_power(m_, terms) @ x, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_neumann_series_in_the_adjoint_of_a_fixed_point(float64):
    m, a = contraction(4, 0.5), jnp.arange(1.0, 5.0)

    def loss(a):
        adjoint = optx.ImplicitAdjoint(linear_solver=NeumannSeries(5))
        picard = optx.FixedPointIteration(1e-13, 1e-13)
        return jnp.sum(optx.fixed_point(lambda y, a: m @ y + a, picard, jnp.zeros(4), a, adjoint=adjoint).value)

    series = sum(jnp.linalg.matrix_power(m.T, k) @ jnp.ones(4) for k in range(5))
    np.testing.assert_allclose(jax.grad(loss)(a), series, rtol=ROUND_OFF)


def test_neumann_series_refuses_what_it_cannot_do(float64):
    with pytest.raises(ValueError, match="at least one term"):
        NeumannSeries(0)
    with pytest.raises(ValueError, match="from a space to itself"):
        lx.linear_solve(lx.MatrixLinearOperator(jnp.ones((3, 2))), jnp.ones(3), NeumannSeries(2))


def steps(solver, a, b):
    return int(lx.linear_solve(lx.MatrixLinearOperator(a), b, solver).stats["num_steps"])


def test_preconditioning_saves_steps(float64):
    """A diagonal that runs over four decades, with a little beside it; 60 unknowns are more than GMRES keeps directions."""
    rng = np.random.default_rng(0)
    a = jnp.asarray(np.diag(np.logspace(0, 4, 60)) + 0.1 * rng.normal(size=(60, 60)))
    b = jnp.asarray(rng.normal(size=60))
    gmres = lx.GMRES(1e-10, 1e-10, max_steps=1000)
    plain = lx.linear_solve(lx.MatrixLinearOperator(a), b, gmres, throw=False)
    assert steps(Preconditioned(gmres, jacobi), a, b) < 0.5 * int(plain.stats["num_steps"])
    near = Preconditioned(gmres, lx.MatrixLinearOperator(jnp.linalg.inv(a) * (1 + 1e-3)))
    assert steps(near, a, b) < 0.5 * int(plain.stats["num_steps"])


def test_a_definite_matrix_under_cg(float64):
    rng = np.random.default_rng(0)
    root = jnp.asarray(rng.normal(size=(20, 20)))
    a = jnp.diag(jnp.logspace(0, 4, 20)) + 0.1 * root @ root.T
    cg = lx.CG(1e-10, 1e-10, max_steps=2000)
    for sign, tag in ((1, lx.positive_semidefinite_tag), (-1, lx.negative_semidefinite_tag)):
        operator = lx.MatrixLinearOperator(sign * a, tag)
        plain, ours = (lx.linear_solve(operator, root[0], s) for s in (cg, Preconditioned(cg, jacobi)))
        np.testing.assert_allclose(sign * a @ ours.value, root[0], rtol=1e-7, atol=1e-7)
        assert ours.stats["num_steps"] < plain.stats["num_steps"]


def test_the_transposed_solve_has_the_transposed_preconditioner(float64):
    """An inverse that is exact, and of a matrix far from symmetric: one step forwards, one backwards."""
    a, b = system(6)
    a = a.at[0, 5].set(50.0)
    seen = []
    inner = Preconditioned(lx.GMRES(1e-10, 1e-10), lx.MatrixLinearOperator(jnp.linalg.inv(a)))
    recorded = Recorded(inner, lambda residual, steps: seen.append((float(residual), int(steps))))
    gradient = jax.grad(lambda b: jnp.sum(lx.linear_solve(lx.MatrixLinearOperator(a), b, recorded).value))(b)
    jax.effects_barrier()
    np.testing.assert_allclose(gradient, np.linalg.solve(a.T, np.ones(6)), rtol=1e-9, atol=1e-10)
    assert len(seen) == 2
    assert seen[0][1] == seen[1][1] <= 3


@pytest.mark.slow
def test_a_preconditioner_that_depends_on_the_parameters_is_not_differentiated(float64):
    m, a = 0.3 * contraction(3, 1.0), jnp.array([0.5, -0.2, 0.1])

    def loss(a):
        solver = Preconditioned(lx.GMRES(1e-12, 1e-12), lx.DiagonalLinearOperator(1 + 0.1 * a))
        picard = optx.FixedPointIteration(1e-13, 1e-13)
        adjoint = optx.ImplicitAdjoint(linear_solver=solver)
        return jnp.sum(optx.fixed_point(lambda y, a: m @ y + a, picard, jnp.zeros(3), a, adjoint=adjoint).value)

    np.testing.assert_allclose(jax.grad(loss)(a), np.linalg.solve(np.eye(3) - m.T, np.ones(3)), rtol=1e-9)


def test_recorded_says_how_far_a_solution_is_one(float64):
    a, b = system(5)
    exact = lx.linear_solve(lx.MatrixLinearOperator(a), b, Recorded(lx.LU()))
    assert exact.stats["num_steps"] == 1
    assert exact.stats["residual"] < ROUND_OFF
    m = contraction(5, 0.5)
    rough = lx.linear_solve(lx.MatrixLinearOperator(jnp.eye(5) - m), b, Recorded(NeumannSeries(4)))
    assert rough.stats["num_steps"] == 4
    np.testing.assert_allclose(rough.stats["residual"], 0.5**4, rtol=1e-10)  # m is half of a rotation
    zero = lx.linear_solve(lx.MatrixLinearOperator(a), 0 * b, Recorded(lx.LU()))
    assert zero.stats["residual"] == 0


def test_recorded_sees_the_adjoint_solve_of_each_lane(float64):
    m, a = contraction(4, 0.5), jnp.arange(8.0).reshape(2, 4) / 8
    seen = []
    linear = Recorded(NeumannSeries(40), lambda residual, steps: seen.append((float(residual), int(steps))))

    def loss(a):
        adjoint = optx.ImplicitAdjoint(linear_solver=linear)
        picard = optx.FixedPointIteration(1e-13, 1e-13)
        return jnp.sum(optx.fixed_point(lambda y, a: jnp.sin(m @ y + a), picard, a, a, adjoint=adjoint).value)

    jax.block_until_ready(jax.jit(jax.vmap(jax.grad(loss)))(a))
    jax.effects_barrier()
    assert [steps for _, steps in seen] == [40, 40]
    assert max(residual for residual, _ in seen) <= 0.5**40
    assert seen[0][0] != seen[1][0]


def twice(n, tags=()):
    """Twice the identity, as a function."""
    return lx.FunctionLinearOperator(lambda v: 2 * v, jax.ShapeDtypeStruct((n,), jnp.float64), tags)


AUTO = {
    "diagonal": (9, (lx.diagonal_tag,), 1, lx.Diagonal, "diagonal"),
    "triangular": (9, (lx.upper_triangular_tag,), 1, lx.Triangular, "triangular"),
    "tridiagonal": (9, (lx.tridiagonal_tag,), 1, lx.Tridiagonal, "Thomas"),
    "four": (4, (), 1, SmallDense, "4 unknowns, at most 4"),
    "five": (5, (), 1, lx.LU, "5 unknowns, at most 256"),
    "definite": (256, (lx.positive_semidefinite_tag,), 1, lx.Cholesky, "definite: Cholesky"),
    "large": (257, (), 1, Products, "257 unknowns, above 256"),
    "large_definite": (257, (lx.negative_semidefinite_tag,), 1, lx.CG, "definite: CG"),
    "batch": (200, (), 3356, Products, "3356 matrices of 200 by 200, 1.0 GiB"),
    "smaller_batch": (200, (), 3355, lx.LU, "no structure: LU"),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", AUTO)
def test_auto_says_what_it_takes_and_why(name):
    n, tags, batch, taken, reason = AUTO[name]
    choice = Auto(batch=batch).choose(twice(n, tags))
    assert isinstance(choice.solver, taken)
    assert reason in choice.reason


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", AUTO)
def test_auto_solves(name):
    """In both directions, tags and all."""
    n, tags, batch, _, _ = AUTO[name]
    given, b = twice(n, tags), jnp.arange(1.0, n + 1)
    np.testing.assert_allclose(lx.linear_solve(given, b, Auto(batch=batch)).value, b / 2, rtol=1e-10)
    gradient = jax.grad(lambda b: jnp.sum(lx.linear_solve(given, b, Auto(batch=batch)).value))(b)
    np.testing.assert_allclose(gradient, jnp.full_like(b, 0.5), rtol=1e-10)


def test_auto_takes_tolerances_and_least_squares(float64):
    tall = Auto().choose(lx.MatrixLinearOperator(jnp.ones((3, 2))))
    assert isinstance(tall.solver, lx.QR)
    assert "3 equations for 2 unknowns" in tall.reason
    given, default = (auto.choose(twice(300)).solver for auto in (Auto(rtol=1e-3, atol=1e-4, max_steps=7), Auto()))
    assert isinstance(given, Products)
    assert isinstance(default, Products)
    assert (given.rtol, given.atol, given.max_steps) == (1e-3, 1e-4, 7)
    assert default.atol == 0  # the same for a right-hand side of any scale
    turn = lx.FunctionLinearOperator(lambda v: 1j * v, jax.ShapeDtypeStruct((300,), jnp.complex128))
    assert isinstance(Auto().choose(turn).solver, lx.GMRES)
