"""`forward`: forward mode, carried to reverse by the Jacobian."""

from typing import Any

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from implicitexp.adjoints.linear import LinearSolve
from implicitexp.adjoints.sensitivity import sensitivities
from implicitexp.solvers.base import PLAIN

from .base import AbstractCell, AbstractStrategy, Backward, Split
from .implicit import ImplicitCell
from .unroll import forward_through


class Forward(AbstractStrategy):
    """Forward mode: implicit differentiation (root, fixed point), forward sensitivities with the tangents in the
    error test (ODE), forward mode on the converged mesh (integral).

    Under `jax.grad` it carries the Jacobian, a tangent for each number that is differentiated. `directions`: train on
    the mean of that many random directional derivatives instead (needed above MAX_PARAMETERS parameters).
    """

    directions: int | None = eqx.field(static=True, default=None)

    def cell(self, kind, solver) -> AbstractCell:
        return {"ode": SensitivityCell, "integral": TangentCell}.get(kind, ImplicitTangentCell)()


def pull_by_basis(push: Any, theta: list[Array], cotangent: PyTree) -> list[Array]:
    """The transpose of `push` by its columns: <cotangent, push(e_i)> for every number of theta."""
    if not theta:
        return []
    flat, unravel = jax.flatten_util.ravel_pytree(theta)

    def column(direction):
        products = jax.tree.map(lambda a, b: jnp.sum(a * b), push(unravel(direction)), cotangent)
        return sum(jax.tree.leaves(products), jnp.zeros((), flat.dtype))

    return unravel(jax.vmap(column)(jnp.eye(flat.size, dtype=flat.dtype)).astype(flat.dtype))


class TangentCell(AbstractCell):
    """Forward mode through the solver's own loop."""

    def linearize(self, split: Split):
        value, stats = split.call().run()
        return value, stats, split

    def push(self, residuals, tangents: list[Array]) -> PyTree:
        return forward_through(lambda theta: residuals.call(theta).run(PLAIN)[0], residuals.theta, tangents)

    def pull(self, residuals, cotangent: PyTree):
        return pull_by_basis(lambda t: self.push(residuals, t), residuals.theta, cotangent), Backward.exact()


class ProgramTangent(AbstractStrategy):
    """The witness of the program's derivative, for every kind: forward mode through the solver's own plain loop.

    It uses no implicit rule and no adjoint, so it shares no code with what it judges but the solver: every accepted
    step, mesh and iteration is differentiated as it was taken. Meant for `jax.jvp` with a `solve` that has no tap;
    reverse mode works for as few parameters as `forward` takes.
    """

    def cell(self, kind, solver) -> AbstractCell:
        return TangentCell()


class ImplicitTangentCell(AbstractCell):
    """dy = -(df/dy)^-1 (df/dtheta) dtheta, a linear solve a tangent."""

    def linearize(self, split: Split):
        return self.implicit.linearize(split)

    @property
    def implicit(self) -> ImplicitCell:
        return ImplicitCell(LinearSolve())

    def push(self, residuals, tangents: list[Array]) -> PyTree:
        return self.implicit.push(residuals, tangents)

    def pull(self, residuals, cotangent: PyTree):
        theta = residuals[0].theta
        return pull_by_basis(lambda t: self.push(residuals, t), theta, cotangent), Backward.exact()


class SensitivityCell(AbstractCell):
    """The ODE solved together with its sensitivities, all in one error test."""

    def linearize(self, split: Split):
        value, stats = split.call().run()
        return value, stats, split

    def push(self, residuals, tangents: list[Array]) -> PyTree:
        if not tangents:
            return forward_through(lambda theta: residuals.call(theta).run(PLAIN)[0], [], [])
        one = [t[None] for t in tangents]
        return jax.tree.map(lambda x: x[0], sensitivities(residuals, one)[0])

    def pull(self, residuals, cotangent: PyTree):
        if not residuals.theta:
            return [], Backward.exact()
        flat, unravel = jax.flatten_util.ravel_pytree(residuals.theta)
        columns, converged, steps = sensitivities(residuals, jax.vmap(unravel)(jnp.eye(flat.size, dtype=flat.dtype)))
        products = jax.tree.map(
            lambda s, c: jnp.tensordot(s.reshape(s.shape[0], -1), c.reshape(-1), 1), columns, cotangent
        )
        total = sum(jax.tree.leaves(products), jnp.zeros(flat.size, flat.dtype))
        return unravel(total), Backward(converged, steps, jnp.zeros(()))
