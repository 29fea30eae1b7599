"""Linear solves with the Jacobian at a solution: what an implicit derivative costs.

`f(theta, y) = 0` defines y(theta): dy = -(df/dy)^-1 (df/dtheta) dtheta. Nothing here raises when a system is singular:
each function returns whether it converged, so that one bad lane of a vmap does not end the others.
"""

from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from implicitexp.adjoints.implicit.products import by_products

LinearSolverName = Literal["auto", "lu", "qr", "cg", "gmres", "bicgstab", "normal_cg"]
DENSE_UP_TO = 256  # unknowns: above this `auto` is matrix-free (BiCGStab), see docs/strategies.md
SINGULAR = 0.1  # an amplification |A| |x| / |b| above this over eps: no digit of x is right
LOOSE = 100.0  # a residual above this times the tolerance is not a solution, whatever the solver says


class LinearSolve(eqx.Module):
    """How to solve A x = b: `name`, and for the iterative methods tolerances (None: those of the solver). `max_steps` counts
    products with `auto` and `bicgstab`, else what Lineax's method counts."""

    name: LinearSolverName = eqx.field(static=True, default="auto")
    rtol: Any = None
    atol: Any = None
    max_steps: int | None = eqx.field(static=True, default=None)

    def __call__(
        self, apply: Callable[[Float[Array, " n"]], Float[Array, " n"]], b: Float[Array, " n"]
    ) -> tuple[Float[Array, " n"], Array, Array, Array]:
        """-> x, converged, steps, relative residual |A x - b| / |b|.

        b is brought to norm one first, so that an absolute tolerance means the same for every scale of the loss.
        """
        size = jnp.linalg.norm(b)
        size = jnp.where(size > 0, size, 1)
        b = b / size
        operator = lx.FunctionLinearOperator(apply, jax.ShapeDtypeStruct(b.shape, b.dtype))
        x, successful, steps, amplification = (self._by_factors if self._dense(b.size) else self._by_products)(
            operator, b
        )
        residual = jnp.linalg.norm(apply(x) - b)
        regular = amplification < SINGULAR / jnp.finfo(b.dtype).eps
        converged = successful & regular & jnp.all(jnp.isfinite(x))
        if not self._dense(b.size):
            rtol, atol = self._tolerances(b)
            converged = converged & (residual <= LOOSE * (rtol + atol))
        return x * size, converged, steps, residual

    def _by_factors(self, operator: Any, b: Array) -> tuple[Array, Array, Array, Array]:
        """-> x, whether the solver is content, steps, |A| |x| / |b|."""
        matrix = operator.as_matrix()
        solution = lx.linear_solve(lx.MatrixLinearOperator(matrix), b, self._direct(), throw=False)
        amplification = jnp.linalg.norm(matrix) * jnp.linalg.norm(solution.value)
        return solution.value, solution.result == lx.RESULTS.successful, jnp.array(1, jnp.int32), amplification

    def _by_products(self, operator: Any, b: Array) -> tuple[Array, Array, Array, Array]:
        """The same by products with A. Its size is seen from one product, enough to tell 1e16 from a solution."""
        product = operator.mv(b)
        if self.name in ("auto", "bicgstab"):
            found = by_products(
                lx.linearise(operator).mv, b, tolerance=sum(self._tolerances(b)), max_products=self.max_steps
            )
            x, successful, steps = found.x, found.converged, found.products
        else:
            solution = lx.linear_solve(*self._iterative(operator, b), throw=False)
            x, successful = solution.value, solution.result == lx.RESULTS.successful
            steps = jnp.asarray(solution.stats.get("num_steps", 0), jnp.int32)
        return x, successful, steps, jnp.linalg.norm(product) * jnp.linalg.norm(x)

    def _dense(self, n: int) -> bool:
        return self.name in ("lu", "qr") or (self.name == "auto" and n <= DENSE_UP_TO)

    def _direct(self) -> lx.AbstractLinearSolver:
        return lx.QR() if self.name == "qr" else lx.LU()

    def _tolerances(self, b: Array) -> tuple[Any, Any]:
        default = float(jnp.finfo(b.dtype).eps) ** 0.75
        return (default if self.rtol is None else self.rtol), (default if self.atol is None else self.atol)

    def _iterative(self, operator: Any, b: Array) -> tuple[Any, Array, Any]:
        """What `lx.linear_solve` takes; conjugate gradients want a definite operator, which `cg` promises to be positive."""
        rtol, atol = self._tolerances(b)
        if self.name == "cg":
            tagged = lx.TaggedLinearOperator(operator, lx.positive_semidefinite_tag)
            return tagged, b, lx.CG(rtol, atol, max_steps=self.max_steps)
        if self.name == "normal_cg":
            return operator, b, lx.Normal(lx.CG(rtol, atol, max_steps=self.max_steps))
        return operator, b, lx.GMRES(rtol, atol, max_steps=self.max_steps)


class Linearization(eqx.Module):
    """The equation f(theta, y) = 0 at its solution: products with df/dy and df/dtheta and their transposes."""

    residual: Any  # (theta, y) -> f, a pytree like y
    theta: list[Array]
    y: PyTree

    @property
    def flat(self) -> tuple[Float[Array, " n"], Callable]:
        return ravel_pytree(self.y)

    def dy(self, v: Float[Array, " n"]) -> Float[Array, " n"]:
        """(df/dy) v."""
        unravel = self.flat[1]
        out = jax.jvp(lambda y: self.residual(self.theta, y), (self.y,), (unravel(v),))[1]
        return ravel_pytree(out)[0]

    def dy_transposed(self, w: Float[Array, " n"]) -> Float[Array, " n"]:
        """(df/dy)^T w."""
        unravel = self.flat[1]
        pullback = jax.vjp(lambda y: self.residual(self.theta, y), self.y)[1]
        return ravel_pytree(pullback(unravel(w))[0])[0]

    def dtheta(self, tangents: list[Array]) -> Float[Array, " n"]:
        """(df/dtheta) t."""
        if not self.theta:
            return jnp.zeros_like(self.flat[0])
        return ravel_pytree(jax.jvp(lambda t: self.residual(t, self.y), (self.theta,), (tangents,))[1])[0]

    def dtheta_transposed(self, w: Float[Array, " n"]) -> list[Array]:
        """(df/dtheta)^T w."""
        return jax.vjp(lambda t: self.residual(t, self.y), self.theta)[1](self.flat[1](w))[0]
