"""The adjoint of a fixed point by a fixed point iteration of its own, matrix-free, with its own tolerance.

B. Christianson 1994, "Reverse accumulation and attractive fixed points", Optimization Methods and Software 3(4). The
iteration is accelerated (Anderson); that it did not converge is reported, never hidden.
"""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.scipy.linalg
import optimistix as optx
from jaxtyping import Array, Float

from implicitexp.adjoints.implicit.linear import SINGULAR, Linearization
from implicitexp.solvers.anderson import AndersonAcceleration

PreconditionerName = Literal["last", "start", "identity"]
Acceleration = Literal["anderson"] | None
HISTORY = 5
SAFE = 4.0  # times the rounding of a step, of which `rounding` sees one sample
ODD = 0.6180339887  # so that the products of a difference are rounded
MAX_STEPS = {"anderson": 1000, None: 10_000}  # the plain iteration of a contraction of 0.99 takes 2,750 to eps^(3/4)

Vector = Float[Array, " n"]


class AdjointIteration(eqx.Module):
    """Tolerances of the adjoint iteration, relative to the right-hand side's norm (None: eps^(3/4)); `accelerate`: by
    Anderson's method, or not."""

    rtol: Any = None
    atol: Any = None
    max_steps: int | None = eqx.field(static=True, default=None)
    accelerate: Acceleration = eqx.field(static=True, default="anderson")

    def __call__(
        self, step: Callable[[Vector], Vector], b: Vector, noise: Any = None
    ) -> tuple[Vector, Array, Array, Array]:
        """The fixed point of w <- step(w), from w = 0, for |b| = 1: -> w, converged, steps, residual |step(w) - w|.

        `noise`: what the rounding of a step is, below which no residual comes, whatever the tolerance. None: `rounding`'s
        sample of it; 0 where no preconditioner amplifies it.
        """
        noise = rounding(step, b) if noise is None else noise
        default = jnp.finfo(b.dtype).eps ** 0.75
        rtol = default if self.rtol is None else self.rtol
        atol = jnp.maximum(default if self.atol is None else self.atol, SAFE * noise)
        # In the norm that b has: the largest entry would let n of them be off by the tolerance each.
        method = AndersonAcceleration(rtol, atol, norm=optx.two_norm, history=HISTORY)
        limit = MAX_STEPS[self.accelerate] if self.max_steps is None else self.max_steps
        if self.accelerate is None:
            w, near, steps = _plain(step, method.error, b, limit)
        else:
            w, near, steps = _accelerated(step, method, b, limit)
        # So large a w does not move when the right-hand side, of norm one, is added: it looks converged and is not.
        size = jnp.linalg.norm(w)
        regular = (size < SINGULAR / jnp.finfo(b.dtype).eps) & (noise <= SINGULAR * size)
        return w, near & regular & jnp.isfinite(size), steps, jnp.linalg.norm(step(w) - w)


Step = Callable[[Vector], Vector]
Found = tuple[Vector, Array, Array]  # w, whether it is there, after how many steps


def _plain(step: Step, error: Callable[[Vector, Vector], Array], b: Vector, limit: int) -> Found:
    """w <- step(w)."""

    def going(carry):
        _, left, steps = carry
        return (left >= 1) & (steps < limit)

    def advance(carry):
        w, _, steps = carry
        image = step(w)
        return image, error(image - w, image), steps + 1

    start = jnp.zeros_like(b), jnp.array(jnp.inf, b.dtype), jnp.array(0, jnp.int32)
    w, left, steps = jax.lax.while_loop(going, advance, start)
    return w, left < 1, steps


def _accelerated(step: Step, method: AndersonAcceleration, b: Vector, limit: int) -> Found:
    """The same by Anderson's method."""

    def going(carry):
        _, state, steps = carry
        return (state.error >= 1) & (steps < limit)

    def advance(carry):
        w, state, steps = carry
        return *method.advance(w, step(w) - w, state), steps + 1

    w = jnp.zeros_like(b)
    w, state, steps = jax.lax.while_loop(going, advance, (w, method.start(w), jnp.array(0, jnp.int32)))
    return w, state.error < 1, steps


def unit(b: Vector) -> tuple[Vector, Array]:
    size = jnp.linalg.norm(b)
    size = jnp.where(size > 0, size, 1)
    return b / size, size


def rounding(step: Callable[[Vector], Vector], b: Vector) -> Array:
    """The rounding of w <- step(w) near its fixed point, where a preconditioner amplifies it by the condition of the system.

    The step is an affine map, whose second difference is zero: what is left of one is rounding. It is taken at step(0), which
    is as large as the fixed point where the preconditioner is good.
    """
    w = step(jnp.zeros_like(b))
    moved = w * jnp.where(jnp.arange(b.size) % 2 == 0, ODD, -ODD).astype(b.dtype)
    low, middle, high = jax.vmap(step)(jnp.stack([w - moved, w, w + moved]))
    return jnp.linalg.norm(low - 2 * middle + high)


def factor(at: Linearization, name: PreconditionerName, start: Any) -> Any:
    """The LU factors of df/dy at the solution (`last`: what the forward solver ended with) or at the start."""
    if name == "identity":
        return None
    here = at if name == "last" else Linearization(at.residual, at.theta, start)
    n = at.flat[0].size
    columns = jax.vmap(here.dy)(jnp.eye(n, dtype=at.flat[0].dtype))
    return jax.scipy.linalg.lu_factor(columns.T)


def precondition(factors: Any, v: Vector, transposed: bool) -> Vector:
    """B^-1 v or B^-T v; v itself without factors."""
    if factors is None:
        return v
    return jax.scipy.linalg.lu_solve(factors, v, trans=1 if transposed else 0)
