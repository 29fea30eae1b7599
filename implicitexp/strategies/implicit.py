"""`implicit`: the derivative of what the converged solver stands for, by one linear solve."""

from typing import Any

import equinox as eqx
import jax
import jax.flatten_util
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from implicitexp.adjoints.discrete.replay import Replay
from implicitexp.adjoints.discrete.tableau import scheme_of
from implicitexp.adjoints.implicit.linear import Linearization, LinearSolve, LinearSolverName
from implicitexp.adjoints.quadrature.frozen_mesh import FrozenMesh
from implicitexp.errors import Unsupported
from implicitexp.solvers.base import Loop

from .base import AbstractCell, AbstractStrategy, Backward, Call, Split
from .unroll import UnrollCell

LINEAR_SOLVERS = ("auto", "lu", "qr", "cg", "gmres", "bicgstab", "normal_cg")


class Implicit(AbstractStrategy):
    """The implicit function theorem: one transposed linear solve at the solution (root, fixed point).

    For an ODE: the step equations at the accepted steps, which are recorded and walked backwards (`adjoints.Replay`), the
    stages of an implicit method by a transposed linear solve. It is the number that `unroll` has, and inherits the error of
    the step control. A method without one tableau (`Leapfrog`) is differentiated as `unroll` does it. For an integral:
    the derivative of the rule on the converged mesh.

    `linear_solver`: auto (LU up to 256 unknowns, above BiCGStab, which goes on after a breakdown), lu, qr, cg (a definite
    Jacobian), gmres, bicgstab, normal_cg; `rtol`, `atol` (of the right-hand side's norm; None: eps^(3/4)) and `max_steps`
    for the iterative ones.
    """

    linear_solver: LinearSolverName = eqx.field(static=True, default="auto")
    rtol: Any = None
    atol: Any = None
    max_steps: int | None = eqx.field(static=True, default=None)

    def __check_init__(self):
        if self.linear_solver not in LINEAR_SOLVERS:
            raise Unsupported(f"linear_solver={self.linear_solver!r} is not one of {', '.join(LINEAR_SOLVERS)}.")

    def cell(self, kind, solver) -> AbstractCell:
        if kind == "ode":
            return StepsCell(Loop("checkpointed"))
        if kind == "integral":
            return UnrollCell(Loop(adjoint=FrozenMesh()))
        return ImplicitCell(LinearSolve(self.linear_solver, self.rtol, self.atol, self.max_steps))


class StepsCell(UnrollCell):
    """The accepted steps of an ODE, walked backwards where their method has a tableau that says how; else by `loop`."""

    def linearize(self, split: Split):
        return UnrollCell(walk(split.call()) or self.loop).linearize(split)


def walk(call: Call) -> Loop | None:
    """The loop that `Replay` walks backwards; None where it is not defined for this method and state."""
    y0 = call.equation.y0
    try:
        scheme = scheme_of(call.solver.stepper(y0))
    except Unsupported:
        return None
    if scheme.implicit and any(jnp.iscomplexobj(x) for x in jax.tree.leaves(y0)):
        return None
    return Loop(adjoint=Replay())


class ImplicitCell(AbstractCell):
    """Root or fixed point: solve (df/dy)^T w = -c, then (df/dtheta)^T w."""

    linear: LinearSolve

    def linearize(self, split: Split):
        value, stats = split.call().run()
        return value, stats, (split, value)

    def push(self, residuals, tangents: list[Array]) -> PyTree:
        split, y = residuals
        return self.tangent(split, y, tangents)[0]

    def tangent(self, split: Split, y: PyTree, tangents: list[Array]) -> tuple[PyTree, Backward]:
        """The tangent of the solution, and what is known of the linear solve."""
        at = linearization(split, y)
        x, converged, steps, residual = self.linear(at.dy, -at.dtheta(tangents))
        backward = Backward(converged, steps, residual)
        return at.flat[1](jnp.where(backward.converged, x, jnp.nan)), backward

    def pull(self, residuals, cotangent: PyTree):
        at = linearization(*residuals)
        c = jax.flatten_util.ravel_pytree(cotangent)[0]
        w, converged, steps, residual = self.linear(at.dy_transposed, -c)
        return at.dtheta_transposed(w), Backward(converged, steps, residual)


def linearization(split: Split, y: PyTree) -> Linearization:
    """f = fn for a root, f = fn - y for a fixed point, at the solution."""

    def residual(theta, y):
        call = split.call(theta)
        out = call.equation.fn(y, call.args)
        return out if call.equation.kind == "root" else jax.tree.map(jnp.subtract, out, y)

    return Linearization(residual, split.theta, y)
