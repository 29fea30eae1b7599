"""A x = b by products with A alone: BiCGStab, and where that breaks down or stands still the smallest residual.

H. A. van der Vorst 1992, "Bi-CGSTAB: a fast and smoothly converging variant of Bi-CG", SIAM J. Sci. Stat. Comput. 13(2): two
products a step and seven vectors, whatever the number of steps, where GMRES keeps them all. Its residual is not monotone, it
divides by numbers that can be zero, and it fails where A is nearly skew. `krylov.smallest_residual` has none of this, and goes
on from where BiCGStab has come to.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from implicitexp.adjoints.implicit.krylov import directions, smallest_residual

PATIENCE = 100  # steps without a residual smaller than ever before: BiCGStab stands still
FAR = 1e6  # a residual that is longer, in units of |b|, has cost as many digits
NOTHING = 10.0  # in units of eps: a product of two vectors below this share of their lengths is zero
PASS = 400  # its products before it is seen whether the residual has come down: 20 restarts of Lineax's GMRES
COME_DOWN = 0.9  # by less in a pass it stands still
ROUNDING = 10.0  # in units of eps |A| |x|: what no solution's residual can be expected to be below

Vector = Float[Array, " n"]
Product = Callable[[Vector], Vector]


class Solved(NamedTuple):
    """x, the products that it took, |A x - b|, and whether this is below the tolerance or what rounding leaves."""

    x: Vector
    products: Int[Array, ""]
    residual: Float[Array, ""]
    converged: Bool[Array, ""]


def by_products(apply: Product, b: Vector, *, tolerance: Any, max_products: int | None = None) -> Solved:
    """x with |A x - b| <= tolerance for real numbers. Without a limit it ends where the residual stands still."""
    limit = jnp.iinfo(jnp.int32).max if max_products is None else max_products
    tolerance = jnp.asarray(tolerance, b.dtype)
    start, size = _bicgstab(apply, b, tolerance, limit)
    # A branch also under vmap, where it is taken if a lane wants it; the others pass through it unchanged.
    wanted = eqxi.unvmap_any(~start.converged)
    return jax.lax.cond(
        wanted, lambda at, size: _smallest(apply, b, at, size, tolerance, limit), lambda at, _: at, start, size
    )


def _checked(apply: Product, b: Vector, x: Vector, products: Array, size: Array, tolerance: Array) -> Solved:
    """The residual as it is, not as the recurrence has it. `size` is that of A, as far as it was seen."""
    residual = jnp.linalg.norm(b - apply(x))
    eps = jnp.finfo(b.dtype).eps
    rounding = jnp.minimum(ROUNDING * eps * size * jnp.linalg.norm(x), eps**0.5 * jnp.linalg.norm(b))  # not if singular
    return Solved(x, products + 1, residual, (residual <= tolerance + rounding) & jnp.isfinite(residual))


class _Carry(NamedTuple):
    x: Vector
    r: Vector
    p: Vector
    rho: Array
    length: Array  # of r
    best: Array  # the smallest length until now
    idle: Array  # steps since then
    broken: Array  # a division by what is zero but for rounding, after which r is without bounds
    products: Array
    size: Array  # the largest |A s| / |s| seen


def _bicgstab(apply: Product, b: Vector, tolerance: Array, limit: int) -> tuple[Solved, Array]:
    """From x = 0, with b for the shadow of the residual; and the size of A."""
    nothing, size, zero = NOTHING * jnp.finfo(b.dtype).eps, jnp.linalg.norm(b), jnp.array(0, jnp.int32)

    def going(c: _Carry):
        return (c.length > tolerance) & (c.idle < PATIENCE) & ~c.broken & (c.products < limit)

    def advance(c: _Carry):
        v = apply(c.p)
        alpha = c.rho / _away(b @ v)
        s = c.r - alpha * v
        t = apply(s)
        tt, ts = t @ t, t @ s
        omega = ts / _away(tt)
        r = s - omega * t
        length, rho = jnp.linalg.norm(r), b @ r
        p = r + (rho / c.rho) * (alpha / _away(omega)) * (c.p - omega * v)
        ss = length**2 + omega * ts  # of s; neither can be negative
        broken = (length > FAR * size) | (ts * omega <= nothing**2 * ss)
        return _Carry(
            x=c.x + alpha * c.p + omega * s,
            r=r,
            p=p,
            rho=rho,
            length=length,
            best=jnp.minimum(length, c.best),
            idle=jnp.where(length < c.best, 0, c.idle + 1),
            broken=broken | (jnp.abs(rho) <= nothing * size * length),
            products=c.products + 2,
            size=jnp.maximum(c.size, jnp.sqrt(tt / _away(ss))),
        )

    start = _Carry(jnp.zeros_like(b), b, b, b @ b, size, size, zero, jnp.array(False), zero, jnp.zeros_like(size))
    end = jax.lax.while_loop(going, advance, start)
    x = jnp.where(end.length < size, end.x, 0)  # not finite, or longer: the smallest residual begins anew
    seen = jnp.where(jnp.isfinite(end.size), end.size, 0)
    return _checked(apply, b, x, end.products, seen, tolerance), seen


def _smallest(apply: Product, b: Vector, at: Solved, size: Array, tolerance: Array, limit: int) -> Solved:
    """Passes of the smallest residual, each from the residual as it is, until they come down no more."""

    def going(carry):
        at, before = carry
        return ~at.converged & (at.residual < COME_DOWN * before) & (at.products < limit)

    def advance(carry):
        at, _ = carry
        x, taken = smallest_residual(
            apply,
            lambda v: v,
            b,
            at.x,
            max_steps=jnp.minimum(PASS, limit - at.products),
            memory=directions(b.size),
            tolerance=tolerance / 2,
        )
        return _checked(apply, b, x, at.products + taken + 1, size, tolerance), at.residual

    return jax.lax.while_loop(going, advance, (at, jnp.full_like(at.residual, jnp.inf)))[0]


def _away(x: Array) -> Array:
    """x, or one where it is zero: what it divides is zero too."""
    return jnp.where(x == 0, 1, x)
