"""Systems of up to four unknowns, written out: no call of LAPACK, so that a batch of them is one loop over numbers.

Gaussian elimination with partial pivoting (G. H. Golub and C. F. Van Loan 2013, "Matrix Computations", algorithm 3.4.1),
of which every number is an array of its own and a row exchange is a `where`. Cramer's rule is shorter and loses digits
that LU keeps (N. J. Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 1.10.1). Rows, then columns, are
first brought to a largest entry in [1, 2) by powers of two, which round nothing (section 9.8 there); and one step of refinement
makes the error small entry by entry (R. D. Skeel 1980, "Iterative refinement implies numerical stability for Gaussian
elimination", Mathematics of Computation 35).

It compiles longer than a call of LAPACK: at n = 4 in 0.75 against 0.28 s, half of which is the refinement, without which
transposed systems lose two digits where columns differ in size. Rows as arrays took 0.8 to 1 s and ran three times longer, the
inverse of Gauss and Jordan on the whole matrix 0.65 s and eight times.
"""

import functools
import itertools
import math
from collections.abc import Iterable
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, PyTree, Scalar

LARGEST = 4  # unknowns: at five the written-out program is larger than a call of LAPACK is slow
FAR = 2.0**100  # scales stay inside [1 / FAR, FAR] in float32, in float64 inside its ninth power: none overflows

Row = tuple[Scalar, ...]


class Factors(eqx.Module):
    """P S = L U with S = R A C: `scaled` is S; `lu` holds U and, below its diagonal, L; `inverses` 1 / U_kk; `exchanges`
    whether row k was exchanged with row i, for each k < i in turn; `rows` and `columns` the diagonals of R and C. Every entry
    is a number of its own."""

    scaled: tuple[Row, ...]
    lu: tuple[Row, ...]
    inverses: Row
    exchanges: Row
    rows: Row
    columns: Row


def factor(matrix: Array) -> Factors:
    """The factors of a matrix of shape (n, n)."""
    n = matrix.shape[0]
    a = [[_at(_at(matrix, i), j) for j in range(n)] for i in range(n)]
    if n == 1:
        return Factors(_frozen(a), (), (), (), (), ())
    rows = tuple(_power(row) for row in a)
    a = [[x * r for x in row] for row, r in zip(a, rows, strict=True)]
    columns = tuple(_power(list(column)) for column in zip(*a, strict=True))
    a = [[x * c for x, c in zip(row, columns, strict=True)] for row in a]
    scaled, exchanges, inverses = _frozen(a), [], []
    for k in range(n):
        for i in range(k + 1, n):  # the largest comes to row k, the others one place down
            larger = jnp.abs(a[i][k]) > jnp.abs(a[k][k])
            a[k], a[i] = _exchanged(larger, a[k], a[i])
            exchanges.append(larger)
        inverses.append(1 / a[k][k])
        for i in range(k + 1, n):
            a[i][k] = a[i][k] * inverses[k]
            a[i][k + 1 :] = [x - a[i][k] * y for x, y in zip(a[i][k + 1 :], a[k][k + 1 :], strict=True)]
    return Factors(scaled, _frozen(a), tuple(inverses), tuple(exchanges), rows, columns)


def solve(factors: Factors, b: list[Scalar], transposed: bool = False) -> list[Scalar]:
    """x with A x = b, or A^T x = b, after one step of refinement in the same precision."""
    scaled, before, after = factors.scaled, factors.rows, factors.columns
    if len(b) == 1:
        return [b[0] / scaled[0][0]]
    substitute = _forward_then_back
    if transposed:
        scaled, before, after = _frozen(zip(*scaled, strict=True)), after, before
        substitute = _transposed
    b = [v * s for v, s in zip(b, before, strict=True)]
    x = substitute(factors, b)
    rest = [v - sum(s * y for s, y in zip(row, x, strict=True)) for v, row in zip(b, scaled, strict=True)]
    return [(y + d) * s for y, d, s in zip(x, substitute(factors, rest), after, strict=True)]


def _forward_then_back(factors: Factors, b: list[Scalar]) -> list[Scalar]:
    """x with S x = b."""
    n, lu, x = len(b), factors.lu, list(b)
    for (k, i), larger in zip(itertools.combinations(range(n), 2), factors.exchanges, strict=True):
        (x[k],), (x[i],) = _exchanged(larger, [x[k]], [x[i]])
    for i in range(n):
        for j in range(i):
            x[i] = x[i] - lu[i][j] * x[j]
    for i in reversed(range(n)):
        for j in range(i + 1, n):
            x[i] = x[i] - lu[i][j] * x[j]
        x[i] = x[i] * factors.inverses[i]
    return x


def _transposed(factors: Factors, b: list[Scalar]) -> list[Scalar]:
    """x with S^T x = b: U^T, then L^T, then the exchanges from the last to the first."""
    n, lu, x = len(b), factors.lu, list(b)
    for i in range(n):
        for j in range(i):
            x[i] = x[i] - lu[j][i] * x[j]
        x[i] = x[i] * factors.inverses[i]
    for i in reversed(range(n)):
        for j in range(i + 1, n):
            x[i] = x[i] - lu[j][i] * x[j]
    pairs = list(zip(itertools.combinations(range(n), 2), factors.exchanges, strict=True))
    for (k, i), larger in reversed(pairs):
        (x[k],), (x[i],) = _exchanged(larger, [x[k]], [x[i]])
    return x


