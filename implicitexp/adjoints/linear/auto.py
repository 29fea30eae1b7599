"""Which linear solver for which operator: by its structure, its size, and how many there are."""

from typing import Any, NamedTuple

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import PyTree

from implicitexp.adjoints.implicit.linear import DENSE_UP_TO
from implicitexp.adjoints.linear.products import Products
from implicitexp.adjoints.linear.small_dense import LARGEST, SmallDense

Operator = lx.AbstractLinearOperator
Solution = tuple[PyTree, lx.RESULTS, dict[str, Any]]
MEMORY = 2**30  # bytes: a batch of dense matrices that is larger is solved by products instead


class Choice(NamedTuple):
    """What `Auto` takes, and why."""

    solver: lx.AbstractLinearSolver
    reason: str


class Auto(lx.AbstractLinearSolver):
    """The solver that the operator's structure (its tags), its size and the number of systems call for.

    `choose(operator)` says which, and why. Diagonal, triangular and tridiagonal systems have methods of their own; up to four
    unknowns `SmallDense`; up to `DENSE_UP_TO`, or as far as a batch of matrices fits into `MEMORY`, Cholesky for a definite
    matrix, else LU; above that CG for a definite matrix, else `Products` (BiCGStab that does not break down), for complex
    numbers GMRES; QR where rows and columns differ in number.

    `rtol`, `atol`: None for the own ones of `Products`, which leave nearly what LU would, else for eps^(3/4). `max_steps`: of
    the method taken, which its own documentation counts.

    `batch`: how many systems are solved at once. Under `jax.vmap` a solver sees one of them, and cannot count.
    """

    batch: int = eqx.field(static=True, default=1)
    rtol: Any = None
    atol: Any = None
    max_steps: int | None = eqx.field(static=True, default=None)

    def choose(self, operator: Operator) -> Choice:
        """The solver for this operator, and the reason in words."""
        n, m = operator.in_size(), operator.out_size()
        if n != m:
            return Choice(lx.QR(), f"{m} equations for {n} unknowns: least squares or the smallest solution")
        if lx.is_diagonal(operator):
            return Choice(lx.Diagonal(well_posed=True), "diagonal: a division")
        if lx.is_lower_triangular(operator) or lx.is_upper_triangular(operator):
            return Choice(lx.Triangular(), "triangular: substitution")
        if n <= LARGEST:
            return Choice(SmallDense(), f"{n} unknowns, at most {LARGEST}: written out, no call of LAPACK")
        if lx.is_tridiagonal(operator):
            return Choice(lx.Tridiagonal(), "tridiagonal: the Thomas algorithm")
        return self._by_size(operator, n)

    def _by_size(self, operator: Operator, n: int) -> Choice:
        dtype = jnp.result_type(*(x.dtype for x in jax.tree.leaves(operator.in_structure())))
        memory = self.batch * n * n * dtype.itemsize
        if n <= DENSE_UP_TO and memory <= MEMORY:
            size = f"{n} unknowns, at most {DENSE_UP_TO}"
            if definite(operator):
                return Choice(lx.Cholesky(), f"{size}, definite: Cholesky")
            return Choice(lx.LU(), f"{size}, no structure: LU")
        size = f"{n} unknowns, above {DENSE_UP_TO}"
        if n <= DENSE_UP_TO:
            size = f"{self.batch} matrices of {n} by {n}, {memory / 2**30:.1f} GiB, above {MEMORY / 2**30:.1f}"
        return self._by_products(operator, dtype, size)

    def _by_products(self, operator: Operator, dtype: Any, size: str) -> Choice:
        default = float(jnp.finfo(dtype).eps) ** 0.75
        rtol, atol = (default if x is None else x for x in (self.rtol, self.atol))
        if definite(operator):
            return Choice(lx.CG(rtol, atol, max_steps=self.max_steps), f"{size}, definite: CG, by products alone")
        if jnp.issubdtype(dtype, jnp.complexfloating):
            solver = lx.GMRES(rtol, atol, max_steps=self.max_steps)
            return Choice(solver, f"{size}, no structure, complex: GMRES, by products alone")
        solver = Products(self.rtol, 0.0 if self.atol is None else atol, self.max_steps)
        return Choice(solver, f"{size}, no structure: BiCGStab, by products alone")

    def init(self, operator: Operator, options: dict[str, Any]) -> PyTree:
        solver = self.choose(operator).solver
        arrays, rest = eqx.partition(solver, eqx.is_array)
        return arrays, eqxi.Static(rest), solver.init(operator, options)

    def compute(self, state: PyTree, vector: PyTree, options: dict[str, Any]) -> Solution:
        return _chosen(state).compute(state[2], vector, options)

    def transpose(self, state: PyTree, options: dict[str, Any]) -> tuple[PyTree, dict]:
        moved, options = _chosen(state).transpose(state[2], options)
        return (*state[:2], moved), options

    def conj(self, state: PyTree, options: dict[str, Any]) -> tuple[PyTree, dict]:
        moved, options = _chosen(state).conj(state[2], options)
        return (*state[:2], moved), options

    def assume_full_rank(self) -> bool:
        return True


def _chosen(state: PyTree) -> lx.AbstractLinearSolver:
    """Its flags stay Python's, also where the state is carried through a loop."""
    return eqx.combine(state[0], state[1].value)


def definite(operator: Operator) -> bool:
    """Whether its tags say that it is definite, of either sign."""
    return lx.is_positive_semidefinite(operator) or lx.is_negative_semidefinite(operator)
