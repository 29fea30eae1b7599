"""`forward`: forward mode, carried to reverse by the Jacobian."""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from implicitexp.adjoints.continuous.calls import sensitivities
from implicitexp.adjoints.implicit.linear import LinearSolve
from implicitexp.adjoints.implicit.linear_map import linear_map
from implicitexp.errors import Unsupported
from implicitexp.solvers.base import PLAIN, all_finite
from implicitexp.solvers.ode import AbstractFixedStep

from .base import MAX_PARAMETERS, AbstractCell, AbstractStrategy, Backward, Split, check_solver
from .implicit import ImplicitCell
from .unroll import forward_through


class Directions(eqx.Module):
    """Along which directions of theta a Jacobian is carried: all (`count` None), or `count` random ones.

    Random ones have entries +1 and -1 (M. F. Hutchinson 1990), so the mean of <c, J v> v over them is an unbiased
    estimate of J^T c. The same key gives the same directions.
    """

    count: int | None = eqx.field(static=True, default=None)
    key: PRNGKeyArray | None = None

    def __check_init__(self):
        if self.count is not None and self.count < 1:
            raise Unsupported(f"directions={self.count} must be at least 1, or None for every number.")

    def check(self, name: str, numbers: int) -> None:
        """**Raises** `Unsupported` if reverse mode would need more solves than anybody wants."""
        if self.count is None and numbers > MAX_PARAMETERS:
            raise Unsupported(
                f"{name} under jax.grad costs a tangent for each of the {numbers} numbers that this solve is "
                f"differentiated by, and is refused above {MAX_PARAMETERS}: use adjoint, implicit or unroll, or "
                f"{name} with directions=8 (an unbiased estimate along 8 random directions)."
            )

    def of(self, theta: list[Array]) -> tuple[Float[Array, "directions n"], Callable]:
        """The directions as rows, and what makes a row a tangent of theta."""
        flat, unravel = jax.flatten_util.ravel_pytree(theta)
        if self.count is None:
            return jnp.eye(flat.size, dtype=flat.dtype), unravel
        key = jax.random.key(0) if self.key is None else self.key
        return jax.random.rademacher(key, (self.count, flat.size), flat.dtype), unravel

    def combine(self, rows: Float[Array, "directions n"], products: Float[Array, " directions"]) -> Float[Array, " n"]:
        """J^T c from <c, J v> for every row v."""
        products = products.astype(rows.dtype)
        return products if self.count is None else products @ rows / self.count


class AbstractDirectional(AbstractStrategy):
    """A strategy that carries the Jacobian to reverse mode: along every number, or along `directions` random ones."""

    per_parameter: ClassVar[bool] = True
    directions: eqx.AbstractVar[int | None]
    key: eqx.AbstractVar[PRNGKeyArray | None]

    def drawn(self, key: PRNGKeyArray) -> AbstractStrategy:
        """New directions: else training would stay in the span of the first."""
        return self if self.directions is None else dataclasses.replace(self, key=key)


class Forward(AbstractDirectional):
    """Forward mode: implicit differentiation (root, fixed point), forward sensitivities with the tangents in the
    error test (ODE), forward mode on the converged mesh (integral).

    Under `jax.grad` it carries the Jacobian, a tangent for each number that is differentiated. `directions`: the mean
    of that many random directional derivatives instead, drawn with `key` (None: `jax.random.key(0)`); needed above
    MAX_PARAMETERS numbers in one solve.
    """

    directions: int | None = eqx.field(static=True, default=None)
    key: PRNGKeyArray | None = None

    def cell(self, kind, solver) -> AbstractCell:
        directions = Directions(self.directions, self.key)
        if isinstance(solver, AbstractFixedStep):  # no error test, in which tangents could stand
            return TangentCell(directions)
        return {"ode": SensitivityCell, "integral": TangentCell}.get(kind, ImplicitTangentCell)(directions)


def first_order(name: str, moved: list[Array]) -> list[Array]:
    """The same cotangents, which are not differentiated in reverse mode again: the loops that they come from cannot be.

    **Raises** `Unsupported` where that is asked for.
    """

    def refuse():
        raise Unsupported(
            f"{name} has second derivatives by forward mode over reverse mode, not by reverse mode over reverse mode: use "
            "jax.hessian, jax.jacfwd(jax.grad(...)) or jax.jvp of jax.grad, not jax.grad of jax.grad."
        )

    return linear_map(lambda _, x: x, lambda _, x: x, (), moved, like=moved, check=refuse) if moved else moved


