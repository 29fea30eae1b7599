"""One Runge-Kutta step from its tableau, and its transpose.

    z_i = y0 + sum_{j<i} a_ij k_j + a_ii k_i,    k_i = F(t_i, z_i, theta) u,    y1 = y0 + sum_i b_i k_i,

u being the step size (in general the increment of the control). Backwards, a bar being a cotangent,

    (I - a_ii u dF/dz_i)^T l_i = b_i y1~ + sum_{j>i} a_ji z_j~,    z_i~ = u (dF/dz_i)^T l_i,    y0~ = y1~ + sum_i z_i~,

and theta~ = sum_i u (dF/dtheta)^T l_i: the stage equations by the implicit function theorem, so that the iterations which
solved them are not differentiated (E. Hairer, C. Lubich, G. Wanner, Geometric Numerical Integration, VI.4, without the
linear solve; A. Sandu 2006, On the properties of Runge-Kutta discrete adjoints, with it).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from implicitexp.errors import Unsupported


class Scheme(NamedTuple):
    """The tableau as Python numbers. `keeps_stages`: the solver's dense output holds the k_i; `solves_slopes`: an implicit
    stage is solved for F(t_i, z_i), not for k_i."""

    c: tuple[float, ...]
    a: tuple[tuple[float, ...], ...]
    diagonal: tuple[float, ...]
    b: tuple[float, ...]
    keeps_stages: bool
    solves_slopes: bool

    @property
    def implicit(self) -> bool:
        return any(self.diagonal)

    def __len__(self) -> int:
        return len(self.b)

    def needed(self) -> int:
        """How many of the first stages y1 depends on: all but the last where first is same as last."""
        used = np.array(self.b) != 0
        return int(np.max(np.nonzero(used)[0])) + 1


EULER = Scheme((0.0,), ((),), (0.0,), (1.0,), False, False)
IMPLICIT_EULER = Scheme((1.0,), ((),), (1.0,), (1.0,), False, False)


def scheme_of(solver: Any) -> Scheme:
    """The tableau of a Diffrax solver. Raises `Unsupported` for a solver that has none, or several."""
    kind = type(solver)  # a wrapped solver passes `isinstance` as the one inside it
    if issubclass(kind, dfx.Euler):
        return EULER
    if issubclass(kind, dfx.ImplicitEuler):
        return IMPLICIT_EULER
    tableau = solver.tableau if issubclass(kind, dfx.AbstractRungeKutta) else None
    if not isinstance(tableau, dfx.ButcherTableau):
        raise Unsupported(
            f"{kind.__name__} is no Runge-Kutta method with one tableau: use Euler, Heun, Midpoint, Ralston, Bosh3, "
            "Tsit5, Dopri5, Dopri8, ImplicitEuler or Kvaerno3 to 5, or diffrax.RecursiveCheckpointAdjoint for this solver"
        )
    stages = len(tableau.b_sol)
    rows = ((), *(tuple(map(float, row)) for row in tableau.a_lower))
    diagonal = np.zeros(stages) if tableau.a_diagonal is None else tableau.a_diagonal
    return Scheme(
        c=(float(tableau.c1), *map(float, tableau.c)),
        a=rows,
        diagonal=tuple(map(float, diagonal)),
        b=tuple(map(float, tableau.b_sol)),
        keeps_stages=True,
        solves_slopes=tableau.implicit and tableau.fsal,
    )


class Stages(NamedTuple):
    """A step that has been taken: what `transposed` needs of it."""

    y1: PyTree
    k: list[PyTree]
    pullbacks: list[Callable]
    control: PyTree
    pull_control: Callable


class StepCotangents(NamedTuple):
    """Of the start of the step, of its two ends in time, and of the parameters."""

    y0: PyTree
    t0: Array
    t1: Array
    theta: PyTree


def take(scheme: Scheme, model: Any, theta: PyTree, t0: Array, t1: Array, y0: PyTree, k: Any, count: int) -> Stages:
    """The first `count` stages of a step. `k`: the stages, where they are known; an implicit method needs them.

    `model` has `slope(theta, t, z, control)`, which is k, and `control(theta, t0, t1)`.
    """
    control, pull_control = jax.vjp(model.control, theta, t0, t1)
    known = [None] * len(scheme) if k is None else [jax.tree.map(lambda x, i=i: x[i], k) for i in range(len(scheme))]
    stages, pullbacks = [], []
    for i in range(count):
        weights = [*scheme.a[i], scheme.diagonal[i]]
        z = combination(y0, weights, [*stages, known[i]])
        t = t1 if scheme.c[i] == 1 else t0 + scheme.c[i] * (t1 - t0)
        slope, pull = jax.vjp(model.slope, theta, t, z, control)
        stages.append(slope if known[i] is None else known[i])
        pullbacks.append(pull)
    y1 = combination(y0, scheme.b[:count], stages)
    return Stages(y1, stages, pullbacks, control, pull_control)


def transposed(
    scheme: Scheme, stages: Stages, y1: PyTree, k: list[PyTree] | None, t0: Array, t1: Array
) -> StepCotangents:
    """Cotangents of the step's inputs from those of y1 and, where `k` is given, of the stages as outputs of their own."""
    y0, theta, control = y1, None, None
    start, end = jnp.zeros_like(t0), jnp.zeros_like(t1)
    points: list[Any] = [None] * len(stages.k)
    for i in reversed(range(len(stages.k))):
        weights = [scheme.b[i], *(scheme.a[j][i] for j in range(i + 1, len(stages.k)))]
        cotangent = combination(None if k is None else k[i], weights, [y1, *points[i + 1 :]])
        cotangent = solve_stage(scheme.diagonal[i], stages.pullbacks[i], cotangent)
        of_theta, of_t, points[i], of_control = stages.pullbacks[i](cotangent)
        if scheme.solves_slopes and jnp.ndim(stages.control) == 0:
            # What was solved for is F itself: beside the slope at z_i it differs by the root finder's tolerance.
            of_control = inner(stages.k[i], cotangent) / jnp.where(stages.control == 0, 1, stages.control)
        y0 = add(y0, points[i])
        theta, control = add(theta, of_theta), add(control, of_control)
        end = end + (of_t if scheme.c[i] == 1 else scheme.c[i] * of_t)
        start = start + (0 if scheme.c[i] == 1 else (1 - scheme.c[i]) * of_t)
    by_control, of_start, of_end = stages.pull_control(control)
    return StepCotangents(y0, start + of_start, end + of_end, add(theta, by_control))


