"""Numerical integration: Quadax's adaptive rules."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import quadax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from implicitexp.adjoints.quadrature import UnrolledAdjoint
from implicitexp.equations import Integral, Stats

from .base import AbstractSolver, Loop, NotConverged, Tolerance, dtype_of, resolve_tolerance, stats

# Of eps. Quadax's error estimate has a floor of 50 eps times the integral of |f|, and ends with the status "round-off"
# below twice that floor, however good the value is.
SMALLEST_TOLERANCE = 200.0
UNDEFINED = (
    1e-6  # measure of where an integrand may be NaN: an end point's neighborhood, and not a part of the interval
)


class AbstractQuadrature(AbstractSolver):
    """An adaptive rule. `integrate` is the one place that calls Quadax, for values and derivatives alike."""

    rtol: eqx.AbstractVar[Any]
    atol: eqx.AbstractVar[Any]
    order: eqx.AbstractVar[int]
    max_steps: eqx.AbstractVar[int]
    extrapolate: eqx.AbstractVar[bool]

    @abc.abstractmethod
    def rule(self) -> Callable:
        """Quadax's routine."""

    def integrate(
        self,
        integrand: Callable[[Any, PyTree], PyTree],
        lower: Any,
        upper: Any,
        args: PyTree,
        *,
        adjoint: quadax.AbstractAdjoint,
        rtol: Any = None,
        atol: Any = None,
        max_steps: int | None = None,
    ) -> tuple[PyTree, Stats]:
        """The integral and its statistics. `rtol` and `atol` given here stand before the solver's own."""
        lower, upper = _movable(jnp.asarray(lower)), _movable(jnp.asarray(upper))
        example = jax.eval_shape(integrand, lower, args)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), example)
        unravel = ravel_pytree(zeros)[1]
        leaves, treedef = jax.tree.flatten(args)

        def flat_integrand(x, lower, upper, *leaves):
            flat = ravel_pytree(integrand(x, treedef.unflatten(leaves)))[0]
            undefined = jax.lax.stop_gradient(jnp.any(jnp.isnan(flat)) * _weight(x, lower, upper))
            return jnp.append(flat, undefined.astype(flat.dtype))

        total, info = self.rule()(
            flat_integrand,
            jnp.stack([lower, upper]),
            (lower, upper, *leaves),  # all that is traced: Quadax loses what a function closes over
            epsabs=_tolerance(self.atol if atol is None else atol, zeros),
            epsrel=_tolerance(self.rtol if rtol is None else rtol, zeros),
            max_ninter=self.max_steps if max_steps is None else max_steps,
            order=self.order,
            adjoint=adjoint,
            extrapolate=self.extrapolate,
            full_output=True,
        )
        value, undefined = unravel(total[:-1]), total[-1]
        converged = (info.status == quadax.STATUS.normal) & (jnp.abs(undefined) < UNDEFINED)
        return value, stats(converged, info.info["ninter"], value)

    def noise(self, like):
        return resolve_tolerance(self.rtol, like)

    def run(self, equation: Integral, args: PyTree, loop: Loop) -> tuple[PyTree, Stats]:
        """The adaptive rule; a checkpointed loop is unrolled, a plain one keeps its mesh when it is differentiated."""
        adjoint = UnrolledAdjoint() if loop.kind == "checkpointed" else quadax.DirectAdjoint()
        return self.integrate(equation.integrand, equation.lower, equation.upper, args, adjoint=adjoint)


def _tolerance(value: Any, like: PyTree) -> Any:
    """`value`, or the default of the precision, but not below what Quadax can tell from round-off in float32."""
    if value is not None:
        return value
    return max(resolve_tolerance(None, like), SMALLEST_TOLERANCE * float(jnp.finfo(dtype_of(like)).eps))


def _weight(x: Array, lower: Array, upper: Array) -> Array:
    """Of a point in the measure of where the integrand is undefined; the whole interval weighs about one.

    Quadax replaces NaN by zero, so that a failed solve inside an integrand would pass for a value. It is integrated
    beside the integrand instead. Towards infinity NaN is common and harmless (inf * 0), and weighs little.
    """
    finite = jnp.isfinite(lower) & jnp.isfinite(upper)
    length = jnp.where(finite & (upper != lower), jnp.abs(upper - lower), 1)
    return jnp.where(finite, 1 / length, 1 / (1 + jnp.square(x)))


def _movable(limit: Array) -> Array:
    """A limit at infinity does not move: its derivative is zero, not the NaN of the substitution that maps it."""
    return jnp.where(jnp.isinf(limit), jax.lax.stop_gradient(limit), limit)


class GaussKronrod(AbstractQuadrature):
    """Adaptive Gauss-Kronrod quadrature, as QUADPACK's QAG; `extrapolate` for singular end points (slow to compile)."""

    rtol: Tolerance = None
    atol: Tolerance = None
    order: int = eqx.field(static=True, default=21)  # nodes an interval: 15, 21, 31, 41, 51 or 61
    max_steps: int = eqx.field(static=True, default=50)  # intervals
    extrapolate: bool = eqx.field(static=True, default=False)
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "integral"

    def rule(self):
        return quadax.quadgk


class TanhSinh(AbstractQuadrature):
    """Adaptive tanh-sinh quadrature, for integrands that are singular at the end points."""

    rtol: Tolerance = None
    atol: Tolerance = None
    order: int = eqx.field(static=True, default=61)  # nodes an interval: 41, 61, 81 or 101
    max_steps: int = eqx.field(static=True, default=50)  # intervals
    extrapolate: bool = eqx.field(static=True, default=False)
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "integral"

    def rule(self):
        return quadax.quadts
