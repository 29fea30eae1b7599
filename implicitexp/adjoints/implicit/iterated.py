"""The adjoint of a fixed point by a fixed point iteration of its own, matrix-free, with its own tolerance.

B. Christianson 1994, "Reverse accumulation and attractive fixed points", Optimization Methods and Software 3(4). The
iteration is accelerated (Anderson); that it did not converge is reported, never hidden.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import jax.scipy.linalg
import optimistix as optx
from jaxtyping import Array, Float

from implicitexp.adjoints.implicit.linear import SINGULAR, Linearization
from implicitexp.solvers.anderson import QUICK, AndersonAcceleration

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
        self, step: Callable[[Vector], Vector], b: Vector, noise: Any = None, start: Vector | None = None
    ) -> tuple[Vector, Array, Array, Array]:
        """The fixed point of w <- step(w), for |b| = 1: -> w, converged, steps, residual |step(w) - w|.

        `noise`: what the rounding of a step is, below which no residual comes, whatever the tolerance. None: `rounding`'s
        sample of it; 0 where no preconditioner amplifies it. `start`: step(0), which is known
        without a product, as the first w; zero if not given.
        """
        noise = rounding(step, b) if noise is None else noise
        default = jnp.finfo(b.dtype).eps ** 0.75
        rtol = default if self.rtol is None else self.rtol
        atol = jnp.maximum(default if self.atol is None else self.atol, SAFE * noise)
        # In the norm that b has: the largest entry would let n of them be off by the tolerance each.
        method = AndersonAcceleration(rtol, atol, norm=optx.two_norm, history=HISTORY)
        limit = MAX_STEPS[self.accelerate] if self.max_steps is None else self.max_steps
        w = jnp.zeros_like(b) if start is None else start
        if self.accelerate is None:
            w, near, steps = _plain(step, method, w, limit)
        else:
            w, near, steps = _accelerated(step, method, w, limit)
        # So large a w does not move when the right-hand side, of norm one, is added: it looks converged and is not.
        size = jnp.linalg.norm(w)
        regular = (size < SINGULAR / jnp.finfo(b.dtype).eps) & (noise <= SINGULAR * size)
        return w, near & regular & jnp.isfinite(size), steps, jnp.linalg.norm(step(w) - w)


Step = Callable[[Vector], Vector]
Found = tuple[Vector, Array, Array]  # w, whether it is there, after how many steps


class _Plain(NamedTuple):
    """Plain steps: the next w, the last one with its residual and that one's size, and how near it was."""

    w: Vector
    before: Vector
    r: Vector
    size: Array
    error: Array
    steps: Array
    quick: Array  # each step contracted by QUICK


def _steps(step: Step, method: AndersonAcceleration, w: Vector, limit: int, whole: bool) -> _Plain:
    """w <- step(w) to the tolerance, or unless `whole` until one step contracts less than by QUICK."""

    def going(c: _Plain):
        return (c.error >= 1) & (c.steps < limit) & (whole | c.quick)

    def advance(c: _Plain):
        image = step(c.w)
        r = image - c.w
        size = jnp.linalg.norm(r)
        return _Plain(image, c.w, r, size, method.error(r, c.w), c.steps + 1, size <= QUICK * c.size)

    far = jnp.array(jnp.inf, w.dtype)
    return jax.lax.while_loop(going, advance, _Plain(w, w, w, far, far, jnp.array(0, jnp.int32), jnp.array(True)))


def _plain(step: Step, method: AndersonAcceleration, w: Vector, limit: int) -> Found:
    c = _steps(step, method, w, limit, True)
    return c.w, c.error < 1, c.steps


def _accelerated(step: Step, method: AndersonAcceleration, w: Vector, limit: int) -> Found:
    """Plain steps while they are quick, as `method` itself has it, but in a loop without its history; then Anderson's."""
    c = _steps(step, method, w, limit, False)

    def going(carry):
        _, state, steps = carry
        return (state.error >= 1) & (steps < limit)

    def advance(carry):
        w, state, steps = carry
        return *method.advance(w, step(w) - w, state), steps + 1

    def slow(c: _Plain) -> Found:
        state = method.after(c.before, c.r, c.size, c.error)
        w, state, steps = jax.lax.while_loop(going, advance, (c.w, state, c.steps))
        return w, state.error < 1, steps

    wanted = eqxi.unvmap_any(c.error >= 1)
    return jax.lax.cond(wanted, slow, lambda c: (c.w, c.error < 1, c.steps), c)


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
