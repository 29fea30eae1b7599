"""Adjoints for Optimistix and `SmallDense` in batches and at every size: two devices, no unknown, one, four and five."""

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from optimistix_cases import ANDERSON, BROYDEN, NEWTON, PICARD, TOLERANCE, rows

from implicitexp.adjoints.implicit.fixed_points import Iterated, Neumann, OneStep, Phantom, Reuse, Shine
from implicitexp.adjoints.implicit.last_steps import Truncated
from implicitexp.adjoints.linear.auto import Auto
from implicitexp.adjoints.linear.small_dense import SmallDense

ROUND_OFF = 1e-12  # float64, relative: the same sums in another order, through solves to TOLERANCE
SMALL = optx.Newton(TOLERANCE, TOLERANCE, linear_solver=SmallDense())
AUTO = optx.Newton(TOLERANCE, TOLERANCE, linear_solver=Auto())

EVERY = {
    "iterated": (PICARD, Iterated()),
    "iterated-newton": (NEWTON, Iterated(preconditioner="last")),
    "neumann": (PICARD, Neumann(60)),
    "phantom": (PICARD, Phantom(90, 0.8)),
    "truncated": (PICARD, Truncated(60)),
    "one_step": (NEWTON, OneStep()),
    "shine": (NEWTON, Shine()),
    "shine-auto": (AUTO, Shine()),
    "shine-refined": (ANDERSON, Shine(refine=6)),
    "reuse": (ANDERSON, Reuse()),
    "reuse-broyden": (BROYDEN, Reuse()),
    "reuse-auto": (AUTO, Reuse()),
    "implicit-auto": (AUTO, optx.ImplicitAdjoint(linear_solver=Auto())),
}


def flattened(y):
    return jnp.ravel(y)


def fn(y, a):
    """A contraction by at most 0.4, of which each unknown sees its neighbor."""
    return (0.4 * jnp.tanh(jnp.roll(flattened(y), 1))).reshape(y.shape) + a


def solution(a, solver, adjoint):
    return optx.fixed_point(fn, solver, jnp.zeros_like(a), a, adjoint=adjoint, max_steps=500).value


def exact_gradient(y, c):
    """(1 - dT/dy)^-T c."""
    n, shape = y.size, y.shape
    slope = 0.4 * (1 - np.tanh(np.roll(np.ravel(y), 1)) ** 2)[:, None] * np.roll(np.eye(n), 1, axis=0)
    return np.linalg.solve((np.eye(n) - slope).T, np.ravel(c)).reshape(shape)


SHAPES = [(), (1,), (4,), (5,), (2, 3)]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", rows(EVERY))
def test_every_size(name):
    """One number, a vector of one; both sides of four, where `SmallDense` ends and `Auto` goes over to LU; a matrix."""
    solver, adjoint = EVERY[name]
    shapes = SHAPES if "auto" in name else SHAPES[::3]

    def sized(ends):
        return {s: jnp.linspace(*ends, int(np.prod(s))).reshape(s) for s in shapes}

    @jax.jit
    def gradients(a, c):
        y, pullback = jax.vjp(lambda a: {s: solution(x, solver, adjoint) for s, x in a.items()}, a)
        return y, pullback(c)[0]

    c = sized((1.0, 2.0))
    for y, gradient, c_ in zip(*map(jax.tree.leaves, (*gradients(sized((-0.7, 1.2)), c), c)), strict=True):
        np.testing.assert_allclose(gradient, exact_gradient(np.asarray(y), c_), rtol=1e-9, err_msg=str(y.shape))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", rows(EVERY, "iterated"))
def test_no_unknowns(name):
    """An empty vector of unknowns has an empty derivative, and the loss beside it its own."""
    solver, adjoint = EVERY[name]

    def loss(a, b):
        return jnp.sum(solution(a, solver, adjoint)) + b**2

    empty, two = jax.grad(loss, (0, 1))(jnp.zeros((0,)), jnp.array(1.0))
    assert empty.shape == (0,)
    assert two == 2


SHARDED = {
    "iterated": (PICARD, Iterated()),
    "neumann": (PICARD, Neumann(5)),
    "phantom": (PICARD, Phantom(5)),
    "truncated": (PICARD, Truncated(5)),
    "shine": (ANDERSON, Shine(refine=2)),
    "reuse": (ANDERSON, Reuse()),
    "small_dense": (SMALL, optx.ImplicitAdjoint(linear_solver=SmallDense())),
}


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", rows(SHARDED, "reuse"))
def test_a_batch_on_two_devices(name):
    """Half of the lanes on each: the numbers of one device, and they stay where they are. Lanes take different numbers of
    steps."""
    assert len(jax.devices()) == 2, "set by conftest.py"
    solver, adjoint = SHARDED[name]
    halves = NamedSharding(jax.make_mesh((2,), ("lanes",), axis_types=(AxisType.Auto,)), PartitionSpec("lanes"))
    a = jnp.asarray(np.random.default_rng(0).normal(size=(6, 3)) * np.array([[0.1], [1], [3], [10], [0], [2]]))

    @jax.jit
    @jax.vmap
    def both(a):
        return jax.value_and_grad(lambda a: jnp.sum(jnp.sin(solution(a, solver, adjoint))))(a)

    alone, shared = both(a), both(jax.device_put(a, halves))
    assert shared[1].sharding.is_equivalent_to(halves, 2)
    for one, two in zip(alone, shared, strict=True):
        np.testing.assert_allclose(one, two, rtol=ROUND_OFF)


LANES = np.array([0.3, 2.0, -0.4, np.nan])


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("name", rows([n for n in SHARDED if n != "small_dense"]))
def test_a_failing_lane_leaves_the_others_alone(name):
    """y = a (y^2 + 1) has no solution for a = 2, nor for one that is no number. (Under Optimistix's own adjoint `SmallDense`
    raises, as every linear solver does there.)"""
    solver, adjoint = SHARDED[name]

    def y(a):
        sol = optx.fixed_point(
            lambda y, a: a * (y**2 + 1), solver, jnp.zeros(()), a, adjoint=adjoint, max_steps=200, throw=False
        )
        return sol.value, sol.result == optx.RESULTS.successful

    (value, converged), gradient = jax.jit(jax.vmap(jax.value_and_grad(y, has_aux=True)))(jnp.asarray(LANES))
    np.testing.assert_array_equal(converged, [True, False, True, False])
    alone = [jax.jit(jax.grad(lambda a: y(a)[0]))(a) for a in LANES[[0, 2]]]
    np.testing.assert_allclose(gradient[jnp.array([0, 2])], alone, rtol=ROUND_OFF)
    a, v = np.array([0.3, -0.4]), np.asarray(value)[[0, 2]]
    if not isinstance(adjoint, Neumann | Phantom | Truncated):
        np.testing.assert_allclose(alone, (v**2 + 1) / (1 - 2 * a * v), rtol=1e-9)
