"""What stands for the inverse of the Jacobian at a solution: B^-1 v and B^-T v, for flat vectors.

With B = df/dy the adjoint equation is solved in one step; with another B the error shrinks by I - B^-1 df/dy in each. A
solver that has come to a solution often holds such a B, which costs nothing more (Z. Ramzi et al. 2022, "SHINE: SHaring
the INverse Estimate from the forward pass for bi-level optimization and implicit models", ICLR).
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from implicitexp.adjoints.implicit.iterated import factor, precondition
from implicitexp.adjoints.implicit.linear import Linearization
from implicitexp.adjoints.implicit.optimistix_private import Inputs, Solved, constant, factors, inverse_hessian
from implicitexp.errors import Unsupported
from implicitexp.solvers.anderson import AndersonAcceleration
from implicitexp.solvers.broyden import Broyden

PreconditionerName = Literal["solver", "last", "start", "identity"]
NAMES = ("solver", "last", "start", "identity")

Vector = Float[Array, " n"]


class Inverse(NamedTuple):
    """v -> B^-1 v and v -> B^-T v."""

    forward: Callable[[Vector], Vector]
    transposed: Callable[[Vector], Vector]


class Scaled(eqx.Module):
    """v -> step v."""

    step: Any

    def __call__(self, v: Vector) -> Vector:
        return jnp.asarray(self.step, v.dtype) * v


def scaled(step: Any) -> Inverse:
    """B^-1 = step."""
    return Inverse(Scaled(step), Scaled(step))


def check(preconditioner: Any) -> None:
    """**Raises** `ValueError` for a name that is none."""
    if isinstance(preconditioner, str) and preconditioner not in NAMES:
        raise ValueError(f"preconditioner={preconditioner!r} is not one of {', '.join(NAMES)}, nor a number.")


def inverse_at(at: Solved, preconditioner: Any, adjoint: str) -> Inverse:
    """B^-1 by name, or a number.

    **Raises** `Unsupported` where it should be what the solver holds, and the solver holds none.
    """
    if not isinstance(preconditioner, str):
        return scaled(preconditioner)
    if preconditioner == "solver":
        own = of_solver(at)
        if own is None:
            raise Unsupported(_refusal(at.inputs, adjoint))
        return own
    if preconditioner == "identity":
        return scaled(-1 if at.inputs.kind == "fixed_point" else 1)
    here = Linearization(lambda _, y: at.f(y), [], at.y)
    where = "last" if preconditioner == "last" else "start"
    lu = constant(factor(here, where, ravel_pytree(at.inputs.y0)[0]))
    return Inverse(lambda v: precondition(lu, v, False), lambda v: precondition(lu, v, True))


def of_solver(at: Solved) -> Inverse | None:
    """The inverse that the solver has built on its way, if it is one that builds any."""
    solver, state = at.inputs.solver, at.state
    held = factors(solver, state)
    if held is not None:
        return _of_factors(*held, at.inputs)
    if isinstance(solver, Broyden | AndersonAcceleration):
        return Inverse(*solver.inverse(state))
    product = inverse_hessian(solver, state)
    if product is None:
        return None
    unravel = ravel_pytree(at.inputs.y0)[1]

    def times(v: Vector) -> Vector:
        return ravel_pytree(product(unravel(v)))[0]

    return Inverse(times, times)


def _of_factors(linear_solver: Any, state: PyTree, inputs: Inputs) -> Inverse:
    """Factors of the Jacobian from y to fn's value, which can be differently structured trees."""
    values, unknowns = (ravel_pytree(_zeros(tree))[1] for tree in (inputs.structures[0], inputs.y0))
    backwards, options = linear_solver.transpose(state, {})

    def solve(state: PyTree, options: Any, vector: PyTree) -> Vector:
        return ravel_pytree(linear_solver.compute(state, vector, options)[0])[0]

    return Inverse(
        lambda v: solve(state, {}, values(v)),
        lambda v: solve(backwards, options, unknowns(v)),
    )


def _zeros(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)


def _refusal(inputs: Inputs, adjoint: str) -> str:
    return (
        f"{adjoint} uses the inverse that the solver builds, and {inputs.solver_name} builds none; solve with "
        "optimistix.Newton, optimistix.Chord or implicitexp.solvers.broyden.Broyden (a root), AndersonAcceleration (a fixed "
        "point), optimistix.BFGS (a minimum), or choose preconditioner='last' or 'start' (the Jacobian at the solution or "
        "at y0), 'identity', or a number, such as the learning rate."
    )
