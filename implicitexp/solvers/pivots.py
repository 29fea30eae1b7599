"""Dense linear solvers for the steps of Newton's and related methods that have an answer for every matrix."""

from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, PyTree

DIVISION = lx.Diagonal(well_posed=True)  # of a system of one unknown: a call of LAPACK costs more than the iteration


class StaticPivots(lx.AbstractLinearSolver):
    """LU in which a pivot below rounding becomes eps |A| (Li and Demmel 1998: SuperLU's static pivoting).

    The step of an exactly singular Jacobian is then that of a Jacobian which differs from it by rounding: far too long,
    and left to the solver's own convergence test. Lineax's LU flags the step instead, but raises when that step is
    *differentiated*, whatever `throw` says (lineax#117): one bad lane under `vmap`, at an iteration that may no longer
    matter, would end the program. For the same reason what is not finite becomes zero: an iterate that has left the
    numbers has a residual that is not finite, and never passes for converged.
    """

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> PyTree:
        if lx.is_diagonal(operator):
            diagonal = lx.diagonal(operator)
            return _grown(diagonal, diagonal), *DIVISION.init(operator, options)[1:]
        (lu, permutation), *rest = lx.LU().init(operator, options)
        n = jnp.arange(lu.shape[0])
        return (lu.at[n, n].set(_grown(jnp.diagonal(lu), lu)), permutation), *rest

    def compute(self, state: PyTree, vector: PyTree, options: dict[str, Any]) -> tuple[PyTree, lx.RESULTS, dict]:
        return _finite(_solver(state).compute(state, vector, options)[0]), lx.RESULTS.successful, {}

    def transpose(self, state: PyTree, options: dict[str, Any]) -> tuple[PyTree, dict]:
        return _solver(state).transpose(state, options)

    def conj(self, state: PyTree, options: dict[str, Any]) -> tuple[PyTree, dict]:
        return _solver(state).conj(state, options)

    def assume_full_rank(self) -> bool:
        return True


class StaticTriangle(lx.AbstractLinearSolver):
    """The same for least squares, by QR: the diagonal of R stands for the pivots."""

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> PyTree:
        (factors, reflectors), *rest = lx.QR().init(operator, options)
        n = jnp.arange(factors.shape[1])
        grown = factors.at[n, n].set(_grown(jnp.diagonal(factors), jnp.triu(factors)))
        return (grown, reflectors), *rest

    def compute(self, state: PyTree, vector: PyTree, options: dict[str, Any]) -> tuple[PyTree, lx.RESULTS, dict]:
        return _finite(lx.QR().compute(state, vector, options)[0]), lx.RESULTS.successful, {}

    def transpose(self, state: PyTree, options: dict[str, Any]) -> tuple[PyTree, dict]:
        return lx.QR().transpose(state, options)

    def conj(self, state: PyTree, options: dict[str, Any]) -> tuple[PyTree, dict]:
        return lx.QR().conj(state, options)

    def assume_full_rank(self) -> bool:
        return True


def _finite(solution: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.where(jnp.isfinite(x), x, 0), solution)


def _solver(state: PyTree) -> Any:
    """Whose state this is: LU's factors are a pair."""
    return lx.LU() if isinstance(state[0], tuple) else DIVISION


def _grown(pivots: Array, factors: Array) -> Array:
    """The pivots, each at least eps times the largest of the factors; one where all are zero."""
    floor = jnp.finfo(factors.dtype).eps * jnp.max(jnp.abs(factors))
    floor = jnp.where(floor > 0, floor, 1)
    signed = jnp.where(jnp.real(pivots) < 0, -floor, floor).astype(pivots.dtype)
    return jnp.where(jnp.abs(pivots) < floor, signed, pivots)
