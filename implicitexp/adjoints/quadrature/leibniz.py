"""The derivative of an integral as an integral of its own."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from implicitexp.adjoints.implicit.linear_map import linear_map
from implicitexp.errors import Unsupported

from . import quadax_private as private
from .call import AbstractQuadratureAdjoint, Call, Held
from .operators import Flat, Inputs, Integrand, derivative


class Leibniz(AbstractQuadratureAdjoint):
    """Differentiate by the Leibniz rule, I' = g(u) u' - g(l) l' + the integral of dg, the integral by the same routine with an
    error control of its own.

    Use as `quadax.quadgk(..., adjoint=Leibniz())`, and in `quadcc`, `quadts`, `adaptive_quadrature`, `romberg`, `tanhsinh`;
    in a cubature where no limit is differentiated.

    `rtol`, `atol`: of the derivative, whose tangent or cotangent is brought to the size one before (None: those of the
    call). In reverse mode the largest entry among the numbers that are differentiated sets the scale. Where the derivative's
    integral misses its tolerance, the derivative is NaN, in that lane of a `vmap` only. A rounding error that no mesh avoids is
    no failure.

    At a breakpoint b the integrand may jump, and the term (g(b-) - g(b+)) b' is added if b is built from the parameter that
    moves the jump. An integrand that is infinite at a limit has no boundary term there: the derivative by such a limit is NaN,
    that by all else is not (`FrozenMesh`, whose nodes move with the limit, is right where the singularity moves with it).
    Infinite limits do not move.

    The cost is that of an integral whose integrand has as many values as numbers are differentiated (reverse mode), or as the
    integrand itself (forward). Nothing is kept but the inputs. Forward and reverse mode, `jit`, `vmap`, `scan`, and derivatives
    of any order, each by an integral with its own error control.

    Raises:
        Unsupported: a cubature of which a limit is differentiated, whose boundary terms are integrals over faces.
    """

    rtol: Any = None
    atol: Any = None

    def kept(self, ops, state):
        del ops, state

    def derivative(self, call, inputs, held, moving, tangents, like):
        interval = call.inputs(inputs, held)[0]
        limits = len(jax.tree.leaves(interval))
        box = isinstance(interval, tuple)
        if box and any(i < limits for i in moving):
            raise Unsupported(
                "Leibniz has no boundary terms in more than one dimension: use FrozenMesh, or quadax.LeibnizAdjoint, where "
                "the limits of a cubature are differentiated."
            )
        edge = None if box else _Edge(call)
        return derivative(_Adaptive(call, self), edge, _integrand(call), inputs, held, moving, tangents, like)


def _integrand(call: Call) -> Integrand:
    def integrand(inputs: Inputs, held: Held, x: Array) -> Array:
        return call.built(inputs, held)[0](x)

    return integrand


class _Adaptive:
    """The integral over the interval of the inputs, NaN where it fails."""

    def __init__(self, call: Call, own: Leibniz):
        self.call, self.own = call, own

    def __call__(self, integrand: Integrand, inputs: Inputs, held: Held) -> PyTree:
        options, kwargs = self.call.options(held)
        _, interval = self.call.ops.build(*self.call.inputs(inputs, held))
        middle = jax.tree.map(lambda axis: (axis[0] + axis[-1]) / 2, interval)
        x = jnp.stack(middle) if isinstance(interval, tuple) else middle
        flat = Flat(jax.eval_shape(lambda x: integrand(inputs, held, x), x), x.dtype)

        def fn(x):
            return flat.vector(integrand(inputs, held, x))

        value, state = self.call.ops.solve(fn, interval, kwargs, **self._tolerances(options))
        eps = float(jnp.finfo(value.dtype).eps)
        return flat.tree(value * jnp.where(private.reached(state, eps), 1, jnp.nan).astype(value.dtype))

    def _tolerances(self, options: dict) -> dict:
        given = {"epsrel": self.own.rtol, "epsabs": self.own.atol}
        kinds = {name: jnp.result_type(options[name]) for name in given}
        own = {name: jnp.asarray(x, kinds[name]) for name, x in given.items() if x is not None}
        return {**options, **own}


class _Edge:
    """Boundary terms and jumps, the integrand held constant: a function of where the limits and breakpoints have moved to."""

    def __init__(self, call: Call):
        self.call = call

    def __call__(self, integrand: Integrand, inputs: Inputs, held: Held, moved: Inputs) -> PyTree:
        _, at = self.call.ops.build(*self.call.inputs(inputs, held))
        _, moving = self.call.ops.build(*self.call.inputs(moved, held))
        flat = Flat(jax.eval_shape(lambda x: integrand(inputs, held, x), at[0]), at.dtype)

        def fn(x):
            value = flat.vector(integrand(inputs, held, x))
            return jnp.where(jnp.isfinite(value), value, 0)

        total = fn(at[-1]) * moving[-1] - fn(at[0]) * moving[0] + self._unbounded(inputs, held, moving)
        falls = private.jumps(jax.vmap(fn), at)
        return flat.tree(total if falls is None else total + jnp.tensordot(moving[1:-1], falls, 1))

    def _unbounded(self, inputs: Inputs, held: Held, moving: Array) -> Array:
        """Zero, whose derivative is NaN where a limit moves at which the integrand is not finite; there is no such term."""
        interval = self.call.inputs(inputs, held)[0]
        mapped, at = self.call.built(inputs, held)
        limits = jnp.stack([jnp.min(interval), jnp.max(interval)])
        values = jax.vmap(private.unmasked(mapped))(at[jnp.array([0, -1])])
        bad = jnp.isfinite(limits) & ~jnp.all(jnp.isfinite(values.reshape(2, -1)), axis=1)
        ends = moving[jnp.array([0, -1])]

        def push(bad, moved):
            return jnp.sum(jnp.where(bad & (moved != 0), jnp.nan, 0))

        def pull(bad, cotangent):
            return jnp.where(bad & (cotangent != 0), jnp.nan, 0).astype(ends.dtype)

        return linear_map(push, pull, bad, ends - jax.lax.stop_gradient(ends), like=jnp.zeros((), ends.dtype))