def _frozen(rows: Iterable[Iterable[Scalar]]) -> tuple[Row, ...]:
    return tuple(tuple(row) for row in rows)


def _at(x: Array, i: int) -> Array:
    return jax.lax.index_in_dim(x, i, keepdims=False)


def _exchanged(when: Scalar, a: list[Scalar], b: list[Scalar]) -> tuple[list[Scalar], list[Scalar]]:
    """b, a where `when` holds, else a, b."""
    pairs = list(zip(a, b, strict=True))
    return [jax.lax.select(when, y, x) for x, y in pairs], [jax.lax.select(when, x, y) for x, y in pairs]


def _power(numbers: list[Scalar]) -> Scalar:
    """The power of two that brings the largest of the numbers into [1, 2); one where all are zero."""
    largest = functools.reduce(jnp.maximum, [jnp.abs(x) for x in numbers])
    kind, exponent = (jnp.uint64, 0x7FF << 52) if largest.dtype == jnp.float64 else (jnp.uint32, 0xFF << 23)
    bits = jax.lax.bitcast_convert_type(largest, kind) & jnp.array(exponent, kind)
    power = jax.lax.bitcast_convert_type(bits, largest.dtype)
    far = FAR**9 if largest.dtype == jnp.float64 else FAR
    return 1 / jnp.clip(jnp.where(power > 0, power, 1), 1 / far, far)


class SmallDense(lx.AbstractLinearSolver):
    """Lineax's `LU` for a system of one to four unknowns, with no call of LAPACK: many times faster under `jax.vmap`.

    Rounding is that of LU after scaling: small beside the entries of each row and column, rather than beside the largest
    entry of the matrix. A singular matrix gives numbers that are not finite, which Lineax reports as `singular`. Complex
    matrices work; half precision is computed in single.

    **Raises** `ValueError` for a matrix that is not square, or of more than four unknowns: `Auto()` takes LU there.
    """

    def init(self, operator: lx.AbstractLinearOperator, options: dict[str, Any]) -> PyTree:
        del options
        n, m = operator.in_size(), operator.out_size()
        if n != m:
            raise ValueError(f"SmallDense needs a square matrix, and this one is {m} by {n}; use lineax.QR().")
        if n > LARGEST:
            raise ValueError(
                f"SmallDense solves systems of up to {LARGEST} unknowns, and this one has {n}; use lineax.LU(), or "
                "implicitexp.adjoints.Auto(), which takes SmallDense where it can."
            )
        matrix = operator.as_matrix()
        matrix = matrix.astype(jnp.promote_types(matrix.dtype, jnp.float32))
        places = eqxi.Static((_places(operator.in_structure()), _places(operator.out_structure())))
        return factor(matrix), places, eqxi.Static(False)

    def compute(self, state: PyTree, vector: PyTree, options: dict[str, Any]) -> tuple[PyTree, lx.RESULTS, dict]:
        del options
        factors, places, transposed = state
        b = [_at(x.reshape(-1), i) for x in jax.tree.leaves(vector) for i in range(x.size)]
        x = solve(factors, b, transposed.value)
        return _in_places(x, places.value[0]), lx.RESULTS.successful, {}

    def transpose(self, state: PyTree, options: dict[str, Any]) -> tuple[PyTree, dict]:
        del options
        factors, places, transposed = state
        return (factors, eqxi.Static(places.value[::-1]), eqxi.Static(not transposed.value)), {}

    def conj(self, state: PyTree, options: dict[str, Any]) -> tuple[PyTree, dict]:
        del options
        factors, places, transposed = state
        return (jax.tree.map(lambda x: jnp.conj(x) if jnp.iscomplexobj(x) else x, factors), places, transposed), {}

    def assume_full_rank(self) -> bool:
        return True


def _places(structure: PyTree) -> Any:
    """Shapes and types of the leaves, and how they hang together: hashable."""
    leaves, treedef = jax.tree.flatten(structure)
    return tuple((x.shape, x.dtype) for x in leaves), treedef


def _in_places(numbers: list[Scalar], places: Any) -> PyTree:
    shapes, treedef = places
    numbers, leaves = list(numbers), []
    for shape, dtype in shapes:
        size = math.prod(shape)
        taken, numbers = numbers[:size], numbers[size:]
        leaf = _stacked(taken) if taken else jnp.zeros((0,))
        leaves.append(leaf.reshape(shape).astype(dtype))
    return jax.tree.unflatten(treedef, leaves)


def _stacked(numbers: list[Scalar]) -> Array:
    """As `jnp.stack`, in a form that XLA computes in the loop that the numbers come from: half the time in a batch."""
    places, vector = jnp.arange(len(numbers)), jnp.broadcast_to(numbers[-1], (len(numbers),))
    for i, x in enumerate(numbers[:-1]):
        vector = jnp.where(places == i, x, vector)
    return vector
