"""A step of a Runge-Kutta method with its stages in a loop: for small states and few parameters. The vector field is traced
and compiled twice a step instead of once a stage, and evaluated once more in each stage, which costs less there than a
program in which all of its stages are written out (benchmarks/replay.py)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from implicitexp.adjoints.discrete import stage_equations
from implicitexp.adjoints.discrete.tableau import AbstractTaken, Scheme, StepCotangents
from implicitexp.adjoints.discrete.trees import add, contraction, inner


class Tableau(NamedTuple):
    """The first stages of a scheme as arrays; `a` with its diagonal in `full`."""

    c: Float[Array, " s"]
    lower: Float[Array, "s s"]
    full: Float[Array, "s s"]
    diagonal: Float[Array, " s"]
    b: Float[Array, " s"]

    @classmethod
    def of(cls, scheme: Scheme, count: int, t0: Array, y0: PyTree) -> "Tableau":
        """In the more precise of the two dtypes, of the time and of the state."""
        lower = np.zeros((count, count))
        for i, row in enumerate(scheme.a[:count]):
            lower[i, : len(row)] = row
        diagonal = np.array(scheme.diagonal[:count])
        dtype = jnp.result_type(t0, *(jnp.finfo(y.dtype).dtype for y in jax.tree.leaves(y0)))
        parts = (scheme.c[:count], lower, lower + np.diag(diagonal), diagonal, scheme.b[:count])
        return cls(*(jnp.asarray(x, dtype) for x in parts))


class Rolled(AbstractTaken):
    """A step that has been taken."""

    scheme: Scheme = eqx.field(static=True)
    count: int = eqx.field(static=True)
    slope: Any  # (theta, t, z, control) -> k
    theta: PyTree
    t0: Array
    t1: Array
    y0: PyTree
    stages: PyTree
    control: PyTree
    pull_control: Callable

    @property
    def k(self) -> PyTree:
        return self.stages

    @classmethod
    def take(cls, scheme: Scheme, model: Any, theta: PyTree, step: Any, k: PyTree | None, count: int) -> "Rolled":
        t0, t1, y0 = step
        control, pull_control = jax.vjp(model.control, theta, t0, t1)
        tableau = Tableau.of(scheme, count, t0, y0)
        if k is None:

            def stage(i, k):
                z = add(y0, contraction(tableau.lower[i], k))
                slope = model.slope(theta, _time(tableau.c[i], t0, t1), z, control)
                return jax.tree.map(lambda x, all_: all_.at[i].set(x), slope, k)

            zeros = jax.tree.map(lambda y: jnp.zeros((count, *y.shape), y.dtype), y0)
            k = jax.lax.fori_loop(0, count, stage, zeros)
        k = jax.tree.map(lambda x: x[:count], k)
        y1 = add(y0, contraction(tableau.b, k))
        return cls(y1, scheme, count, model.slope, theta, t0, t1, y0, k, control, pull_control)

    def transposed(self, y1: PyTree, k: PyTree | None) -> StepCotangents:
        scheme, tableau = self.scheme, Tableau.of(self.scheme, self.count, self.t0, self.y0)
        shared = self._factors(tableau)

        def back(n, carry):
            points, totals = carry
            i = self.count - 1 - n
            pull = self._pull_at(i, tableau)
            cotangent = jax.tree.map(
                lambda y, p: tableau.b[i].astype(_real(y)) * y + p, y1, contraction(tableau.lower[:, i], points)
            )
            if k is not None:
                cotangent = add(cotangent, jax.tree.map(lambda x: x[i], k))
            if scheme.implicit:
                cotangent = self._solved(tableau.diagonal[i], pull, cotangent, shared)
            of_theta, of_t, point, of_control = pull(cotangent)
            if scheme.solves_slopes and jnp.ndim(self.control) == 0:
                # What was solved for is F itself: beside the slope at z_i it differs by the root finder's tolerance.
                k_i = jax.tree.map(lambda x: x[i], self.stages)
                of_control = inner(k_i, cotangent) / jnp.where(self.control == 0, 1, self.control)
            points = jax.tree.map(lambda x, all_: all_.at[i].set(x), point, points)
            c = tableau.c[i].astype(of_t.dtype)
            ends = ((1 - c) * of_t, c * of_t)
            return points, add(totals, (point, of_theta, ends, of_control))

        zero = jax.tree.map(jnp.zeros_like, (y1, self.theta, (self.t0, self.t1), self.control))
        points = jax.tree.map(jnp.zeros_like, self.stages)
        _, (y0, theta, (start, end), control) = jax.lax.fori_loop(0, self.count, back, (points, zero))
        by_control, of_start, of_end = self.pull_control(control)
        return StepCotangents(add(y1, y0), start + of_start, end + of_end, add(theta, by_control))

    def _pull_at(self, i: Any, tableau: Tableau) -> Callable:
        """The pullback of the slope at stage i, from the stages."""
        z = add(self.y0, contraction(tableau.full[i], self.stages))
        return jax.vjp(self.slope, self.theta, _time(tableau.c[i], self.t0, self.t1), z, self.control)[1]

    def _factors(self, tableau: Tableau) -> stage_equations.Factors | None:
        flat, unravel = ravel_pytree(self.y0)
        if not stage_equations.are_shared(flat.size, self.scheme.diagonal):
            return None
        middle = self.scheme.middle()
        pull = _on_states(self._pull_at(middle, tableau), unravel)
        return stage_equations.factors(self.scheme.diagonal[middle], pull, flat)

    def _solved(self, a: Array, pull: Callable, cotangent: PyTree, shared: stage_equations.Factors | None) -> PyTree:
        flat, unravel = ravel_pytree(cotangent)
        a = a.astype(flat.dtype)

        def solved():
            return stage_equations.solved(a, _on_states(pull, unravel), flat, shared)

        if all(self.scheme.diagonal):
            return unravel(solved())
        return unravel(jax.lax.cond(a == 0, lambda: flat, solved))  # an explicit first stage


def _on_states(pull: Callable, unravel: Callable) -> Callable:
    return lambda x: ravel_pytree(pull(unravel(x))[2])[0]


def _time(c: Array, t0: Array, t1: Array) -> Array:
    return jnp.where(c == 1, t1, t0 + c.astype(t0.dtype) * (t1 - t0))


def _real(x: Array) -> Any:
    return jnp.finfo(x.dtype).dtype
