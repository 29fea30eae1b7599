"""`ForwardSensitivity`: the state and its tangents in one solve, for `diffrax.diffeqsolve(..., adjoint=...)`."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from implicitexp.adjoints.continuous.diffrax_forward import Recording, Setup, Solved
from implicitexp.adjoints.continuous.diffrax_outputs import Saved
from implicitexp.adjoints.continuous.diffrax_problem import Problem
from implicitexp.adjoints.continuous.diffrax_rule import AbstractContinuous
from implicitexp.adjoints.continuous.diffrax_tangents import tangents_of
from implicitexp.adjoints.continuous.walk import Backward, Outputs
from implicitexp.errors import Unsupported

MAX_PARAMETERS = 200


class ForwardSensitivity(AbstractContinuous):
    """Forward sensitivities: S' = (dF/dy) S + dF/dtheta beside the state, for few parameters.

    `jax.jvp` and `jax.jacfwd` solve the state with the tangents asked for. `jax.grad` carries the Jacobian: a tangent for
    each number that is differentiated (of y0, args, t0, ...), each scaled by that number's size, so that the absolute
    tolerance means the same for all.

    `in_error_test`: whether the tangents take part in the step control (the largest norm of the state and of every
    tangent), or follow the state's steps. `batch`: in reverse mode, how many tangents are solved together (None: all); an
    implicit method has a matrix of n (batch + 1). `max_parameters`: reverse mode is refused above that many numbers.

    Second derivatives, `jax.hessian` and `jacfwd` of `jacfwd`, by y0, args, t0, t1 and `ts`: the sensitivities have
    sensitivities, again in the error test. Not with an event.

    Source: J. R. Leis and M. A. Kramer 1988, "The simultaneous solution and sensitivity analysis of systems described by
    ordinary differential equations", ACM TOMS 14.

    **Raises** `Unsupported` as `AbstractContinuous` says, above `max_parameters`, and in reverse mode by complex numbers.
    """

    in_error_test: bool = eqx.field(static=True, default=True)
    batch: int | None = eqx.field(static=True, default=None)
    max_parameters: int = eqx.field(static=True, default=MAX_PARAMETERS)

    def __check_init__(self):
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"ForwardSensitivity(batch={self.batch}): a number of tangents, at least 1.")

    def recording(self, problem: Problem, setup: Setup) -> Recording:
        return Recording([], [])

    def tangents(self, solved: Solved, moving: list[Array]) -> tuple[list[PyTree], list[Array]]:
        return tangents_of(solved, moving, self)

    def check_reverse(self, numbers: int) -> None:
        if numbers > self.max_parameters:
            raise Unsupported(
                f"ForwardSensitivity under jax.grad costs a tangent for each of the {numbers} numbers that this solve is "
                f"differentiated by, and is refused above {self.max_parameters}: use Gauss() or Replay(), or "
                f"ForwardSensitivity(max_parameters={numbers}, batch=32)."
            )

    def backward(self, solved: Solved, ahead: Outputs, saved: Saved) -> tuple[Backward, list[Array]]:
        raise Unsupported("ForwardSensitivity has no adjoint state.")

    def pull(self, solved: Solved, ys: list[PyTree], ts: list[Array]) -> tuple[list[Array], list[Array]]:
        theta = solved.chosen.theta
        if any(jnp.iscomplexobj(x) for x in theta):
            raise Unsupported(
                "ForwardSensitivity under jax.grad takes real numbers: the tangents by complex ones are not carried. Use "
                "Gauss(), or differentiate by real and imaginary part."
            )
        if not solved.rows:
            return jax.tree.map(jnp.zeros_like, theta), []
        flat, unravel = ravel_pytree(theta)
        scale = jnp.where(flat == 0, 1, jnp.abs(flat))
        masked = [row.masked((y, t)) for row, y, t in zip(solved.rows, ys, ts, strict=True)]
        products = self._products(solved, jnp.diag(scale), unravel, masked)
        return jax.tree.map(lambda x, g: g.astype(x.dtype), theta, unravel(products / scale)), []

    def _products(self, solved: Solved, directions: Array, unravel: Any, cotangents: list[PyTree]) -> Array:
        """<cotangent, J v> for every row v of `directions`, batch by batch."""
        count = directions.shape[0]
        size = count if self.batch is None else min(self.batch, count)
        padded = jnp.pad(directions, ((0, -count % size), (0, 0))).reshape(-1, size, directions.shape[1])

        def one(batch):
            columns = list(zip(*self.tangents(solved, jax.vmap(unravel)(batch)), strict=True))

            def product(column, cotangent):
                leaves = zip(jax.tree.leaves(column), jax.tree.leaves(cotangent), strict=True)
                products = (jnp.where(c == 0, 0, x * c) for x, c in leaves)  # zero also where x is not known
                return sum(jnp.sum(x.reshape(size, -1), axis=1).real for x in products)

            return jnp.stack([product(*x) for x in zip(columns, cotangents, strict=True)]).sum(0)

        return jax.lax.map(one, padded).reshape(-1)[:count]
