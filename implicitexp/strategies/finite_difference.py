"""`finite_difference`: central differences of the whole solve, the baseline that everybody has."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray, PyTree

from implicitexp.solvers.base import dtype_of

from .base import AbstractCell, Backward, Call, Split, norm
from .forward import AbstractDirectional, Directions, pull_along


class FiniteDifference(AbstractDirectional):
    """Central differences. `step` is relative to the size of what is moved; None: max(eps, rtol)^(1/3), since on an
    adaptive solver the noise is the tolerance and not the rounding. `factor` multiplies the step (half and twice the
    step tell how much the choice matters). `directions`, `key`: as for `forward`.
    """

    step: Any = None
    factor: Any = 1.0
    directions: int | None = eqx.field(static=True, default=None)
    key: PRNGKeyArray | None = None

    def cell(self, kind, solver) -> AbstractCell:
        return DifferenceCell(self.step, self.factor, Directions(self.directions, self.key))


class DifferenceCell(AbstractCell):
    """(y(theta + h v) - y(theta - h v)) / 2h along a tangent v."""

    step: Any
    factor: Any
    directions: Directions

    def linearize(self, split: Split):
        value, stats = split.call().run()
        return value, stats, split

    def push(self, residuals, tangents: list[Array]) -> PyTree:
        return self._difference(residuals, tangents)[0]

    def check_reverse(self, numbers: int) -> None:
        self.directions.check("finite_difference", numbers)

    def pull(self, residuals, cotangent: PyTree):
        return pull_along(self.directions, lambda t: self._difference(residuals, t), residuals.theta, cotangent)

    def _difference(self, split: Split, tangents: list[Array]) -> tuple[PyTree, Backward]:
        """Scaled so that the largest relative movement of a leaf is the step."""
        theta = split.theta
        if not theta:
            shape = jax.eval_shape(lambda: split.call().run()[0])
            return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape), Backward.exact()
        h = self._relative_step(split) / _largest(theta, tangents)

        base = split.call()

        def moved(sign):
            call = split.call([x + (sign * h).astype(x.dtype) * t for x, t in zip(theta, tangents, strict=True)])
            return Call(call.equation, call.args, base.solver.kept_steps(base.equation, call.equation))

        (plus, p), (minus, m) = moved(1.0).run(), moved(-1.0).run()
        converged = p.converged & m.converged
        bad = jnp.where(converged, 1, jnp.nan)
        tangent = jax.tree.map(lambda a, b: (a - b) / (2 * h).astype(a.dtype) * bad.astype(a.dtype), plus, minus)
        return tangent, Backward(converged, p.steps + m.steps, jnp.zeros(()))

    def _relative_step(self, split: Split) -> Array:
        if self.step is not None:
            return jnp.asarray(self.step * self.factor)
        eps = jnp.finfo(dtype_of(split.theta)).eps
        return jnp.maximum(eps, split.call().solver.noise(split.theta)) ** (1 / 3) * self.factor


def _largest(theta: list[Array], tangents: list[Array]) -> Array:
    """The largest movement over all leaves, in units of the numbers that are moved: for a single number its size (one
    where it is zero), for a direction through a leaf the ratio of the norms."""

    def one(x, t):
        typical = norm(x) / jnp.sqrt(max(x.size, 1))
        weight = jnp.abs(t)
        size = jnp.sqrt(jnp.sum(weight**2 * x**2) / jnp.maximum(jnp.sum(weight**2), jnp.finfo(x.dtype).tiny))
        size = jnp.maximum(size, 0.1 * typical)
        return norm(t) / jnp.where(size > 0, size, 1)

    ratios = jnp.stack([one(x, t) for x, t in zip(theta, tangents, strict=True)])
    return jnp.where(jnp.max(ratios) > 0, jnp.max(ratios), 1)
