"""Independent witnesses of a gradient: other modes and other code paths than the strategy that is judged.

Forward mode through the solver's own loop (the derivative of the *program*), forward mode and central differences of
the whole loss, and the dot-product test <c, J v> = <J^T c, v>. Above MAX_PARAMETERS parameters a forward mode is taken
in a few fixed random directions only, and whoever reports it says "directional".
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree

from implicitexp.errors import Unsupported
from implicitexp.solving import Solve
from implicitexp.strategies import MAX_PARAMETERS, Forward
from implicitexp.strategies.forward import ProgramTangent
from implicitexp.truth.doubles import scalar

DIRECTIONS = 8
DIRECTIONS_SEED = 0  # the same directions for every strategy and every check
# Of JAX's messages (0.12): interpreters/ad.py raises a TypeError, callback.py a ValueError.
REFUSALS = ("can't apply forward-mode autodiff", "do not support JVP")
STEP = 1.0 / 3.0  # power of the rounding that balances truncation and rounding in a central difference


@dataclasses.dataclass(frozen=True)
class Directional:
    """Derivatives of a loss along unit directions of the flattened parameters (rows, in `ravel_pytree`'s order)."""

    directions: np.ndarray  # (k, n)
    derivatives: np.ndarray  # (k,)
    eps: float  # rounding unit of the precision in which they were computed


def directions(n: int) -> np.ndarray:
    """All unit vectors up to MAX_PARAMETERS parameters, else DIRECTIONS fixed random ones of norm one."""
    if n <= MAX_PARAMETERS:
        return np.eye(n)
    drawn = np.random.default_rng(DIRECTIONS_SEED).standard_normal((DIRECTIONS, n))
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


@eqx.filter_jit
def _along(problem: Any, params: PyTree, batch: PyTree, solve: Any, rows: Float[Array, "k n"]) -> Float[Array, " k"]:
    unravel = ravel_pytree(params)[1]

    def one(row):
        return jax.jvp(lambda p: scalar(problem.loss(p, batch, solve)), (params,), (unravel(row),))[1]

    return jax.vmap(one)(rows)


def derivatives_along(problem: Any, params: PyTree, batch: PyTree, solve: Any, rows: np.ndarray) -> Directional:
    """Forward mode of the loss, whatever `solve` makes of a tangent."""
    flat = ravel_pytree(params)[0]
    found = _along(problem, params, batch, solve, jnp.asarray(rows, flat.dtype))
    return Directional(rows, np.asarray(found, np.float64), float(jnp.finfo(flat.dtype).eps))


def program_gradient(problem: Any, params: PyTree, batch: PyTree = None, solver: Any = None) -> Directional | None:
    """The derivative of the computation with every accepted step, mesh and iteration count as it was: forward mode
    through the solver's own loop, without a tap. Along every parameter, or along fixed random directions above
    MAX_PARAMETERS; None where forward mode cannot be had or is not finite.

    **Raises** what the loss itself raises in forward mode, as a derivative rule of the user's own may.
    """
    rows = directions(ravel_pytree(params)[0].size)
    try:
        found = derivatives_along(problem, params, batch, Solve(solver, ProgramTangent()), rows)
    except (NotImplementedError, Unsupported):  # a primitive without a rule; no derivative through this solver's loop
        return None
    except (TypeError, ValueError) as error:
        if not refuses_forward_mode(error):
            raise
        return None
    except RuntimeError:  # derivatives of Lineax's solves raise where they are singular, whatever `throw` says
        return None
    return found if np.all(np.isfinite(found.derivatives)) else None


def refuses_forward_mode(error: Exception) -> bool:
    """Whether JAX says that something in the loss has no forward mode: a custom vjp, a callback. What is wrong in a loss raises
    the same types."""
    return any(words in str(error) for words in REFUSALS)


@eqx.filter_jit
def _reverse(problem: Any, params: PyTree, batch: PyTree, solve: Any) -> PyTree:
    return jax.grad(lambda p: scalar(problem.loss(p, batch, solve)))(params)


def strategy_gradient(
    problem: Any, params: PyTree, batch: PyTree = None, solver: Any = None, gradient: Any = None
) -> PyTree | Directional:
    """The gradient that is to be judged; of `forward` and `finite_difference` above MAX_PARAMETERS parameters its
    derivatives along fixed random directions."""
    solve = Solve(solver, gradient)
    if is_directional(params, gradient):
        return derivatives_along(problem, params, batch, solve, directions(ravel_pytree(params)[0].size))
    return _reverse(problem, params, batch, solve)


def is_directional(params: PyTree, gradient: Any) -> bool:
    """Whether this strategy carries the Jacobian, and the parameters are too many for it."""
    return gradient is not None and gradient.per_parameter and ravel_pytree(params)[0].size > MAX_PARAMETERS


def forward_gradient(problem: Any, params: PyTree, batch: PyTree = None, solver: Any = None) -> Directional:
    """Forward mode of the whole loss, with the implicit rules and the tangents in an ODE's error test."""
    rows = directions(ravel_pytree(params)[0].size)
    return derivatives_along(problem, params, batch, Solve(solver, Forward()), rows)


@eqx.filter_jit
def _losses(problem: Any, points: PyTree, batch: PyTree, solve: Any) -> Float[Array, " k"]:
    return jax.lax.map(lambda p: scalar(problem.loss(p, batch, solve)), points)


def difference_gradient(
    problem: Any, params: PyTree, batch: PyTree = None, solver: Any = None, step: float | None = None
) -> Directional:
    """Central differences of the whole loss. `step`: relative to the size of each parameter, or of the parameters
    along a random direction (None: eps^(1/3), which a loose solver makes too small: give its rtol^(1/3))."""
    flat, unravel = ravel_pytree(params)
    rows = directions(flat.size)
    relative = float(jnp.finfo(flat.dtype).eps) ** STEP if step is None else step
    sizes = np.abs(rows * np.asarray(flat, np.float64)).sum(axis=1)
    moves = relative * np.where(sizes > 0, sizes, 1.0)
    shifted = jnp.asarray(moves[:, None] * rows, flat.dtype)
    points = jax.vmap(unravel)(jnp.concatenate([flat + shifted, flat - shifted]))
    losses = np.asarray(_losses(problem, points, batch, Solve(solver)), np.float64)
    plus, minus = losses[: len(rows)], losses[len(rows) :]
    return Directional(rows, (plus - minus) / (2 * moves), float(jnp.finfo(flat.dtype).eps))


def dot_product_test(
    problem: Any, params: PyTree, batch: PyTree = None, solver: Any = None, gradient: Any = None
) -> float:
    """The relative difference of <J^T c, v> and <c, J v> for J the derivative of the loss under one strategy, v a fixed
    random direction and c = 1: both modes of a strategy are transposes of each other where this is rounding."""
    flat = ravel_pytree(params)[0]
    row = np.random.default_rng(DIRECTIONS_SEED + 1).standard_normal((1, flat.size))
    solve = Solve(solver, gradient)
    pushed = derivatives_along(problem, params, batch, solve, row).derivatives[0]
    pulled = np.asarray(ravel_pytree(_reverse(problem, params, batch, solve))[0], np.float64)
    largest = np.sum(np.abs(pulled * row[0]))
    return float(abs(pushed - pulled @ row[0]) / largest) if largest > 0 else float(abs(pushed))