def solve_stage(diagonal: float, pullback: Callable, cotangent: PyTree) -> PyTree:
    """l with (I - diagonal dk/dz)^T l = cotangent, by an LU factorisation of the matrix at this very stage."""
    if not diagonal:
        return cotangent
    flat, unravel = ravel_pytree(cotangent)
    rows = jax.vmap(lambda e: ravel_pytree(pullback(unravel(e))[2])[0])(jnp.eye(flat.size, dtype=flat.dtype))
    matrix = jnp.eye(flat.size, dtype=flat.dtype) - diagonal * rows.T
    return unravel(jnp.linalg.solve(matrix, flat))


def add(x: PyTree | None, y: PyTree) -> PyTree:
    """x + y, None being zero."""
    return y if x is None else jax.tree.map(jnp.add, x, y)


def inner(x: PyTree, y: PyTree) -> Array:
    """<x, y>."""
    return sum(jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum(x * y), x, y)))  # pyright: ignore[reportReturnType]


def combination(start: PyTree | None, weights: Any, trees: list[PyTree]) -> PyTree:
    """start + sum of weight * tree, over the weights that are not zero."""
    terms = [(w, tree) for w, tree in zip(weights, trees, strict=True) if w != 0]
    if not terms:
        return jax.tree.map(jnp.zeros_like, trees[0]) if start is None else start
    first = jax.tree.map(lambda x: terms[0][0] * x, terms[0][1])
    total = add(start, first)
    for weight, tree in terms[1:]:
        total = jax.tree.map(lambda s, x, w=weight: s + w * x, total, tree)
    return total
