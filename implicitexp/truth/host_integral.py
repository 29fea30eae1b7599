"""An integral on the host: `scipy.integrate.quad_vec` of the value, and of its derivative with the boundary terms."""

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from implicitexp.solvers.base import NotConverged
from implicitexp.strategies.base import AbstractCell, Backward, Split
from implicitexp.truth.host_base import AbstractHost, HostLimits, compiled, finished
from implicitexp.truth.host_call import host_call

ROUGHLY = 0.1  # relative tolerance of an integral that is needed to its magnitude
INTERVALS = 2000  # of quad_vec
OFF_A_BREAK = 8 * float(
    np.finfo(float).eps
)  # of its size or of its distance to the next: where one side's value is taken


class LeibnizOnHost(AbstractCell):
    """quad_vec of the integrand and of its derivative, from each break to the next; boundary terms by evaluating the
    integrand there, at a break on both sides."""

    def linearize(self, split: Split):
        arrays, static = eqx.partition(split, eqx.is_array)
        call = split.call()
        shapes = jax.eval_shape(call.equation.integrand, call.equation.lower, call.args)
        host = _Leibniz(static)
        value = host_call(host.value, shapes, arrays)
        return value, finished(value), (arrays, static, host, value)

    def push(self, residuals, tangents: list[Array]) -> PyTree:
        arrays, _, host, value = residuals
        return host_call(host.push, jax.eval_shape(lambda: value), arrays, tangents)

    def pull(self, residuals, cotangent: PyTree):
        arrays, static, host, _ = residuals
        theta = eqx.combine(arrays, static).theta
        return host_call(host.pull, jax.eval_shape(lambda: theta), arrays, cotangent), Backward.exact()


class _Leibniz:
    """The integrand g(theta, x) and its derivatives, compiled once for all lanes."""

    def __init__(self, static: Any):
        def g(arrays, theta, x):
            call = eqx.combine(arrays, static).call(theta)
            return ravel_pytree(call.equation.integrand(x, call.args))[0]

        def places(arrays, theta):
            call = eqx.combine(arrays, static).call(theta)
            equation = call.equation
            limits = jnp.stack([equation.lower, equation.upper])
            if equation.breaks is None:
                return limits
            (breaks,) = jax.tree.leaves(equation.breaks(call.args))
            return jnp.concatenate([limits, breaks.astype(limits.dtype)])

        def at(arrays):
            return eqx.combine(arrays, static).theta

        self.static = static
        self.integrand = compiled(lambda arrays, x: g(arrays, at(arrays), x))
        self.forward = compiled(lambda arrays, x, t: jax.jvp(lambda th: g(arrays, th, x), (at(arrays),), (t,))[1])
        self.backward = compiled(
            lambda arrays, x, c: ravel_pytree(jax.vjp(lambda th: g(arrays, th, x), at(arrays))[1](c)[0])[0]
        )
        self.places = compiled(lambda arrays: places(arrays, at(arrays)))
        self.shift_forward = compiled(lambda arrays, t: jax.jvp(lambda th: places(arrays, th), (at(arrays),), (t,))[1])
        self.shift_backward = compiled(
            lambda arrays, c: ravel_pytree(jax.vjp(lambda th: places(arrays, th), at(arrays))[1](c)[0])[0]
        )

    def value(self, arrays: Any) -> PyTree:
        total = self._quad(arrays, lambda x: self.integrand(arrays, x))
        return self._unravel(arrays)(jnp.asarray(total))

    def push(self, arrays: Any, tangents: list[Array]) -> PyTree:
        if not tangents:
            return self._unravel(arrays)(jnp.zeros_like(self.integrand(arrays, self.places(arrays)[0])))
        total = self._quad(arrays, lambda x: self.forward(arrays, x, tangents))
        moved = np.asarray(self.shift_forward(arrays, tangents))
        for sign, place, x in self._boundary(arrays):
            if moved[place] != 0:
                total = total + sign * moved[place] * np.asarray(self.integrand(arrays, x))
        return self._unravel(arrays)(jnp.asarray(total))

    def pull(self, arrays: Any, cotangent: PyTree) -> list[Array]:
        theta = eqx.combine(arrays, self.static).theta
        if not theta:
            return []
        c = np.asarray(ravel_pytree(cotangent)[0])
        size = np.linalg.norm(c) or 1.0
        c = c / size
        total = self._quad(arrays, lambda x: self.backward(arrays, x, c))
        for sign, place, x in self._boundary(arrays):
            one = np.asarray(self.shift_backward(arrays, np.eye(self.places(arrays).size)[place]))
            if np.any(one != 0):
                total = total + sign * one * float(np.asarray(self.integrand(arrays, x)) @ c)
        self._note(arrays, lambda x: np.abs(self.backward(arrays, x, c)), total)
        return ravel_pytree(theta)[1](jnp.asarray(total * size))

    def _note(self, arrays: Any, magnitude: Callable, total: np.ndarray) -> None:
        """The condition of a sum whose parts cancel: the integral of |f| over that of f."""
        notes = eqx.combine(arrays, self.static).call().solver.limits.notes
        size = np.linalg.norm(total)
        if size > 0:
            spread = np.linalg.norm(self._quad(arrays, magnitude, ROUGHLY))
            notes.condition = max(notes.condition, float(spread / size))

    def _ends(self, arrays: Any) -> list[tuple[int, float]]:
        """(index into the places, where it is): the limits, and in order the breaks between them."""
        lower, upper, *breaks = (float(x) for x in self.places(arrays))
        way = -1.0 if upper < lower else 1.0
        between = [(i, x) for i, x in enumerate(breaks, 2) if way * lower < way * x < way * upper]
        return [(0, lower), *sorted(between, key=lambda place: way * place[1]), (1, upper)]

    def _boundary(self, arrays: Any) -> list[tuple[int, int, float]]:
        """(sign, index into the places, where the integrand's limit from inside is taken), of both ends of each piece."""
        ends = self._ends(arrays)
        marked = len(self.places(arrays)) > 2
        found = []
        for (first, lower), (last, upper) in itertools.pairwise(ends):
            width = upper - lower
            for sign, place, end, inwards in ((-1, first, lower, 1.0), (1, last, upper, -1.0)):
                scale = max(abs(end), abs(width) if math.isfinite(width) else 1.0)
                shift = inwards * math.copysign(min(OFF_A_BREAK * scale, abs(width) / 4), width) if marked else 0.0
                if math.isfinite(end):
                    found.append((sign, place, end + shift))
        return found

    def _unravel(self, arrays: Any) -> Callable:
        call = eqx.combine(arrays, self.static).call()
        example = jax.eval_shape(call.equation.integrand, call.equation.lower, call.args)
        return ravel_pytree(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), example))[1]

    def _quad(self, arrays: Any, fn: Callable, tolerance: float | None = None) -> np.ndarray:
        limits = eqx.combine(arrays, self.static).call().solver.limits

        def counted(x):
            limits.check()
            return np.asarray(fn(x))

        def piece(lower, upper):
            return scipy.integrate.quad_vec(
                counted,
                lower,
                upper,
                epsabs=1e-300,
                epsrel=limits.tolerance if tolerance is None else tolerance,
                norm="max",
                limit=INTERVALS,
            )[0]

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a round-off warning: the comparison of two computations says how much
            pieces = [piece(a, b) for (_, a), (_, b) in itertools.pairwise(self._ends(arrays))]
        return np.sum(pieces, axis=0)


class HostIntegral(AbstractHost):
    """quad_vec."""

    configured: Any
    limits: HostLimits
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "integral"
    cell: ClassVar[type[AbstractCell]] = LeibnizOnHost
