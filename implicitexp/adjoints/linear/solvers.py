"""Linear solvers for Lineax, and so for everything that takes one: `optx.Newton(linear_solver=...)`,
`optx.ImplicitAdjoint(linear_solver=...)`, `lx.linear_solve(..., solver=...)`. `SmallDense` and `Auto` have files of their own.

Lineax decides what becomes of a solve that fails: `throw=False` returns its result as a flag, but the solves of a derivative
raise, for a batch too (lineax#117). Where one bad lane must leave the others alone, use an adjoint of `fixed_points.py`.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, PyTree

from implicitexp.adjoints.linear.auto import Auto as Auto
from implicitexp.adjoints.linear.auto import Choice as Choice
from implicitexp.adjoints.linear.auto import definite
from implicitexp.adjoints.linear.small_dense import SmallDense as SmallDense

Operator = lx.AbstractLinearOperator
Solution = tuple[PyTree, lx.RESULTS, dict[str, Any]]


class NeumannSeries(lx.AbstractLinearSolver):
    """x = s sum over k < terms of (I - s A)^k b, the first terms of the Neumann series of A^-1.

    Its error is (I - s A)^terms x, whatever b is: no more than contraction^terms |x| for |I - s A| <= contraction < 1. It is
    not estimated, and a series that diverges is no failure; `Recorded(NeumannSeries(...))` shows the residual.

    `scale` is s. None takes 1 or -1, the one of which the second term is the smaller: right for every b when A is I - M or
    M - I (the Jacobian that `optx.fixed_point` solves with) and M contracts in the Euclidean norm.

    **Raises** `ValueError` where `terms` is below one, or A maps between different structures.
    """

    terms: int = eqx.field(static=True)
    scale: Any = None

    def __check_init__(self):
        if self.terms < 1:
            raise ValueError(f"NeumannSeries needs at least one term, not {self.terms}.")

    def init(self, operator: Operator, options: dict[str, Any]) -> Operator:
        del options
        _check_square("NeumannSeries", operator)
        return lx.linearise(operator)

    def compute(self, state: Operator, vector: PyTree, options: dict[str, Any]) -> Solution:
        del options
        product = state.mv(vector)
        scale = self.scale
        if scale is None:
            scale = jnp.where(_dot(vector, product) < 0, -1, 1)

        def plus(x, r):
            return jax.tree.map(lambda x, r: x + jnp.asarray(scale, r.dtype) * r, x, r)

        def term(_, x):
            return plus(x, jax.tree.map(jnp.subtract, vector, state.mv(x)))

        x = plus(jax.tree.map(jnp.zeros_like, vector), vector)
        return jax.lax.fori_loop(1, self.terms, term, x), lx.RESULTS.successful, {"num_steps": self.terms}

    def transpose(self, state: Operator, options: dict[str, Any]) -> tuple[Operator, dict]:
        del options
        return state.transpose(), {}

    def conj(self, state: Operator, options: dict[str, Any]) -> tuple[Operator, dict]:
        del options
        return lx.conj(state), {}

    def assume_full_rank(self) -> bool:
        return True


class Preconditioned(lx.AbstractLinearSolver):
    """An iterative solver (`lx.GMRES`, `lx.BiCGStab`, `lx.CG`, `lx.Normal`) that brings its preconditioner along.

    Lineax takes a preconditioner as an option of each solve, and neither `optx.Newton` nor `optx.ImplicitAdjoint` passes
    options on. `preconditioner`: an operator that approximates A^-1, or a function from A to one, such as `jacobi`. Under
    `lx.CG` it has to carry `lx.positive_semidefinite_tag`, as A does. It is not differentiated: the solution does not
    depend on it.
    """

    inner: lx.AbstractLinearSolver
    preconditioner: Operator | Callable[[Operator], Operator]

    def __init__(self, inner: lx.AbstractLinearSolver, preconditioner: Operator | Callable[[Operator], Operator]):
        arrays, rest = eqx.partition(preconditioner, eqx.is_array)
        self.inner = inner
        self.preconditioner = eqx.combine(jax.lax.stop_gradient(arrays), rest)

    def init(self, operator: Operator, options: dict[str, Any]) -> PyTree:
        given = self.preconditioner
        near_inverse = lx.linearise(given if isinstance(given, Operator) else given(operator))
        return self.inner.init(operator, {**options, "preconditioner": near_inverse}), near_inverse

    def compute(self, state: PyTree, vector: PyTree, options: dict[str, Any]) -> Solution:
        inner, near_inverse = state
        return self.inner.compute(inner, vector, {**options, "preconditioner": near_inverse})

    def transpose(self, state: PyTree, options: dict[str, Any]) -> tuple[PyTree, dict]:
        inner, near_inverse = state
        moved, _ = self.inner.transpose(inner, {**options, "preconditioner": near_inverse})
        return (moved, near_inverse.transpose()), {}

    def conj(self, state: PyTree, options: dict[str, Any]) -> tuple[PyTree, dict]:
        inner, near_inverse = state
        moved, _ = self.inner.conj(inner, {**options, "preconditioner": near_inverse})
        return (moved, lx.conj(near_inverse)), {}

    def assume_full_rank(self) -> bool:
        return self.inner.assume_full_rank()


def jacobi(operator: Operator) -> Operator:
    """The inverse of the diagonal, for a definite matrix of its absolute value: a preconditioner for rows of different size.
    An entry of zero counts as one.

    Where A is no matrix, its diagonal costs as many products as there are unknowns, or one if A is tagged as diagonal.
    """
    diagonal = lx.diagonal(operator)
    inverse = 1 / jnp.where(diagonal == 0, 1, diagonal)
    if definite(operator):
        inverse = jnp.abs(inverse)
    leaves, treedef = jax.tree.flatten(operator.in_structure())
    parts = jnp.split(inverse, list(_ends(leaves))[:-1])
    shaped = [part.reshape(x.shape).astype(x.dtype) for part, x in zip(parts, leaves, strict=True)]
    scaled = lx.DiagonalLinearOperator(jax.tree.unflatten(treedef, shaped))
    return lx.TaggedLinearOperator(scaled, lx.positive_semidefinite_tag) if definite(operator) else scaled


class Recorded(lx.AbstractLinearSolver):
    """Another solver, whose statistics say besides how far its solution is one: "residual", |A x - b| / |b|, and "num_steps"
    (one for a direct method), for one more product with A.

    They stand in `lx.linear_solve(...).stats`. A solve inside a derivative has no result that they could stand in: there
    `record(residual, steps)`, a function of the host, is called after each solve, for each lane of a batch. The relative
    residual of the transposed solve is a nearly free estimate of a gradient's error.
    """

    inner: lx.AbstractLinearSolver
    record: Callable[[Any, Any], None] | None = eqx.field(static=True, default=None)

    def init(self, operator: Operator, options: dict[str, Any]) -> PyTree:
        operator = lx.linearise(operator)
        return operator, self.inner.init(operator, options)

    def compute(self, state: PyTree, vector: PyTree, options: dict[str, Any]) -> Solution:
        operator, inner = state
        x, result, stats = self.inner.compute(inner, vector, options)
        steps = jnp.asarray(stats.get("num_steps", 1), jnp.int32)
        size = _norm(vector)
        rest = jax.tree.map(jnp.subtract, operator.mv(x), vector)
        residual = _norm(rest) / jnp.where(size > 0, size, 1)
        if self.record is not None:
            jax.debug.callback(self.record, residual, steps)
        return x, result, {**stats, "num_steps": steps, "residual": residual}

    def transpose(self, state: PyTree, options: dict[str, Any]) -> tuple[PyTree, dict]:
        operator, inner = state
        moved, options = self.inner.transpose(inner, options)
        return (operator.transpose(), moved), options

    def conj(self, state: PyTree, options: dict[str, Any]) -> tuple[PyTree, dict]:
        operator, inner = state
        moved, options = self.inner.conj(inner, options)
        return (lx.conj(operator), moved), options

    def assume_full_rank(self) -> bool:
        return self.inner.assume_full_rank()


def _check_square(name: str, operator: Operator) -> None:
    structures = (operator.in_structure(), operator.out_structure())
    shapes = [[(x.shape, x.dtype) for x in jax.tree.leaves(s)] for s in structures]
    if shapes[0] != shapes[1] or jax.tree.structure(structures[0]) != jax.tree.structure(structures[1]):
        raise ValueError(
            f"{name} needs an operator from a space to itself, and this one maps {structures[0]} to {structures[1]}."
        )


def _ends(leaves: list[Any]) -> Any:
    end = 0
    for leaf in leaves:
        end += leaf.size
        yield end


def _dot(a: PyTree, b: PyTree) -> Array:
    parts = jax.tree.leaves(jax.tree.map(lambda x, y: jnp.real(jnp.vdot(x, y)), a, b))
    return sum(parts, jnp.zeros(()))


def _norm(tree: PyTree) -> Array:
    return jnp.sqrt(_dot(tree, tree))