Push = Callable[[list[Array]], tuple[PyTree, Backward]]


def pull_along(
    directions: Directions, push: Push, theta: list[Array], cotangent: PyTree
) -> tuple[list[Array], Backward]:
    """The transpose of `push` by its columns: <cotangent, push(v)> for every direction v of theta."""
    if not theta:
        return [], Backward.exact()
    rows, unravel = directions.of(theta)

    def column(row):
        tangent, backward = push(unravel(row))
        products = jax.tree.map(lambda a, b: jnp.sum(a * b), tangent, cotangent)
        return sum(jax.tree.leaves(products), jnp.zeros((), rows.dtype)), backward

    products, backward = jax.vmap(column)(rows)
    total = Backward(jnp.all(backward.converged), jnp.sum(backward.steps), jnp.max(backward.residual))
    return unravel(directions.combine(rows, products)), total


class TangentCell(AbstractCell):
    """Forward mode through the solver's own loop."""

    directions: Directions

    def linearize(self, split: Split):
        value, stats = split.call().run()
        return value, stats, split

    def push(self, residuals, tangents: list[Array]) -> PyTree:
        return forward_through(lambda theta: residuals.call(theta).run(PLAIN)[0], residuals.theta, tangents)

    def check_reverse(self, numbers: int) -> None:
        self.directions.check("forward", numbers)

    def pull(self, residuals, cotangent: PyTree):
        def push(tangents):
            tangent = self.push(residuals, tangents)
            return tangent, Backward(all_finite(tangent), jnp.array(0, jnp.int32), jnp.zeros(()))

        moved, backward = pull_along(self.directions, push, residuals.theta, cotangent)
        is_loop = residuals.call().equation.kind != "integral"  # whose rule is a sum
        return first_order("forward", moved) if is_loop else moved, backward


class ProgramTangent(AbstractStrategy):
    """The witness of the program's derivative, for every kind: forward mode through the solver's own plain loop.

    It uses no implicit rule and no adjoint, so it shares no code with what it judges but the solver: every accepted
    step, mesh and iteration is differentiated as it was taken. Meant for `jax.jvp` with a `solve` that has no tap;
    reverse mode works for as few parameters as `forward` takes.
    """

    def cell(self, kind, solver) -> AbstractCell:
        check_solver("unroll", solver)
        return TangentCell(Directions())


class ImplicitTangentCell(AbstractCell):
    """dy = -(df/dy)^-1 (df/dtheta) dtheta, a linear solve a tangent."""

    directions: Directions

    def linearize(self, split: Split):
        return self.implicit.linearize(split)

    @property
    def implicit(self) -> ImplicitCell:
        return ImplicitCell(LinearSolve())

    def push(self, residuals, tangents: list[Array]) -> PyTree:
        return self.implicit.push(residuals, tangents)

    def check_reverse(self, numbers: int) -> None:
        self.directions.check("forward", numbers)

    def pull(self, residuals, cotangent: PyTree):
        split, y = residuals
        moved, backward = pull_along(
            self.directions, lambda t: self.implicit.tangent(split, y, t), split.theta, cotangent
        )
        return first_order("forward", moved), backward


class SensitivityCell(AbstractCell):
    """The ODE solved together with its sensitivities, all in one error test."""

    directions: Directions

    def linearize(self, split: Split):
        value, stats = split.call().run()
        return value, stats, split

    def push(self, residuals, tangents: list[Array]) -> PyTree:
        if not tangents:
            return forward_through(lambda theta: residuals.call(theta).run(PLAIN)[0], [], [])
        columns, converged, _ = sensitivities(residuals, [t[None] for t in tangents])
        return jax.tree.map(lambda x: jnp.where(converged, x[0], jnp.nan), columns)

    def check_reverse(self, numbers: int) -> None:
        self.directions.check("forward", numbers)

    def pull(self, residuals, cotangent: PyTree):
        if not residuals.theta:
            return [], Backward.exact()
        rows, unravel = self.directions.of(residuals.theta)
        columns, converged, steps = sensitivities(residuals, jax.vmap(unravel)(rows))

        def products(s, c):
            return jnp.tensordot(s.reshape(s.shape[0], -1), c.reshape(-1), 1).astype(rows.dtype)

        total = sum(jax.tree.leaves(jax.tree.map(products, columns, cotangent)), jnp.zeros(len(rows), rows.dtype))
        backward = Backward(converged, jnp.asarray(steps, jnp.int32), jnp.zeros(()))
        return first_order("forward", unravel(self.directions.combine(rows, total))), backward
