"""An integral in pieces, between the places where its integrand jumps."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from implicitexp.equations import Integral

# Of the size of a break or of the piece beside it: how far off a break the integrand is evaluated. Its own comparison with
# the break may round differently (a fused multiplication) from what `breaks` returned.
MARGIN = 4.0


def ends(equation: Integral, args: PyTree) -> Float[Array, " ends"]:
    """The limits with the breaks between them, in order from `lower` to `upper`; the derivative of each is its own.

    A break that is not strictly between the limits is replaced by the limit that is nearer, so that a piece is empty.
    """
    lower, upper = equation.lower, equation.upper
    if equation.breaks is None:
        return jnp.stack([lower, upper])
    (places,) = jax.tree.leaves(equation.breaks(args))
    places = places.astype(lower.dtype)
    way = jnp.where(upper < lower, -1, 1).astype(lower.dtype)
    between = (way * lower < way * places) & (way * places < way * upper)
    places = jnp.where(between, places, jnp.where(way * places <= way * lower, lower, upper))
    return jnp.concatenate([lower[None], way * jnp.sort(way * places), upper[None]])


def inside(x: Array, lower: Array, upper: Array) -> Array:
    """x, moved off the ends of its piece by a few roundings; its derivative is one. So the integrand takes the limit
    from inside the piece, and its sides of a jump belong to different pieces."""
    at, lower, upper = jax.lax.stop_gradient((x, jnp.minimum(lower, upper), jnp.maximum(lower, upper)))
    width = upper - lower
    least = MARGIN * jnp.finfo(at.dtype).eps

    def off(end):
        size = jnp.maximum(jnp.abs(end), jnp.where(jnp.isfinite(width), width, 1))
        return jnp.where(jnp.isfinite(end), jnp.minimum(least * size, width / 4), 0)

    moved = jnp.clip(at, lower + off(lower), upper - off(upper))
    return x + jnp.where(jnp.isfinite(at), moved - at, 0)
