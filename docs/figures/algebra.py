"""The roots and fixed points that are measured: 20 unknowns, a symmetric Jacobian with the eigenvalues that are asked for.

H = Q diag(eigenvalues) Q^T, b and the loss's weights being the sum of all eigenvectors, so that each of them counts. The
parameter theta is added to H, at theta = 0. Linear: y* = H^-1 b, dL/dtheta = -b^T H^-2 b. `bent`: 0.1 y^3 more, which has no
closed form; its reference is a dense solve at the solution.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jaxtyping import Array, Float

N = 20
TIGHT = 1e-14
MOST = 200_000  # iterations

Eigenvalues = Float[Array, " n"]


def basis(n: int = N) -> Float[np.ndarray, "n n"]:
    return np.linalg.qr(np.random.default_rng(0).normal(size=(n, n)))[0]


def contracting(contraction: Any, n: int = N) -> Eigenvalues:
    """Of H, so that those of dT/dy = I - H lie between 0 and the contraction."""
    return 1 - jnp.linspace(0.0, 1.0, n) * contraction


def conditioned(condition: Any, n: int = N) -> Eigenvalues:
    return condition ** -jnp.linspace(0.0, 1.0, n)


def residual(eigenvalues: Eigenvalues, bend: float = 0.0) -> tuple[Callable, Array]:
    """f(y, theta), and b."""
    q = jnp.asarray(basis(eigenvalues.size))
    h, b = (q * eigenvalues) @ q.T, q.sum(1)
    return lambda y, theta: h @ y + theta * y + bend * y**3 - b, b


def loss(theta: Any, eigenvalues: Eigenvalues, solver: Any, adjoint: Any, bend: float = 0.0) -> Array:
    """b^T y*, as a fixed point of T(y) = y - f(y) or a root of f, by the solver's kind."""
    f, b = residual(eigenvalues, bend)
    start = jnp.zeros_like(b)
    options = {"adjoint": adjoint, "max_steps": MOST, "throw": False}
    if isinstance(solver, optx.AbstractFixedPointSolver):
        solution = optx.fixed_point(lambda y, theta: y - f(y, theta), solver, start, theta, **options)
    else:
        solution = optx.root_find(f, solver, start, theta, **options)
    return b @ solution.value


def slope(solver: Any, adjoint: Any, bend: float = 0.0) -> Callable[[Eigenvalues], Array]:
    """dL/dtheta, compiled, of the eigenvalues."""
    return jax.jit(lambda eigenvalues: jax.grad(loss)(jnp.array(0.0), eigenvalues, solver, adjoint, bend))


def exact(eigenvalues: Eigenvalues) -> Array:
    """Of the linear problem: b^T H^-2 b = the sum over all eigenvalues, since Q^T b = (1, ..., 1)."""
    return -jnp.sum(eigenvalues**-2.0)


@jax.jit
def exact_bent(eigenvalues: Eigenvalues, bend: float = 0.1) -> Array:
    """-b^T (df/dy)^-1 y at a root that Newton's method has been run on to rounding."""
    f, b = residual(eigenvalues, bend)

    def newton(_, y):
        return y - jnp.linalg.solve(jax.jacfwd(f)(y, 0.0), f(y, 0.0))

    y = jax.lax.fori_loop(0, 60, newton, jnp.zeros_like(b))
    return -b @ jnp.linalg.solve(jax.jacfwd(f)(y, 0.0), y)
