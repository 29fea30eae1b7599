"""Programs for the gradient of an initial value problem: ours, Diffrax's, and the floor."""

import dataclasses
from collections.abc import Callable
from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Scalar

from benchmarks.peers.cases import Program, Reference
from implicitexp import adjoints

MAX_STEPS = 4096
NUDGE = 1e-30  # of lambda, added to the state of a floor's vjp: the compiler must not take it out of the loop


@dataclasses.dataclass(frozen=True)
class InitialValue:
    """dy/dt = field(t, y, theta), y(0) = start, and a loss of y(end); rtol = atol = `tolerance`, or `steps` equal ones."""

    field: Callable[[Any, Array, PyTree], Array]
    end: float
    solver: dfx.AbstractSolver
    tolerance: float = 0.0
    steps: int | None = None
    loss: Callable[[Array], Scalar] = lambda y: jnp.sum(y**2)

    def solution(self, theta: PyTree, start: Array, adjoint: Any, tolerance: Any = None) -> dfx.Solution:
        """`tolerance` may be traced, so that one program serves two of them."""
        tolerance = self.tolerance if tolerance is None else tolerance
        fixed = self.steps is not None
        time = jnp.zeros((), start.dtype)
        return dfx.diffeqsolve(
            dfx.ODETerm(self.field),  # pyright: ignore[reportArgumentType]
            self.solver,
            time,
            time + self.end,
            time + self.end / self.steps if self.steps is not None else None,
            start,
            theta,
            stepsize_controller=dfx.ConstantStepSize() if fixed else dfx.PIDController(rtol=tolerance, atol=tolerance),
            adjoint=adjoint,
            max_steps=self.steps if self.steps is not None else MAX_STEPS,
            throw=False,
        )

    def value(self, theta: PyTree, start: Array, adjoint: Any, tolerance: Any = None) -> Scalar:
        ys = self.solution(theta, start, adjoint, tolerance).ys
        assert ys is not None
        return self.loss(ys[-1])

    def gradient(self, adjoint: Any) -> Callable[[PyTree, Array], PyTree]:
        """By reverse mode, of theta and of the start."""
        return jax.grad(lambda theta, start: self.value(theta, start, adjoint), argnums=(0, 1))

    def tangents(self) -> Callable[[PyTree, Array], PyTree]:
        """By forward mode, a tangent for each number."""
        return jax.jacfwd(lambda theta, start: self.value(theta, start, dfx.ForwardMode()), argnums=(0, 1))

    def counted(self, theta: PyTree, start: Array) -> int:
        """Accepted steps."""
        return int(self.solution(theta, start, dfx.ForwardMode()).stats["num_accepted_steps"])

    def changed(self, **fields: Any) -> "InitialValue":
        return dataclasses.replace(self, **fields)


OURS = {
    "Replay()": adjoints.Replay,
    "Gauss()": adjoints.Gauss,
    "Interpolating()": adjoints.Interpolating,
    "Backsolve()": adjoints.Backsolve,
    "Reversible()": adjoints.Reversible,
    "ForwardSensitivity()": adjoints.ForwardSensitivity,
}
DIFFRAX = {
    "RecursiveCheckpointAdjoint()": dfx.RecursiveCheckpointAdjoint,
    "DirectAdjoint()": dfx.DirectAdjoint,
    "BacksolveAdjoint()": dfx.BacksolveAdjoint,
}


def ours(problem: InitialValue, *names: str) -> list[Program]:
    """Each as it is when nothing is said."""
    return [Program("ours", "implicitexp", name, problem.gradient(OURS[name]())) for name in names]


def diffrax(problem: InitialValue, *names: str, forward: bool = False) -> list[Program]:
    """All of its adjoints unless named; `forward`: by `ForwardMode` besides."""
    found = [Program("jax", "Diffrax", name, problem.gradient(DIFFRAX[name]())) for name in names or DIFFRAX]
    return [*found, Program("jax", "Diffrax", "ForwardMode()", problem.tangents())] if forward else found


def tight(problem: InitialValue, args: tuple, tolerance: float) -> Reference:
    """Backpropagation through a solve at `tolerance`, and at ten times that."""
    adjoint = dfx.RecursiveCheckpointAdjoint()
    solve = problem.changed(steps=None)

    def value(args: tuple, tolerance: Any) -> Scalar:
        theta, start = args
        return solve.value(theta, start, adjoint, tolerance)

    by = jax.jit(jax.grad(value))
    return Reference.of_two(by(args, tolerance), by(args, 10 * tolerance))


# -- floors ---------------------------------------------------------------------------------------------------------------


def explicit_floor(problem: InitialValue, args: tuple) -> Program:
    """The forward solve, then a vjp of the field for each stage of each accepted step."""
    tableau: Any = problem.solver.tableau  # pyright: ignore[reportAttributeAccessIssue]
    count = problem.counted(*args) * (tableau.num_stages - int(tableau.fsal))

    def program(theta, start):
        y, adjoint = _solved(problem, theta, start)
        return jax.lax.fori_loop(0, count, lambda _, carry: _pulled(problem, theta, y, *carry), (adjoint, _zero(theta)))

    return Program("floor", "floor", f"forward solve, {count} vjps of the field", program)


def implicit_floor(problem: InitialValue, args: tuple) -> Program:
    """The forward solve, then for each accepted step: one Jacobian and its LU factors, a transposed solve for each implicit
    stage, and a vjp for each stage."""
    tableau: Any = problem.solver.tableau  # pyright: ignore[reportAttributeAccessIssue]
    steps, stages = problem.counted(*args), tableau.num_stages
    implicit = stages - int(tableau.a_diagonal[0] == 0)

    def program(theta, start):
        y, adjoint = _solved(problem, theta, start)

        def step(_, carry):
            adjoint, total = carry
            at = y + NUDGE * adjoint
            jacobian = jax.jacfwd(lambda y: problem.field(0.0, y, theta))(at)
            factors = jax.scipy.linalg.lu_factor(jnp.eye(at.size) - NUDGE * jacobian)
            for i in range(stages):
                if i < implicit:
                    adjoint = jax.scipy.linalg.lu_solve(factors, adjoint, trans=1)
                adjoint, total = _pulled(problem, theta, y, adjoint, total)
            return adjoint, total

        return jax.lax.fori_loop(0, steps, step, (adjoint, _zero(theta)))

    name = f"forward solve, {steps} Jacobians with LU, {steps * implicit} solves, {steps * stages} vjps"
    return Program("floor", "floor", name, program)


def _solved(problem: InitialValue, theta: PyTree, start: Array) -> tuple[Array, Array]:
    """y at the end, and the cotangent there."""
    ys = problem.solution(theta, start, dfx.ForwardMode()).ys
    assert ys is not None
    return ys[-1], jax.grad(problem.loss)(ys[-1])


def _pulled(problem: InitialValue, theta: PyTree, y: Array, adjoint: Array, total: PyTree) -> tuple[Array, PyTree]:
    _, pull = jax.vjp(lambda y, theta: problem.field(0.0, y, theta), y + NUDGE * adjoint, theta)
    by_y, by_theta = pull(adjoint)
    return adjoint + NUDGE * by_y, jax.tree.map(jnp.add, total, by_theta)


def _zero(theta: PyTree) -> PyTree:
    return jax.tree.map(jnp.zeros_like, theta)
