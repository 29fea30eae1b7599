"""BiCGStab that does not break down, for Lineax."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from implicitexp.adjoints.implicit.products import Vector, by_products


class Products(lx.AbstractLinearSolver):
    """Real systems by products alone: BiCGStab (two products a step, seven vectors), and from where it breaks down or stands
    still on, the smallest residual over 30 directions.

    It ends with |A x - b| <= atol + rtol |b|, in the Euclidean norm, by default eps^(7/8) and 0: nearly what LU would leave, for
    a b of any scale, and for 10 to 15 % more products than eps^(3/4). `max_steps` and the statistic "num_steps" count products;
    without a limit it ends where the residual comes down no more. A residual within 10 eps |A| |x| counts as converged,
    whatever the tolerance: no solution can be expected to have a smaller one.
    """

    rtol: Any = None
    atol: Any = 0.0
    max_steps: int | None = eqx.field(static=True, default=None)

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> PyTree:
        del options
        if operator.in_size() != operator.out_size():
            raise ValueError(
                f"Products needs a square matrix, and this one is {operator.out_size()} by {operator.in_size()}; use "
                "lineax.QR(), or lineax.Normal(lineax.CG(rtol, atol))."
            )
        return lx.linearise(operator)

    def compute(
        self, state: lx.AbstractLinearOperator, vector: PyTree, options: dict[str, Any]
    ) -> tuple[PyTree, lx.RESULTS, dict[str, Any]]:
        del options
        like, unravel = ravel_pytree(jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), state.in_structure()))
        b = ravel_pytree(vector)[0]
        size = jnp.linalg.norm(b)
        unit = jnp.where(size > 0, size, 1)
        rtol = jnp.finfo(b.dtype).eps ** 0.875 if self.rtol is None else self.rtol

        def unknowns(v: Vector) -> PyTree:
            return unravel(v.astype(like.dtype))

        def product(v: Vector) -> Vector:
            return ravel_pytree(state.mv(unknowns(v)))[0].astype(b.dtype)

        found = by_products(product, b / unit, tolerance=rtol + self.atol / unit, max_products=self.max_steps)
        reached = lx.RESULTS.stagnation
        if self.max_steps is not None:
            spent = found.products >= self.max_steps
            reached = lx.RESULTS.where(spent, lx.RESULTS.max_steps_reached, lx.RESULTS.stagnation)
        result = lx.RESULTS.where(found.converged, lx.RESULTS.successful, reached)
        return unknowns(found.x * size), result, {"num_steps": found.products, "max_steps": self.max_steps}

    def transpose(self, state: lx.AbstractLinearOperator, options: dict[str, Any]) -> tuple[PyTree, dict]:
        del options
        return state.transpose(), {}

    def conj(self, state: lx.AbstractLinearOperator, options: dict[str, Any]) -> tuple[PyTree, dict]:
        del options
        return lx.conj(state), {}

    def assume_full_rank(self) -> bool:
        return True
