"""Numerical integration: Quadax's rules with error control, and Gauss-Legendre nodes without."""

import abc
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import quadax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from implicitexp.adjoints.quadrature.unrolled import UnrolledAdjoint
from implicitexp.equations import Integral, Stats

from .base import AbstractSolver, Loop, NotConverged, Tolerance, dtype_of, resolve_tolerance, stats
from .pieces import ends, inside

# Of eps. Quadax's error estimate has a floor of 50 eps times the integral of |f|, and ends with the status "round-off"
# below twice that floor, however good the value is.
SMALLEST_TOLERANCE = 200.0
UNDEFINED = (
    1e-6  # measure of where an integrand may be NaN: an end point's neighborhood, and not a part of the interval
)

FIRST_HALVINGS = 4  # of Romberg's method: Quadax's own start, 17 nodes in one batch


class AbstractQuadrature(AbstractSolver):
    """A rule for integrals. `integrate` is the one place that calls it, for values and derivatives alike."""

    @abc.abstractmethod
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
        """The integral and its statistics. What is given here stands before the solver's own; `adjoint`: how Quadax
        differentiates it."""

    def run(self, equation: Integral, args: PyTree, loop: Loop) -> tuple[PyTree, Stats]:
        """The rule; a checkpointed loop is unrolled, a plain one keeps its mesh when it is differentiated."""
        own = UnrolledAdjoint() if loop.kind == "checkpointed" else quadax.DirectAdjoint()
        adjoint = own if loop.adjoint is None else loop.adjoint
        if equation.breaks is None:
            return self.integrate(equation.integrand, equation.lower, equation.upper, args, adjoint=adjoint)

        def integrand(x, held):
            return held[0].integrand(x, held[1])

        return self.over_pieces(integrand, ends(equation, args), (equation, args), adjoint=adjoint)

    def over_pieces(
        self, integrand: Callable[[Any, PyTree], PyTree], ends: Array, held: PyTree, **options: Any
    ) -> tuple[PyTree, Stats]:
        """The sum of the integrals of integrand(x, held) from each of `ends` to the next, each with the tolerances of a
        whole one. The integrand is evaluated strictly inside of each; it closes over nothing that is traced."""
        arrays, static = eqx.partition(held, eqx.is_array)

        def within(x, operands):
            arrays, lower, upper = operands
            return integrand(inside(x, lower, upper), eqx.combine(arrays, static))

        def one(lower, upper):
            return self.integrate(within, lower, upper, (arrays, lower, upper), **options)

        values, found = jax.vmap(one)(ends[:-1], ends[1:])
        value = jax.tree.map(lambda v: jnp.sum(v, 0), values)
        return value, stats(jnp.all(found.converged), jnp.sum(found.steps), value)


class AbstractControlled(AbstractQuadrature):
    """A rule of Quadax, which refines its mesh until its estimate of the error is below the tolerances."""

    rtol: eqx.AbstractVar[Any]
    atol: eqx.AbstractVar[Any]
    max_steps: eqx.AbstractVar[int]

    @abc.abstractmethod
    def quadrature(
        self, integrand: Callable, interval: Array, args: tuple, max_steps: int, options: dict[str, Any]
    ) -> tuple[Array, Any, Any]:
        """Call Quadax's routine -> value, its `info`, how many intervals it took."""

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
        lower, upper = _movable(jnp.asarray(lower)), _movable(jnp.asarray(upper))
        example = jax.eval_shape(integrand, lower, args)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), example)
        unravel = ravel_pytree(zeros)[1]
        leaves, treedef = jax.tree.flatten(args)

        def flat_integrand(x, lower, upper, *leaves):
            flat = ravel_pytree(integrand(x, treedef.unflatten(leaves)))[0]
            undefined = jax.lax.stop_gradient(jnp.any(jnp.isnan(flat)) * _weight(x, lower, upper))
            return jnp.append(flat, undefined.astype(flat.dtype))

        options = {
            "epsabs": _tolerance(self.atol if atol is None else atol, zeros),
            "epsrel": _tolerance(self.rtol if rtol is None else rtol, zeros),
            "adjoint": adjoint,
            "full_output": True,
        }
        operands = (lower, upper, *leaves)  # all that is traced: Quadax loses what a function closes over
        steps = self.max_steps if max_steps is None else max_steps
        total, info, intervals = self.quadrature(flat_integrand, jnp.stack([lower, upper]), operands, steps, options)
        value, undefined = unravel(total[:-1]), total[-1]
        converged = (info.status == quadax.STATUS.normal) & (jnp.abs(undefined) < UNDEFINED)
        return value, stats(converged, intervals, value)

    def noise(self, like):
        return resolve_tolerance(self.rtol, like)


