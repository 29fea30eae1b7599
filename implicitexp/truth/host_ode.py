"""An ODE on the host: the state and its sensitivities in one system under one error test, by DOP853 or Radau."""

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
from implicitexp.truth.doubles import NoReference
from implicitexp.truth.host_base import AbstractHost, HostLimits, HostTooSlow, compiled, finished
from implicitexp.truth.host_call import host_call

LARGEST_SYSTEM = 4000  # numbers of an ODE's state with its sensitivities, for DOP853
LARGEST_STIFF_SYSTEM = 200  # for Radau, which factors a matrix of this size
TIGHTEST = 3e-14  # relative tolerance below which SciPy's solvers warn


def largest_system(stiff: bool) -> int:
    """How many numbers an ODE's state may have, together with its sensitivities."""
    return LARGEST_STIFF_SYSTEM if stiff else LARGEST_SYSTEM


class SensitivityOnHost(AbstractCell):
    """Forward sensitivities: the whole Jacobian of the value is carried."""

    def linearize(self, split: Split):
        arrays, static = eqx.partition(split, eqx.is_array)
        equation = split.call().equation
        shapes = jax.eval_shape(lambda: equation.y0)
        if equation.ts is not None:
            count = equation.ts.shape[0]
            shapes = jax.tree.map(lambda s: jax.ShapeDtypeStruct((count, *s.shape), s.dtype), shapes)
        p = sum(x.size for x in split.theta)
        columns = jax.tree.map(lambda s: jax.ShapeDtypeStruct((p, *s.shape), s.dtype), shapes)
        compiled = _Sensitivities(static)
        value, jacobian = host_call(compiled, (shapes, columns), arrays)
        return value, finished(value), (jacobian, split.theta)

    def push(self, residuals, tangents: list[Array]) -> PyTree:
        jacobian, _ = residuals
        flat = ravel_pytree(tangents)[0] if tangents else jnp.zeros(0)
        return jax.tree.map(lambda j: jnp.tensordot(flat, j, 1), jacobian)

    def pull(self, residuals, cotangent: PyTree):
        jacobian, theta = residuals
        if not theta:
            return [], Backward.exact()
        flat, unravel = ravel_pytree(theta)
        parts = jax.tree.map(lambda j, c: j.reshape(flat.size, -1) @ c.reshape(-1), jacobian, cotangent)
        return unravel(sum(jax.tree.leaves(parts), jnp.zeros(flat.size))), Backward.exact()


