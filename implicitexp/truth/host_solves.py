"""The second computation of the ground truth: solutions and derivatives by SciPy and LAPACK on the host.

It shares the user's functions with the first one (as compiled code) and nothing else: no solver, no strategy, no
linear algebra. ODE: the state and its sensitivities in one system under one error test, by DOP853 or Radau. Root and
fixed point: Newton's method with dense LAPACK from the program's own solution, so that it is the same branch. Integral:
`scipy.integrate.quad_vec` of the value, and of its derivative with the boundary terms.
"""

import dataclasses
import time
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate
import scipy.linalg
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, PyTree

from implicitexp.equations import Stats
from implicitexp.solvers.base import PLAIN, AbstractSolver, NotConverged
from implicitexp.strategies.base import AbstractCell, AbstractStrategy, Backward, Call, Split
from implicitexp.truth.doubles import NoReference
from implicitexp.truth.host_call import host_call

LARGEST_SYSTEM = 4000  # numbers of an ODE's state with its sensitivities, for DOP853
LARGEST_STIFF_SYSTEM = 200  # for Radau, which factors a matrix of this size
LARGEST_ROOT = 500  # unknowns of a root or fixed point
TIGHTEST = 3e-14  # relative tolerance below which SciPy's solvers warn
POLISHING_STEPS = 20  # of Newton's method; it stops when the step no longer shrinks
NEIGHBORS = (-7, -5, -3, -2, -1, 0, 1, 2, 3, 5, 7)  # units of rounding away from a root, where its residual is sampled
ROUGHLY = 0.1  # relative tolerance of an integral that is needed to its magnitude
INTERVALS = 2000  # of quad_vec


class HostTooSlow(NoReference):
    """The host needs more than its time; the caller has another pair of computations."""


@dataclasses.dataclass
class Notes:
    """What the host's solves found on the way, the worst of all: by which rounding enters a gradient."""

    condition: float = 1.0  # of a Jacobian whose rows have been brought to one size
    noise: float = 0.0  # rounding of a root, relative to its norm


class HostLimits(eqx.Module):
    """What a host solve may take: its relative tolerance, and the time (of `time.perf_counter`) when it must end."""

    tolerance: float = eqx.field(static=True)
    deadline: float = eqx.field(static=True)
    stiff: bool = eqx.field(static=True, default=False)
    notes: Notes = eqx.field(default_factory=Notes)

    def check(self) -> None:
        if time.perf_counter() > self.deadline:
            raise HostTooSlow("SciPy on the host did not finish in time.")


class OnHost(AbstractStrategy):
    """The strategy that goes with the host's solvers."""

    def cell(self, kind, solver) -> AbstractCell:
        return {"ode": SensitivityOnHost, "integral": LeibnizOnHost}.get(kind, ImplicitOnHost)()


def host_solver(kind: str, configured: Any, limits: HostLimits) -> AbstractSolver:
    """The host's solver for this kind of equation; `configured` finds the branch of a root or fixed point."""
    made = {"ode": HostODE, "integral": HostIntegral, "root": HostRoot, "fixed_point": HostFixedPoint}
    return made[kind](configured, limits)


class AbstractHost(AbstractSolver):
    """A solver on the host; its strategy is `OnHost`. The value alone is a linearization along nothing."""

    configured: eqx.AbstractVar[Any]
    limits: eqx.AbstractVar[HostLimits]

    def run(self, equation, args, loop):
        cell = OnHost().cell(self.kind, self)
        value, stats, _ = cell.linearize(Split.of(Call(equation, args, self), ()))
        return value, stats

    def noise(self, like):
        return self.limits.tolerance


class HostODE(AbstractHost):
    """DOP853, or Radau for a stiff problem."""

    configured: Any
    limits: HostLimits
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "ode"


class HostRoot(AbstractHost):
    """Newton's method with LAPACK from the configured solver's root."""

    configured: Any
    limits: HostLimits
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "root"


