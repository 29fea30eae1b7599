"""Numerical integration: Quadax's adaptive rules."""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import quadax
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from implicitexp.adjoints.quadrature import UnrolledAdjoint
from implicitexp.equations import Integral, Stats

from .base import AbstractSolver, Loop, NotConverged, Tolerance, resolve_tolerance, stats


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
        lower, upper = jnp.asarray(lower), jnp.asarray(upper)
        example = jax.eval_shape(integrand, lower, args)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), example)
        unravel = ravel_pytree(zeros)[1]
        leaves, treedef = jax.tree.flatten(args)

        def flat_integrand(x, *leaves):
            return ravel_pytree(integrand(x, treedef.unflatten(leaves)))[0]

        total, info = self.rule()(
            flat_integrand,
            jnp.stack([lower, upper]),
            tuple(leaves),
            epsabs=resolve_tolerance(self.atol if atol is None else atol, zeros),
            epsrel=resolve_tolerance(self.rtol if rtol is None else rtol, zeros),
            max_ninter=self.max_steps if max_steps is None else max_steps,
            order=self.order,
            adjoint=adjoint,
            extrapolate=self.extrapolate,
            full_output=True,
        )
        value = unravel(total)
        return value, stats(info.status == quadax.STATUS.normal, info.info["ninter"], value)

    def run(self, equation: Integral, args: PyTree, loop: Loop) -> tuple[PyTree, Stats]:
        """The adaptive rule; a checkpointed loop is unrolled, a plain one keeps its mesh when it is differentiated."""
        adjoint = UnrolledAdjoint() if loop.kind == "checkpointed" else quadax.DirectAdjoint()
        return self.integrate(equation.integrand, equation.lower, equation.upper, args, adjoint=adjoint)


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
