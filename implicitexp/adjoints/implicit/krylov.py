"""The smallest residual in a Krylov space that starts from a good guess of the inverse.

Simpler GMRES with right preconditioning, whose next direction is the residual where that has fallen, else the last image:
P. Jiranek and M. Rozloznik 2010, "Adaptive version of simpler GMRES", Numerical Algorithms 53(1). Unlike Lineax's GMRES it
looks at the residual after each product, which is where a good preconditioner ends it: after one or two.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from implicitexp.solvers.anderson import put

FALLEN = 0.9  # of the residual before: with less progress the residual is no new direction (section 4 there)
MEMORY = 30  # directions that are kept, 10 more than by Lineax's GMRES; a good preconditioner needs two or three
KEPT = 2**14  # numbers: more directions, up to n of them, where these hold more, which end it without a good one
SPENT = 100.0  # in units of eps: an image that keeps less than this of its length lies in the space of the last ones

Vector = Float[Array, " n"]


def smallest_residual(
    apply: Callable[[Vector], Vector],
    inverse: Callable[[Vector], Vector],
    b: Vector,
    x: Vector,
    *,
    max_steps: int | Int[Array, ""],
    memory: int,
    tolerance: Any,
) -> tuple[Vector, Array]:
    """From x on, until |A x - b| <= tolerance, for at most `max_steps` products: -> x, how many.

    The residual never grows. It is minimal over the last `memory` directions; with `memory` >= n and exact arithmetic it is
    zero after n steps.
    """
    eps = jnp.finfo(b.dtype).eps
    residual = b - apply(x)
    none = jnp.zeros((min(memory, max(b.size, 1)), b.size), b.dtype)

    def going(carry):
        _, residual, direction, _, _, step = carry
        return (jnp.linalg.norm(residual) > tolerance) & (step < max_steps) & jnp.any(direction != 0)

    def advance(carry):
        x, residual, direction, moves, images, step = carry
        move = inverse(direction)
        image = apply(move)
        length = jnp.linalg.norm(image)
        for _ in range(2):  # twice is enough (Giraud, Langou and Rozloznik 2005)
            along = images @ image
            image, move = image - along @ images, move - along @ moves
        rest = jnp.linalg.norm(image)
        size = jnp.where(rest > SPENT * eps * length, 1 / jnp.where(rest > 0, rest, 1), 0)
        image, move = image * size, move * size
        share = image @ residual
        x, after = x + share * move, residual - share * image
        fell = jnp.linalg.norm(after) <= FALLEN * jnp.linalg.norm(residual)
        direction = jnp.where(fell, _unit(after), image)
        place = step % none.shape[0]
        return x, after, direction, put(moves, move, place), put(images, image, place), step + 1

    start = (x, residual, _unit(residual), none, none, jnp.array(0, jnp.int32))
    x, _, _, _, _, steps = jax.lax.while_loop(going, advance, start)
    return x, steps


def directions(n: int) -> int:
    """How many to keep of n unknowns: all of up to 128."""
    return max(MEMORY, min(n, KEPT // max(n, 1)))


def _unit(v: Vector) -> Vector:
    size = jnp.linalg.norm(v)
    return v / jnp.where(size > 0, size, 1)
