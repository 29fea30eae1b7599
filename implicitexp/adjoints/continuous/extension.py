"""What a step of a Runge-Kutta method says of the inside of the step: its interpolation, or a better one from its stages.

A continuous adjoint sees the solution through it, so that its error bounds the gradient's. Diffrax interpolates
Kvaerno5 by a cubic, whose error h^4 is a power of h above what the step control keeps (h^5): at tolerance 1e-10 the
gradient would be wrong by 1e-8. The stages allow for a polynomial b_i(x) of degree 4 that meets every order condition
up to order 4 at each x (continuous extension; E. Hairer, S. P. Nørsett and G. Wanner 1993, "Solving Ordinary
Differential Equations I", section II.6):

    y(t0 + x h) = y0 + sum_i b_i(x) k_i,   k_i = h f(stage i),   b_i(1) = b_i.
"""

import functools
from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from implicitexp.adjoints.continuous.trees import few, mapped

DEGREE = 4
LONG_STEPS = 5  # explicit methods of a higher order
SOLVABLE = 1e-10  # the order conditions are met to rounding, or the method has no such polynomial


class Extension(eqx.Module):
    """y(t) inside a step, as Diffrax's local interpolations: `evaluate(t)`."""

    t0: Any
    t1: Any
    y0: PyTree
    k: PyTree  # leading axis: stages
    powers: tuple[tuple[float, ...], ...] = eqx.field(static=True)  # a row a stage

    def evaluate(self, t: Any) -> PyTree:
        x = (t - self.t0) / (self.t1 - self.t0)
        monomials = jnp.stack([x**m for m in range(1, DEGREE + 1)])

        def one(y: Array, k: Array) -> Array:
            weights = (jnp.asarray(self.powers, monomials.dtype) @ monomials).astype(y.dtype)
            return y + jnp.tensordot(weights, k, 1)

        return jax.tree.map(one, self.y0, self.k)


def interpolation(method: Any, t0: Any, t1: Any, info: dict[str, PyTree]) -> Any:
    """y(t) for t0 <= t <= t1 from the `dense_info` of the method's step."""
    powers = extension_of(type(method))
    if powers is None:
        return method.interpolation_cls(t0=t0, t1=t1, **info)
    return Extension(t0, t1, info["y0"], info["k"], powers)


class Swept(eqx.Module):
    """y(t) inside a step, an order better than an interpolation of it: y0 + the integral of the polynomial through the slopes
    F(t, y(t)) of the interpolation at as many Gauss-Legendre nodes as the method has orders (one Picard sweep).

    Diffrax interpolates Dopri8 to order 7, and its steps are so long that the gradient would be off by a hundred times the
    error of the solve.
    """

    t0: Any
    t1: Any
    y0: PyTree
    slopes: PyTree  # leading axis: nodes

    @classmethod
    def of(cls, path: Any, slope: Callable, t0: Any, t1: Any, order: int) -> "Swept":
        """`slope`: t, y -> dy/dt."""
        nodes = jnp.asarray((np.polynomial.legendre.leggauss(order)[0] + 1) / 2, jnp.result_type(t0))
        at, y0 = t0 + nodes * (t1 - t0), path.evaluate(t0)
        return cls(t0, t1, y0, mapped(lambda t: slope(t, path.evaluate(t)), at, few(y0)))

    def evaluate(self, t: Any) -> PyTree:
        width = self.t1 - self.t0
        powers = _antiderivatives(jax.tree.leaves(self.slopes)[0].shape[0])
        u = 2 * (t - self.t0) / width - 1  # in which the coefficients are small
        weights = jnp.asarray(powers, u.dtype) @ jnp.stack([u**m for m in range(powers.shape[1])]) * width
        return jax.tree.map(lambda y, f: y + jnp.tensordot(weights.astype(y.dtype), f, 1), self.y0, self.slopes)


@functools.cache
def _antiderivatives(count: int) -> Float[np.ndarray, "count powers"]:
    """Row j: the coefficients in u of the integral over x = (u + 1)/2 from 0 of the polynomial that is one at node j of
    Gauss-Legendre and zero at the others."""
    u = np.polynomial.legendre.leggauss(count)[0]
    rows = []
    for j in range(count):
        others = np.delete(u, j)
        rows.append((np.polynomial.Polynomial.fromroots(others) / np.prod(u[j] - others) / 2).integ(lbnd=-1).coef)
    return np.stack(rows)


def outruns_its_interpolation(method: Any) -> bool:
    """Whether the steps are so long that the method's interpolation is much worse than they are: explicit, of an order above 5.
    Not so for implicit methods, whose stiff systems a sweep would blow up."""
    return isinstance(method, dfx.AbstractERK) and (method.order(None) or 0) > LONG_STEPS


@functools.cache
def extension_of(method: type) -> tuple[tuple[float, ...], ...] | None:
    """The coefficients of b_i(x) in x, ..., x^4, a row a stage; None where Diffrax's own interpolation is good enough,
    or the stages do not allow for one."""
    cubic = getattr(getattr(method, "interpolation_cls", None), "__self__", None)
    tableau = getattr(method, "tableau", None)
    order = getattr(method, "order", lambda *_: 0)(None, None)
    if cubic is not dfx.ThirdOrderHermitePolynomialInterpolation or order <= DEGREE:
        return None
    if not isinstance(tableau, dfx.ButcherTableau):
        return None
    powers = _solved(_square(tableau), np.asarray(tableau.b_sol))
    return None if powers is None else tuple(tuple(float(x) for x in row) for row in powers)


def _square(tableau: Any) -> Float[np.ndarray, "stages stages"]:
    stages = tableau.num_stages
    a = np.zeros((stages, stages))
    for i, row in enumerate(tableau.a_lower):
        a[i + 1, : i + 1] = row
    if tableau.a_diagonal is not None:
        a += np.diag(tableau.a_diagonal)
    return a


def _solved(a: Any, b: Any) -> Float[np.ndarray, "stages degree"] | None:
    """The smallest coefficients that meet sum_i b_i(x) phi_i = x^order / gamma for every tree, and b(1) = b."""
    one = np.ones(len(b))
    c = a @ one
    trees = [  # order, phi, 1 / gamma
        (1, one, 1), (2, c, 1 / 2), (3, c**2, 1 / 3), (3, a @ c, 1 / 6), (4, c**3, 1 / 4), (4, c * (a @ c), 1 / 8),
        (4, a @ c**2, 1 / 12), (4, a @ a @ c, 1 / 24),
    ]  # fmt: skip
    basis = np.eye(DEGREE)
    rows = [np.outer(phi, basis[m]).ravel() for _, phi, _ in trees for m in range(DEGREE)]
    right = [weight * (order == m + 1) for order, _, weight in trees for m in range(DEGREE)]
    rows += [np.outer(unit, np.ones(DEGREE)).ravel() for unit in np.eye(len(b))]
    matrix, rhs = np.stack(rows), np.array([*right, *b])
    solution = np.linalg.lstsq(matrix, rhs, rcond=SOLVABLE)[0]
    if np.abs(matrix @ solution - rhs).max() > SOLVABLE:
        return None
    return solution.reshape(len(b), DEGREE)
