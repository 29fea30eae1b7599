"""`finite_difference`: central differences of the whole solve, the baseline that everybody has."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from implicitexp.solvers.base import DEFAULT_TOLERANCE, dtype_of

from .base import AbstractCell, AbstractStrategy, Backward, Split, norm
from .forward import pull_by_basis


class FiniteDifference(AbstractStrategy):
    """Central differences. `step` is relative to the size of what is moved; None: max(eps, rtol)^(1/3), since on an
    adaptive solver the noise is the tolerance and not the rounding. `factor` multiplies the step (half and twice the
    step tell how much the choice matters). `directions`: as for `forward`.
    """

    step: Any = None
    factor: float = 1.0
    directions: int | None = eqx.field(static=True, default=None)

    def cell(self, kind, solver) -> AbstractCell:
        return DifferenceCell(self.step, self.factor, getattr(solver, "rtol", None))


class DifferenceCell(AbstractCell):
    """(y(theta + h v) - y(theta - h v)) / 2h along a tangent v."""

    step: Any
    factor: Any
    rtol: Any

    def linearize(self, split: Split):
        value, stats = split.call().run()
        return value, stats, split

    def push(self, residuals, tangents: list[Array]) -> PyTree:
        """Scaled so that the largest relative movement of a leaf is the step."""
        theta = residuals.theta
        if not theta:
            shape = jax.eval_shape(lambda: residuals.call().run()[0])
            return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shape)
        h = self._relative_step(theta) / _largest(theta, tangents)

        def moved(sign):
            return residuals.call([x + (sign * h).astype(x.dtype) * t for x, t in zip(theta, tangents, strict=True)])

        (plus, p), (minus, m) = moved(1.0).run(), moved(-1.0).run()
        bad = jnp.where(p.converged & m.converged, 1, jnp.nan)
        return jax.tree.map(lambda a, b: (a - b) / (2 * h).astype(a.dtype) * bad.astype(a.dtype), plus, minus)

    def pull(self, residuals, cotangent: PyTree):
        return pull_by_basis(lambda t: self.push(residuals, t), residuals.theta, cotangent), Backward.exact()

    def _relative_step(self, theta: list[Array]) -> Array:
        if self.step is not None:
            return jnp.asarray(self.step * self.factor)
        dtype = dtype_of(theta)
        rtol = DEFAULT_TOLERANCE["float64" if dtype == jnp.float64 else "float32"] if self.rtol is None else self.rtol
        return jnp.maximum(jnp.finfo(dtype).eps, rtol) ** (1 / 3) * self.factor


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
