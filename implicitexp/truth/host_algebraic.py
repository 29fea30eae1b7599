"""A root or fixed point on the host: Newton's method with dense LAPACK from the program's own solution, so that it is
the same branch, and the implicit function theorem."""

import warnings
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from implicitexp.solvers.base import PLAIN, NotConverged
from implicitexp.strategies.base import AbstractCell, Backward, Split
from implicitexp.truth.doubles import NoReference
from implicitexp.truth.host_base import AbstractHost, HostLimits, HostTooSlow, compiled, finished
from implicitexp.truth.host_call import host_call

LARGEST_ROOT = 500  # unknowns of a root or fixed point
POLISHING_STEPS = 20  # of Newton's method; it stops when the step no longer shrinks
NEIGHBORS = (-7, -5, -3, -2, -1, 0, 1, 2, 3, 5, 7)  # units of rounding away from a root, where its residual is sampled


class ImplicitOnHost(AbstractCell):
    """The implicit function theorem with LAPACK: no code of Optimistix or Lineax."""

    def linearize(self, split: Split):
        arrays, static = eqx.partition(split, eqx.is_array)
        host = _Implicit(static)
        y0 = split.call().equation.y0
        shapes = jax.eval_shape(lambda: y0)
        value = host_call(host.solve, shapes, arrays)
        return value, finished(value), (arrays, value, static, host)

    def push(self, residuals, tangents: list[Array]) -> PyTree:
        arrays, value, _, host = residuals
        return host_call(host.push, jax.eval_shape(lambda: value), arrays, value, tangents)

    def pull(self, residuals, cotangent: PyTree):
        arrays, value, static, host = residuals
        theta = eqx.combine(arrays, static).theta
        return host_call(host.pull, jax.eval_shape(lambda: theta), arrays, value, cotangent), Backward.exact()


class _Implicit:
    """f(theta, y) = 0 (f = fn - y for a fixed point) and its derivatives, compiled once for all lanes."""

    def __init__(self, static: Any):
        def f(arrays, theta, y):
            call = eqx.combine(arrays, static).call(theta)
            out = ravel_pytree(call.equation.fn(ravel_pytree(call.equation.y0)[1](y), call.args))[0]
            return out if call.equation.kind == "root" else out - y

        def start(arrays):
            call = eqx.combine(arrays, static).call()
            y, stats = call.solver.configured.run(call.equation, call.args, PLAIN)
            return y, stats.converged

        def at(arrays):
            return eqx.combine(arrays, static).theta

        self.static = static
        self.start = compiled(start)
        self.residual = compiled(lambda arrays, y: f(arrays, at(arrays), y))
        self.jacobian = compiled(lambda arrays, y: jax.jacrev(lambda y: f(arrays, at(arrays), y))(y))
        self.forward = compiled(lambda arrays, y, t: jax.jvp(lambda th: f(arrays, th, y), (at(arrays),), (t,))[1])
        self.backward = compiled(lambda arrays, y, w: jax.vjp(lambda th: f(arrays, th, y), at(arrays))[1](w)[0])

    def solve(self, arrays: Any) -> PyTree:
        """Newton's method from the program's solution, until the step no longer shrinks."""
        found, converged = self.start(arrays)
        y, unravel = ravel_pytree(found)
        if not bool(converged):
            raise NoReference("The configured solver finds no solution in float64: there is nothing to differentiate.")
        if y.size > LARGEST_ROOT:
            raise HostTooSlow(f"{y.size} unknowns are too many for dense linear algebra on the host.")
        y, smallest = np.asarray(y), np.inf
        for _ in range(POLISHING_STEPS):
            step = self._solve_linear(arrays, y, np.asarray(self.residual(arrays, y)), 0)
            size = np.linalg.norm(step)
            if not size < smallest:
                break
            y, smallest = y - step, size
        self._note(arrays, y)
        return unravel(jnp.asarray(y))

    def _note(self, arrays: Any, y: np.ndarray) -> None:
        """How ill-conditioned the solution is: the residual's own rounding is what it scatters by between neighbors of
        y, beyond what its Jacobian explains, and the Jacobian amplifies it."""
        matrix, here = np.asarray(self.jacobian(arrays, y)), np.asarray(self.residual(arrays, y))
        scatter = np.zeros_like(here)
        for k in NEIGHBORS:
            moved = y * (1 + k * np.finfo(float).eps)
            scatter = np.maximum(scatter, np.abs(np.asarray(self.residual(arrays, moved)) - matrix @ (moved - y)))
        notes = eqx.combine(arrays, self.static).call().solver.limits.notes
        rows = np.abs(matrix).max(axis=1, keepdims=True)
        notes.condition = max(notes.condition, float(np.linalg.cond(matrix / np.where(rows > 0, rows, 1))))
        moves = np.linalg.norm(np.abs(np.linalg.pinv(matrix)) @ scatter)
        notes.noise = max(notes.noise, float(moves / max(np.linalg.norm(y), np.finfo(float).tiny)))

    def push(self, arrays: Any, value: PyTree, tangents: list[Array]) -> PyTree:
        y = np.asarray(ravel_pytree(value)[0])
        right = np.asarray(self.forward(arrays, y, tangents)) if tangents else np.zeros_like(y)
        return ravel_pytree(value)[1](jnp.asarray(-self._solve_linear(arrays, y, right, 0)))

    def pull(self, arrays: Any, value: PyTree, cotangent: PyTree) -> list[Array]:
        y, c = (np.asarray(ravel_pytree(x)[0]) for x in (value, cotangent))
        w = -self._solve_linear(arrays, y, c, 1)
        return self.backward(arrays, y, w)

    def _solve_linear(self, arrays: Any, y: np.ndarray, right: np.ndarray, transposed: int) -> np.ndarray:
        matrix = np.asarray(self.jacobian(arrays, y))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                return scipy.linalg.solve(matrix.T if transposed else matrix, right)
            except (np.linalg.LinAlgError, scipy.linalg.LinAlgWarning, ValueError) as error:
                raise NoReference(f"The Jacobian at the solution is singular: {error}") from error


class HostRoot(AbstractHost):
    """Newton's method with LAPACK from the configured solver's root."""

    configured: Any
    limits: HostLimits
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "root"
    cell: ClassVar[type[AbstractCell]] = ImplicitOnHost


class HostFixedPoint(AbstractHost):
    """The same for fn(y) - y."""

    configured: Any
    limits: HostLimits
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "fixed_point"
    cell: ClassVar[type[AbstractCell]] = ImplicitOnHost