class HostFixedPoint(AbstractHost):
    """The same for fn(y) - y."""

    configured: Any
    limits: HostLimits
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "fixed_point"


class HostIntegral(AbstractHost):
    """quad_vec."""

    configured: Any
    limits: HostLimits
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "integral"


def _compiled(fn: Callable) -> Callable:
    """`fn` compiled, also where the caller has turned compilation off for the loss around it."""
    jitted = jax.jit(fn)

    def call(*args):
        with jax.disable_jit(False):
            return jitted(*args)

    return call


def _finished(value: PyTree, steps: int = 0) -> Stats:
    del value
    return Stats(jnp.array(True), jnp.array(steps, jnp.int32))


def _flat_theta(split: Split) -> tuple[Array, Callable]:
    return ravel_pytree(split.theta) if split.theta else (jnp.zeros(0), lambda _: [])


# -- ordinary differential equations ----------------------------------------------------------------------------------


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
        return value, _finished(value), (jacobian, split.theta)

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
        self.field = _compiled(self._augmented)
        self.jacobian = _compiled(jax.jacfwd(self._augmented, argnums=1))
        self.initial = _compiled(self._initial)

    def _split(self, arrays: Any) -> Split:
        return eqx.combine(arrays, self.static)

    def _slope(self, split: Split, theta: Array, s: Any, y: Array) -> Array:
        call = split.call(_flat_theta(split)[1](theta))
        equation = call.equation
        unravel = ravel_pytree(equation.y0)[1]
        span = equation.t1 - equation.t0
        return span * ravel_pytree(equation.field(equation.t0 + s * span, unravel(y), call.args))[0]

    def _scales(self, theta: Array) -> Array:
        return jnp.where(theta == 0, 1.0, jnp.abs(theta))

    def _augmented(self, s: Any, state: Array, arrays: Any) -> Array:
        split = self._split(arrays)
        theta = _flat_theta(split)[0]
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
        theta, unravel = _flat_theta(split)

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
        largest = LARGEST_STIFF_SYSTEM if limits.stiff else LARGEST_SYSTEM
        if state.size > largest:
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


# -- roots and fixed points -------------------------------------------------------------------------------------------


class ImplicitOnHost(AbstractCell):
    """The implicit function theorem with LAPACK: no code of Optimistix or Lineax."""

    def linearize(self, split: Split):
        arrays, static = eqx.partition(split, eqx.is_array)
        host = _Implicit(static)
        y0 = split.call().equation.y0
        shapes = jax.eval_shape(lambda: y0)
        value = host_call(host.solve, shapes, arrays)
        return value, _finished(value), (arrays, value, static, host)

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
        self.start = _compiled(start)
        self.residual = _compiled(lambda arrays, y: f(arrays, at(arrays), y))
        self.jacobian = _compiled(lambda arrays, y: jax.jacrev(lambda y: f(arrays, at(arrays), y))(y))
        self.forward = _compiled(lambda arrays, y, t: jax.jvp(lambda th: f(arrays, th, y), (at(arrays),), (t,))[1])
        self.backward = _compiled(lambda arrays, y, w: jax.vjp(lambda th: f(arrays, th, y), at(arrays))[1](w)[0])

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


# -- integrals --------------------------------------------------------------------------------------------------------


