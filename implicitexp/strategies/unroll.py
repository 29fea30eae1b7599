"""`unroll`: backpropagate through what the solver did."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from implicitexp.adjoints.implicit.last_steps import last_steps
from implicitexp.errors import Unsupported
from implicitexp.solvers.base import PLAIN, Loop

from .base import KIND_WORDS, AbstractCell, AbstractStrategy, Backward, Split, check_solver, refuse


class Unroll(AbstractStrategy):
    """Backpropagate through the iterations (root, fixed point), the accepted steps (ODE) or the adaptive rule
    (integral). Exact for the program; for the problem only as far as the program resolves it.

    `checkpoints`: how many states are kept, the others being recomputed (None: about the logarithm of `max_steps`).
    `last`: differentiate the last k iterations only, the state before them held constant (root and fixed point).
    """

    checkpoints: int | None = eqx.field(static=True, default=None)
    last: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.checkpoints is not None and self.last is not None:
            raise Unsupported("unroll takes checkpoints or last, not both: the last k iterations are all kept.")

    def cell(self, kind, solver) -> AbstractCell:
        check_solver("unroll", solver)
        if self.last is None:
            return UnrollCell(Loop("checkpointed", self.checkpoints))
        if kind in ("root", "fixed_point"):
            return LastStepsCell(self.last)
        raise refuse(f"unroll with last={self.last}", kind, f"unroll without `last` for {KIND_WORDS[kind]}, or adjoint")


class UnrollCell(AbstractCell):
    """The whole loop: reverse mode through its checkpointed form, forward mode through its plain one."""

    loop: Loop

    def linearize(self, split: Split):
        value, pullback, stats = jax.vjp(lambda theta: split.call(theta).run(self.loop), split.theta, has_aux=True)
        return value, stats, (split, pullback)

    def push(self, residuals, tangents: list[Array]) -> PyTree:
        split, _ = residuals
        return forward_through(lambda theta: split.call(theta).run(PLAIN)[0], split.theta, tangents)

    def pull(self, residuals, cotangent: PyTree):
        _, pullback = residuals
        return pullback(cotangent)[0], Backward.exact()


class LastStepsCell(AbstractCell):
    """The last k iterations."""

    last: int = eqx.field(static=True)

    def linearize(self, split: Split):
        value, pullback, stats = jax.vjp(self._solve(split), split.theta, has_aux=True)
        return value, stats, (split, pullback)

    def push(self, residuals, tangents: list[Array]) -> PyTree:
        split, _ = residuals
        return forward_through(lambda theta: self._solve(split)(theta)[0], split.theta, tangents)

    def pull(self, residuals, cotangent: PyTree):
        _, pullback = residuals
        return pullback(cotangent)[0], Backward.exact()

    def _solve(self, split: Split) -> Any:
        return lambda theta: last_steps(split.call(theta), self.last)


def forward_through(fn: Any, theta: list[Array], tangents: list[Array]) -> PyTree:
    """The tangent of fn(theta); zero where theta is empty."""
    if not theta:
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(fn, theta))
    return jax.jvp(fn, (theta,), (tangents,))[1]
