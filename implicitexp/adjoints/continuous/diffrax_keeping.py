"""States that a forward solve keeps beside Diffrax's own loop, few among all of its steps: for `Backsolve`."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from implicitexp.adjoints.discrete.record import Thinned, plain_loop


class Kept(eqx.Module):
    """States that were kept of the steps, in the order of time; padding: inf."""

    ts: Float[Array, " checkpoints"]
    ys: PyTree


class Keeping:
    """Diffrax's loop over the steps, which keeps at most `count` states beside that of the start, in equal distances. `count`:
    odd, or one more."""

    def __init__(self, count: int):
        self.count = count + 1 - count % 2
        self.places: list[Thinned] = []

    def __call__(self, cond, body, state, *, max_steps, buffers):
        def step(carry):
            state = body(carry[0])
            return state, carry[1].written(state.num_accepted_steps, (state.tprev, state.y))

        def both_buffers(carry):
            return [*buffers(carry[0]), *carry[1].buffers]

        start = (state, Thinned.like((state.tprev, state.y), self.count + 1))
        options = {"max_steps": max_steps, "buffers": both_buffers}
        state, places = plain_loop(lambda carry: cond(carry[0]), step, start, **options)
        self.places = [places]
        return state

    def kept(self, steps: Array) -> list[Kept]:
        """Of those steps that were accepted; the start's state is not among them."""
        if not self.places:
            return []
        (places,) = self.places
        kept = jnp.arange(1, self.count + 1) * places.stride
        times, states = jax.vmap(places.read)(kept)
        there = kept <= steps
        return [Kept(jnp.where(there, times, jnp.inf), states)]