class _Sensitivities:
    """The augmented system in rescaled time s in [0, 1], t = t0 + s (t1 - t0): t0, t1 and ts are parameters as all
    others. Tangents are relative to the size of each parameter, so that one absolute tolerance fits all."""

    def __init__(self, static: Any):
        self.static = static
        self.field = compiled(self._augmented)
        self.jacobian = compiled(jax.jacfwd(self._augmented, argnums=1))
        self.initial = compiled(self._initial)

    def _split(self, arrays: Any) -> Split:
        return eqx.combine(arrays, self.static)

    def _slope(self, split: Split, theta: Array, s: Any, y: Array) -> Array:
        call = split.call(flat_theta(split)[1](theta))
        equation = call.equation
        unravel = ravel_pytree(equation.y0)[1]
        span = equation.t1 - equation.t0
        return span * ravel_pytree(equation.field(equation.t0 + s * span, unravel(y), call.args))[0]

    def _scales(self, theta: Array) -> Array:
        return jnp.where(theta == 0, 1.0, jnp.abs(theta))

    def _augmented(self, s: Any, state: Array, arrays: Any) -> Array:
        split = self._split(arrays)
        theta = flat_theta(split)[0]
        p = theta.size
        state = state.reshape(1 + p, -1)
        y, columns = state[0], state[1:]
        slope = self._slope(split, theta, s, y)

        def moved(direction, column):
            return jax.jvp(lambda t, y: self._slope(split, t, s, y), (theta, y), (direction, column))[1]

        tangents = jax.vmap(moved)(jnp.diag(self._scales(theta)), columns) if p else columns
        return jnp.concatenate([slope, tangents.reshape(-1)])

    def _initial(self, arrays: Any) -> tuple[Array, Array, Array, Array]:
        """-> initial state, scales of the parameters, output times and their derivatives by the parameters."""
        split = self._split(arrays)
        theta, unravel = flat_theta(split)

        def start(theta):
            return ravel_pytree(split.call(unravel(theta)).equation.y0)[0]

        def times(theta):
            equation = split.call(unravel(theta)).equation
            span = equation.t1 - equation.t0
            return jnp.ones(1) if equation.ts is None else (equation.ts - equation.t0) / jnp.where(span == 0, 1, span)

        scales = self._scales(theta)
        columns = jax.jacfwd(start)(theta).T * scales[:, None] if theta.size else jnp.zeros((0, start(theta).size))
        drift = jax.jacfwd(times)(theta) if theta.size else jnp.zeros((times(theta).size, 0))
        return jnp.concatenate([start(theta), columns.reshape(-1)]), scales, times(theta), drift

    def __call__(self, arrays: Any) -> tuple[PyTree, PyTree]:
        split = self._split(arrays)
        call = split.call()
        limits = call.solver.limits
        state, scales, times, drift = (np.asarray(x) for x in self.initial(arrays))
        n, p = state.size // (1 + scales.size), scales.size
        if state.size > largest_system(limits.stiff):
            raise HostTooSlow(f"The ODE has {n} unknowns and {p} inputs: too many for forward sensitivities.")
        states = self._integrate(state, times, arrays, limits)
        values, columns = states[:, :n], states[:, n:].reshape(len(times), p, n) / scales[:, None]
        if call.equation.ts is not None:
            slopes = np.stack([np.asarray(self.field(s, x, arrays))[:n] for s, x in zip(times, states, strict=True)])
            columns = columns + drift[:, :, None] * slopes[:, None, :]
        unravel = ravel_pytree(call.equation.y0)[1]
        if call.equation.ts is None:
            return unravel(jnp.asarray(values[0])), jax.vmap(unravel)(jnp.asarray(columns[0]))
        each = jax.vmap(unravel)(jnp.asarray(values))
        return each, jax.vmap(jax.vmap(unravel))(jnp.asarray(np.moveaxis(columns, 0, 1)))

    def _integrate(self, state: np.ndarray, times: np.ndarray, arrays: Any, limits: HostLimits) -> np.ndarray:
        """The state at each of `times`, each the end of an integration: no interpolation."""

        def field(s, x):
            return np.asarray(self.field(s, x, arrays))

        rtol = max(limits.tolerance, TIGHTEST)
        options: dict[str, Any] = {"rtol": rtol, "atol": limits.tolerance}
        method = scipy.integrate.DOP853
        if limits.stiff:
            method = scipy.integrate.Radau
            options["jac"] = lambda s, x: np.asarray(self.jacobian(s, x, arrays))
        out, s = [], 0.0
        for end in times:
            if end > s:
                stepper = method(field, s, state, float(end), **options)
                while stepper.status == "running":
                    limits.check()
                    message = stepper.step()
                if stepper.status == "failed":
                    raise NoReference(f"SciPy's {method.__name__} failed at {s + 0.0:.3g} of the interval: {message}")
                s, state = float(end), stepper.y
            out.append(state)
        return np.stack(out)


def flat_theta(split: Split) -> tuple[Array, Callable]:
    return ravel_pytree(split.theta) if split.theta else (jnp.zeros(0), lambda _: [])


class HostODE(AbstractHost):
    """DOP853, or Radau for a stiff problem."""

    configured: Any
    limits: HostLimits
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "ode"
    cell: ClassVar[type[AbstractCell]] = SensitivityOnHost