class LeibnizOnHost(AbstractCell):
    """quad_vec of the integrand and of its derivative; boundary terms by evaluating the integrand there."""

    def linearize(self, split: Split):
        arrays, static = eqx.partition(split, eqx.is_array)
        call = split.call()
        shapes = jax.eval_shape(call.equation.integrand, call.equation.lower, call.args)
        host = _Leibniz(static)
        value = host_call(host.value, shapes, arrays)
        return value, _finished(value), (arrays, static, host, value)

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

        def ends(arrays, theta):
            equation = eqx.combine(arrays, static).call(theta).equation
            return jnp.stack([equation.lower, equation.upper])

        def at(arrays):
            return eqx.combine(arrays, static).theta

        self.static = static
        self.integrand = _compiled(lambda arrays, x: g(arrays, at(arrays), x))
        self.forward = _compiled(lambda arrays, x, t: jax.jvp(lambda th: g(arrays, th, x), (at(arrays),), (t,))[1])
        self.backward = _compiled(
            lambda arrays, x, c: ravel_pytree(jax.vjp(lambda th: g(arrays, th, x), at(arrays))[1](c)[0])[0]
        )
        self.limits = _compiled(lambda arrays: ends(arrays, at(arrays)))
        self.shift_forward = _compiled(lambda arrays, t: jax.jvp(lambda th: ends(arrays, th), (at(arrays),), (t,))[1])
        self.shift_backward = _compiled(
            lambda arrays, c: ravel_pytree(jax.vjp(lambda th: ends(arrays, th), at(arrays))[1](c)[0])[0]
        )

    def value(self, arrays: Any) -> PyTree:
        total = self._quad(arrays, lambda x: self.integrand(arrays, x))
        return self._unravel(arrays)(jnp.asarray(total))

    def push(self, arrays: Any, tangents: list[Array]) -> PyTree:
        if not tangents:
            return self._unravel(arrays)(jnp.zeros_like(self.integrand(arrays, self.limits(arrays)[0])))
        total = self._quad(arrays, lambda x: self.forward(arrays, x, tangents))
        for sign, end, moved in zip((-1, 1), self.limits(arrays), self.shift_forward(arrays, tangents), strict=True):
            if np.isfinite(end) and moved != 0:
                total = total + sign * float(moved) * np.asarray(self.integrand(arrays, end))
        return self._unravel(arrays)(jnp.asarray(total))

    def pull(self, arrays: Any, cotangent: PyTree) -> list[Array]:
        theta = eqx.combine(arrays, self.static).theta
        if not theta:
            return []
        c = np.asarray(ravel_pytree(cotangent)[0])
        size = np.linalg.norm(c) or 1.0
        c = c / size
        total = self._quad(arrays, lambda x: self.backward(arrays, x, c))
        for sign, index, end in zip((-1, 1), (0, 1), self.limits(arrays), strict=True):
            one = np.asarray(self.shift_backward(arrays, np.eye(2)[index]))
            if np.isfinite(end) and np.any(one != 0):
                total = total + sign * one * float(np.asarray(self.integrand(arrays, end)) @ c)
        self._note(arrays, lambda x: np.abs(self.backward(arrays, x, c)), total)
        return ravel_pytree(theta)[1](jnp.asarray(total * size))

    def _note(self, arrays: Any, magnitude: Callable, total: np.ndarray) -> None:
        """The condition of a sum whose parts cancel: the integral of |f| over that of f."""
        notes = eqx.combine(arrays, self.static).call().solver.limits.notes
        size = np.linalg.norm(total)
        if size > 0:
            spread = np.linalg.norm(self._quad(arrays, magnitude, ROUGHLY))
            notes.condition = max(notes.condition, float(spread / size))

    def _unravel(self, arrays: Any) -> Callable:
        call = eqx.combine(arrays, self.static).call()
        example = jax.eval_shape(call.equation.integrand, call.equation.lower, call.args)
        return ravel_pytree(jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), example))[1]

    def _quad(self, arrays: Any, fn: Callable, tolerance: float | None = None) -> np.ndarray:
        limits = eqx.combine(arrays, self.static).call().solver.limits
        lower, upper = (float(x) for x in self.limits(arrays))

        def counted(x):
            limits.check()
            return np.asarray(fn(x))

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a round-off warning: the comparison of two computations says how much
            total, _ = scipy.integrate.quad_vec(
                counted,
                lower,
                upper,
                epsabs=1e-300,
                epsrel=limits.tolerance if tolerance is None else tolerance,
                norm="max",
                limit=INTERVALS,
            )
        return total
