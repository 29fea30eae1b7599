"""A step of a Runge-Kutta method with its stages written out one by one: for large states and many parameters, where the
vector field takes the time, and what its pullback needs is kept from one evaluation."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from implicitexp.adjoints.discrete import stage_equations
from implicitexp.adjoints.discrete.tableau import AbstractTaken, Scheme, StepCotangents
from implicitexp.adjoints.discrete.trees import add, combination, inner, stacked


class Unrolled(AbstractTaken):
    """A step that has been taken."""

    scheme: Scheme = eqx.field(static=True)
    t0: Array
    t1: Array
    stages: list[PyTree]
    pullbacks: list[Callable]
    control: PyTree
    pull_control: Callable

    @property
    def k(self) -> PyTree:
        return stacked(self.stages)

    @classmethod
    def take(cls, scheme: Scheme, model: Any, theta: PyTree, step: Any, k: PyTree | None, count: int) -> "Unrolled":
        t0, t1, y0 = step
        control, pull_control = jax.vjp(model.control, theta, t0, t1)
        known = [None] * len(scheme) if k is None else unstacked(k)
        stages, pullbacks = [], []
        for i in range(count):
            weights = [*scheme.a[i], scheme.diagonal[i]]
            z = combination(y0, weights, [*stages, known[i]])
            t = t1 if scheme.c[i] == 1 else t0 + scheme.c[i] * (t1 - t0)
            slope, pull = jax.vjp(model.slope, theta, t, z, control)
            stages.append(slope if known[i] is None else known[i])
            pullbacks.append(pull)
        y1 = combination(y0, scheme.b[:count], stages)
        return cls(y1, scheme, t0, t1, stages, pullbacks, control, pull_control)

    def transposed(self, y1: PyTree, k: PyTree | None) -> StepCotangents:
        scheme, count = self.scheme, len(self.stages)
        of_k = None if k is None else unstacked(k)
        y0, theta, control = y1, None, None
        start, end = jnp.zeros_like(self.t0), jnp.zeros_like(self.t1)
        points: list[Any] = [None] * count
        shared = self._factors(y1)
        for i in reversed(range(count)):
            weights = [scheme.b[i], *(scheme.a[j][i] for j in range(i + 1, count))]
            cotangent = combination(None if of_k is None else of_k[i], weights, [y1, *points[i + 1 :]])
            cotangent = self._solved(i, cotangent, shared)
            of_theta, of_t, points[i], of_control = self.pullbacks[i](cotangent)
            if scheme.solves_slopes and jnp.ndim(self.control) == 0:
                # What was solved for is F itself: beside the slope at z_i it differs by the root finder's tolerance.
                of_control = inner(self.stages[i], cotangent) / jnp.where(self.control == 0, 1, self.control)
            y0 = add(y0, points[i])
            theta, control = add(theta, of_theta), add(control, of_control)
            end = end + scheme.c[i] * of_t
            start = start + (1 - scheme.c[i]) * of_t
        by_control, of_start, of_end = self.pull_control(control)
        return StepCotangents(y0, start + of_start, end + of_end, add(theta, by_control))

    def _factors(self, like: PyTree) -> stage_equations.Factors | None:
        flat, unravel = ravel_pytree(like)
        if not stage_equations.are_shared(flat.size, self.scheme.diagonal):
            return None
        middle = self.scheme.middle()
        return stage_equations.factors(self.scheme.diagonal[middle], self._pull(middle, unravel), flat)

    def _solved(self, i: int, cotangent: PyTree, shared: stage_equations.Factors | None) -> PyTree:
        a = self.scheme.diagonal[i]
        if not a:
            return cotangent
        flat, unravel = ravel_pytree(cotangent)
        return unravel(stage_equations.solved(a, self._pull(i, unravel), flat, shared))

    def _pull(self, i: int, unravel: Callable) -> Callable:
        return lambda x: ravel_pytree(self.pullbacks[i](unravel(x))[2])[0]


def unstacked(k: PyTree) -> list[PyTree]:
    """The stages one by one."""
    length = jax.tree.leaves(k)[0].shape[0]
    return [jax.tree.map(lambda x, i=i: x[i], k) for i in range(length)]
