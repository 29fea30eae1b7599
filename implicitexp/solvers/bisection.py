"""Optimistix's bisection for code that runs under `vmap`: a lane whose interval holds no root ends no program."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Bool, PyTree, Scalar


class QuietBisection(optx.AbstractRootFinder):
    """Bisection that finds out by itself whether fn rises or falls, and never converges where it has no root.

    Asked to detect the direction itself, `optx.Bisection` raises at run time if the ends have the same sign, and takes a
    root exactly at an end for none. Like it, this needs `options={"lower": ..., "upper": ...}`. A start outside the
    interval is moved to its end.
    """

    rtol: Any
    atol: Any
    norm: ClassVar[Callable[[PyTree], Scalar]] = jnp.abs

    @property
    def inner(self) -> optx.Bisection:
        return optx.Bisection(self.rtol, self.atol, flip=False)

    def init(self, fn, y, args, options, f_struct, aux_struct, tags) -> Any:
        state = self.inner.init(fn, y, args, options, f_struct, aux_struct, tags)
        lower, upper = fn(state.lower, args)[0], fn(state.upper, args)[0]
        bracketed = jnp.sign(lower) * jnp.sign(upper) <= 0
        start = jnp.where(bracketed, state.lower, jnp.nan)
        return eqx.tree_at(lambda s: (s.lower, s.flip), state, (start, lower > upper))

    def step(self, fn, y, args, options, state, tags) -> tuple[PyTree, Any, PyTree]:
        return self.inner.step(fn, jnp.clip(y, state.lower, state.upper), args, options, state, tags)

    def terminate(self, fn, y, args, options, state, tags) -> tuple[Bool[Array, ""], optx.RESULTS]:
        return self.inner.terminate(fn, y, args, options, state, tags)

    def postprocess(self, fn, y, aux, args, options, state, tags, result):
        return self.inner.postprocess(fn, y, aux, args, options, state, tags, result)