class AbstractAdaptiveRule(AbstractControlled):
    """A rule on intervals that are halved where the error is largest."""

    order: eqx.AbstractVar[int]
    extrapolate: eqx.AbstractVar[bool]

    @abc.abstractmethod
    def rule(self) -> Callable:
        """Quadax's routine."""

    def quadrature(self, integrand, interval, args, max_steps, options):
        keywords = {"max_ninter": max_steps, "order": self.order, "extrapolate": self.extrapolate, **options}
        value, info = self.rule()(integrand, interval, args, **keywords)
        return value, info, info.info["ninter"]


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


class GaussKronrod(AbstractAdaptiveRule):
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


class ClenshawCurtis(AbstractAdaptiveRule):
    """Adaptive Clenshaw-Curtis quadrature, of any order: for smooth integrands that oscillate. It evaluates the integrand
    at both limits."""

    rtol: Tolerance = None
    atol: Tolerance = None
    order: int = eqx.field(static=True, default=32)  # nodes an interval, less one: a multiple of 4
    max_steps: int = eqx.field(static=True, default=50)  # intervals
    extrapolate: bool = eqx.field(static=True, default=False)
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "integral"

    def rule(self):
        return quadax.quadcc


class TanhSinh(AbstractAdaptiveRule):
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


class Romberg(AbstractControlled):
    """Romberg's method: the trapezoidal rule on meshes that are halved everywhere, extrapolated. For smooth integrands
    on a finite interval; it evaluates the integrand at both limits."""

    rtol: Tolerance = None
    atol: Tolerance = None
    max_steps: int = eqx.field(static=True, default=65_536)  # intervals of the finest mesh, rounded down to 2^n
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "integral"
    refuses: ClassVar[Mapping[str, str]] = {
        "unroll": "JAX cannot run its loop backwards, whose length is found on the way; use implicit, the derivative of "
        "the same sum, adjoint or forward, or unroll with GaussKronrod"
    }

    def quadrature(self, integrand, interval, args, max_steps, options):
        halvings = max(max_steps, 1).bit_length() - 1
        schedule = {"divmax": halvings, "divmin": min(FIRST_HALVINGS, halvings)}
        value, info = quadax.romberg(integrand, interval, args, **schedule, **options)
        return value, info, info.neval - 1


class GaussLegendre(AbstractQuadrature):
    """Gauss-Legendre quadrature with a fixed number of nodes on each of equal panels, and **no error control**: it has
    converged where the value is finite. Exact for polynomials of degree 2 nodes - 1; the limits must be finite.

    Quadax has no rule without an error estimate, which costs as many nodes again.
    """

    nodes: int = eqx.field(static=True, default=20)  # of a panel
    panels: int = eqx.field(static=True, default=1)  # equal parts of the interval
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "integral"

    def noise(self, like):
        return 0.0

    def integrate(self, integrand, lower, upper, args, *, adjoint, rtol=None, atol=None, max_steps=None):
        del adjoint, rtol, atol, max_steps  # a sum is differentiated as it is
        x, weights = np.polynomial.legendre.leggauss(self.nodes)
        width = (upper - lower) / self.panels
        left = lower + width * jnp.arange(self.panels, dtype=width.dtype)
        points = left[:, None] + width * jnp.asarray((x + 1) / 2, width.dtype)
        values = jax.vmap(lambda x: integrand(x, args))(points.reshape(-1))
        shares = width * jnp.tile(jnp.asarray(weights / 2, width.dtype), self.panels)
        value = jax.tree.map(lambda g: jnp.tensordot(shares.astype(g.dtype), g, 1), values)
        return value, stats(jnp.array(True), self.panels, value)
