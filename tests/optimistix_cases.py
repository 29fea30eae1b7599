"""Roots, fixed points, minima and least squares with derivatives in closed form, and solvers of them."""

import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
import pytest

from implicitexp.adjoints.implicit.fixed_points import Iterated, Reuse, Shine
from implicitexp.adjoints.linear.small_dense import SmallDense
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
