"""The Gauss adjoint of an ODE: the forward mesh walked backwards, with the state from its own steps.

lambda' = -(dF/dz)^T lambda is solved backwards with the forward solver's method and its own error test; dL/dtheta, the
integral of (dF/dtheta)^T lambda, is taken by Gauss-Legendre nodes inside each accepted step (A. C. Norcliffe and M. P.
Deisenroth 2023, "Faster Training of Neural ODEs Using Gauss-Legendre Quadrature"), so it costs the solver no unknowns.

Of the forward solve only the times of its steps are kept. Going back, the steps are done again: once to set a state
every `stride` steps, and chunk by chunk for the interpolation inside them. Diffrax's dense output would be `max_steps`
times all stages: 2 GB for a batch of 128 digits, and seconds to fill it.
"""

import math
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from implicitexp.solvers.base import all_finite
from implicitexp.solvers.ode import succeeded

STAGES = 8  # states that a step's interpolation keeps, about: balances the two buffers
SPARE_STEPS = 4  # the backward solve may take this many times the forward's largest number of steps

Outputs = tuple[Array, PyTree, PyTree]  # times, values, cotangents


class Mesh(eqx.Module):
    """The accepted steps of a forward solve: `times[: intervals + 1]`, the rest is padding."""

    times: Float[Array, " max_steps_and_one"]
    intervals: Int[Array, ""]


def solve_with_mesh(call: Any) -> tuple[PyTree, Mesh, Array, Array]:
    """-> value, mesh, converged, steps."""
    equation = call.equation
    saved = dfx.SubSaveAt(t1=True) if equation.ts is None else dfx.SubSaveAt(ts=equation.ts)
    mesh = dfx.SubSaveAt(t0=True, steps=True, fn=lambda t, y, args: t)
    saveat = dfx.SaveAt(subs=(saved, mesh))
    sol = call.solver.integrate(equation.field, equation.y0, equation.t0, equation.t1, call.args, saveat=saveat)
    ys, times = sol.ys[0], sol.ts[1]
    value = jax.tree.map(lambda y: y[0], ys) if equation.ts is None else ys
    intervals = jnp.asarray(sol.stats["num_accepted_steps"], jnp.int32)
    return value, Mesh(times, intervals), succeeded(sol), sol.stats["num_steps"]


class _Chunk(eqx.Module):
    """The interpolation inside the forward steps start, ..., start + stride - 1."""

    start: Int[Array, ""]
    infos: PyTree


class _Walker(eqx.Module):
    """Where the backward solve stands, at time -s."""

    s: Float[Array, ""]
    dt: Float[Array, ""]
    pending: Int[Array, ""]  # outputs whose cotangent has not been added yet
    adjoint: PyTree
    theta: list[Array]
    controller: PyTree
    stepper: PyTree
    jumped: Bool[Array, ""]
    steps: Int[Array, ""]
    failed: Bool[Array, ""]


class GaussWalk(eqx.Module):
    """The backward solve of one call. Time runs forward in s = direction t, so that one code serves both directions."""

    split: Any
    mesh: Mesh
    outputs: Outputs
    tolerances: Any

    def __call__(self) -> tuple[PyTree, list[Array], Array, Array]:
        """-> lambda(t0), the integral over theta, converged, steps."""
        slots, stride = self._checkpoints()
        walker = self._start()

        def one_chunk(carry):
            index, walker = carry
            chunk = self._replay(slots, index, stride)
            end = self._s(chunk.start)
            walker = jax.lax.while_loop(lambda w: (w.s > end) & ~w.failed, lambda w: self._advance(w, chunk), walker)
            return index - 1, walker

        index = jnp.maximum(self._interval(walker.s), 0) // stride
        _, walker = jax.lax.while_loop(lambda c: (c[0] >= 0) & ~c[1].failed, one_chunk, (index, walker))
        at_start = jnp.arange(self.outputs[0].size) < walker.pending
        adjoint = jax.tree.map(
            lambda w, c: w + jnp.tensordot(at_start.astype(c.dtype), c, 1), walker.adjoint, self._jumps
        )
        converged = ~walker.failed & all_finite((adjoint, walker.theta))
        return adjoint, walker.theta, converged, walker.steps

    # -- forward: states and interpolation from the mesh --------------------------------------------------------------

    @property
    def _call(self) -> Any:
        return self.split.call()

    @property
    def _jumps(self) -> PyTree:
        return self.outputs[2]

    @property
    def _direction(self) -> Array:
        equation = self._call.equation
        return jnp.where(equation.t1 < equation.t0, -1, 1).astype(self.mesh.times.dtype)

    def _s(self, i: Array) -> Array:
        return self._direction * self.mesh.times[i]

    def _interval(self, s: Array) -> Array:
        """i with s_i < s <= s_{i+1}."""
        inside = jnp.arange(self.mesh.times.size) <= self.mesh.intervals
        times = jnp.where(inside, self._direction * self.mesh.times, jnp.inf)
        return (jnp.searchsorted(times, s) - 1).astype(jnp.int32)

    def _slope(self, theta: list[Array], s: Any, z: PyTree) -> PyTree:
        call = self.split.call(theta)
        slope = call.equation.field(self._direction * s, z, call.args)
        return jax.tree.map(lambda f: self._direction.astype(f.dtype) * f, slope)

    @property
    def _forward(self) -> dfx.ODETerm:
        return dfx.ODETerm(lambda s, z, _: self._slope(self.split.theta, s, z))

    def _method(self, like: PyTree, **tolerances: Any) -> dfx.AbstractSolver:
        return self._call.solver.stepper(like, **tolerances)

    def _sizes(self) -> tuple[int, int]:
        """How many slots, and the longest chunk: together they hold every step of the longest solve."""
        steps = self.mesh.times.size - 1
        chunk = max(1, round(math.sqrt(steps / STAGES)))
        return math.ceil(steps / chunk), chunk

    def _step_again(
        self, method: dfx.AbstractSolver, i: Array, y: PyTree, state: PyTree
    ) -> tuple[PyTree, PyTree, PyTree]:
        y, _, info, state, _ = method.step(self._forward, self._s(i), self._s(i + 1), y, None, state, jnp.array(False))
        return y, info, state

    def _checkpoints(self) -> tuple[PyTree, Array]:
        """The state before every `stride`-th step."""
        count, _ = self._sizes()
        y0, n = self._call.equation.y0, self.mesh.intervals
        method = self._method(y0)
        stride = jnp.maximum((n + count - 1) // count, 1)
        slots = jax.tree.map(lambda y: jnp.zeros((count, *y.shape), y.dtype), y0)

        def step(i, carry):
            y, state, slots = carry
            where = jnp.where(i % stride == 0, i // stride, count)
            slots = jax.tree.map(lambda s, y: s.at[where].set(y, mode="drop"), slots, y)
            y, _, state = self._step_again(method, i, y, state)
            return y, state, slots

        zero = jnp.zeros((), n.dtype)
        state = method.init(self._forward, self._s(zero), self._s(zero + 1), y0, None)
        return jax.lax.fori_loop(zero, n, step, (y0, state, slots))[2], stride

    def _replay(self, slots: PyTree, index: Array, stride: Array) -> _Chunk:
        """The steps from slot `index` to the next one, with what interpolates inside them."""
        start = index * stride
        y = jax.tree.map(lambda s: s[index], slots)
        method = self._method(y)
        state = method.init(self._forward, self._s(start), self._s(start + 1), y, None)
        shapes = jax.eval_shape(lambda: self._step_again(method, start, y, state)[1])
        infos = jax.tree.map(lambda x: jnp.zeros((self._sizes()[1], *x.shape), x.dtype), shapes)

        def step(k, carry):
            y, state, infos = carry
            y, info, state = self._step_again(method, start + k, y, state)
            return y, state, jax.tree.map(lambda all_, x: all_.at[k].set(x), infos, info)

        zero = jnp.zeros((), start.dtype)
        length = jnp.minimum(stride, self.mesh.intervals - start)
        return _Chunk(start, jax.lax.fori_loop(zero, length, step, (y, state, infos))[2])

    # -- backward: one attempted step ---------------------------------------------------------------------------------

    def _start(self) -> _Walker:
        """At the last output, with no cotangent added yet."""
        times, _, _ = self.outputs
        zero = jax.tree.map(jnp.zeros_like, self._call.equation.y0)
        s = self._direction * times[-1]
        method, controller = self._backward_solver(zero)
        term = dfx.ODETerm(lambda tau, w, _: w)
        i = jnp.maximum(self._interval(s), 0)
        dt = self._s(i + 1) - self._s(i)
        _, state = controller.init(term, -s, -s + dt, zero, dt, None, method.func, method.error_order(term))
        return _Walker(
            s=s,
            dt=dt,
            pending=jnp.array(times.size, jnp.int32),
            adjoint=zero,
            theta=jax.tree.map(jnp.zeros_like, self.split.theta),
            controller=jax.tree.map(jnp.asarray, state),
            stepper=method.init(term, -s, -s + dt, zero, None),
            jumped=jnp.array(True),
            steps=jnp.array(0, jnp.int32),
            failed=jnp.array(False),
        )

    def _backward_solver(self, like: PyTree) -> tuple[dfx.AbstractSolver, dfx.AbstractStepSizeController]:
        given = {"rtol": self.tolerances.rtol, "atol": self.tolerances.atol}
        return self._method(like, **given), self._call.solver.controller(like, **given)

    def _advance(self, w: _Walker, chunk: _Chunk) -> _Walker:
        """Add the cotangent of an output that has been reached, and try a step to the next stop: a step of the forward
        mesh, or an output."""
        times = self._direction * self.outputs[0]
        here = (w.pending > 0) & (times[w.pending - 1] >= w.s)
        jump = jax.tree.map(lambda c: jnp.where(here, c[w.pending - 1], 0), self._jumps)
        pending = w.pending - here
        i = self._interval(w.s)
        stop = jnp.where(pending > 0, jnp.maximum(times[pending - 1], self._s(i)), self._s(i))
        w = eqx.tree_at(
            lambda w: (w.adjoint, w.pending, w.jumped),
            w,
            (jax.tree.map(jnp.add, w.adjoint, jump), pending, w.jumped | here),
        )
        return jax.lax.cond(stop < w.s, lambda w: self._attempt(w, chunk, i, stop), lambda w: w, w)

    def _attempt(self, w: _Walker, chunk: _Chunk, i: Array, stop: Array) -> _Walker:
        info = jax.tree.map(lambda x: x[i - chunk.start], chunk.infos)
        z = self._method(w.adjoint).interpolation_cls(t0=self._s(i), t1=self._s(i + 1), **info)
        method, controller = self._backward_solver(w.adjoint)
        term = dfx.ODETerm(lambda tau, a, _: self._pull_z(-tau, z.evaluate(-tau), a))
        target = jnp.maximum(w.s - w.dt, stop)
        target = jnp.where(target - stop < 0.1 * w.dt, stop, target)  # no crumb of a step before the stop
        new, error, info, stepper, result = method.step(term, -w.s, -target, w.adjoint, None, w.stepper, w.jumped)
        order = method.error_order(term)
        if order is None or isinstance(
            controller, dfx.ConstantStepSize
        ):  # its own count of steps knows nothing of the stops
            keep, dt, state = jnp.array(True), w.dt, w.controller
        else:
            keep, t0, t1, _, state, _ = controller.adapt_step_size(
                -w.s, -target, w.adjoint, new, None, error, order, w.controller
            )
            # A step cut short by a stop says little about the next: it does not shrink the proposal.
            dt = jnp.where(keep & (w.s - target < w.dt), jnp.maximum(t1 - t0, w.dt), t1 - t0)
        keep = keep & (result == dfx.RESULTS.successful)
        path = method.interpolation_cls(t0=-w.s, t1=-target, **info)
        theta = jax.lax.cond(keep, lambda: self._add_integral(w, target, z, path), lambda: w.theta)
        moved = (target, new, theta, stepper, jnp.array(False))
        stayed = (w.s, w.adjoint, w.theta, w.stepper, w.jumped)
        s, adjoint, theta, stepper, jumped = jax.tree.map(lambda a, b: jnp.where(keep, a, b), moved, stayed)
        steps = w.steps + 1
        failed = (steps >= self._max_steps) | ~(s - dt < s) | ~all_finite(adjoint)
        return _Walker(s, dt, w.pending, adjoint, theta, state, stepper, jumped, steps, failed)

    @property
    def _max_steps(self) -> int:
        given = self.tolerances.max_steps
        return SPARE_STEPS * self.mesh.times.size + self.outputs[0].size if given is None else given

    def _pull_z(self, s: Any, z: PyTree, adjoint: PyTree) -> PyTree:
        """(dF/dz)^T lambda: the right-hand side in the time that runs backwards."""
        return jax.vjp(lambda z: self._slope(self.split.theta, s, z), z)[1](adjoint)[0]

    def _add_integral(self, w: _Walker, target: Array, z: Any, path: Any) -> list[Array]:
        """The integral of (dF/dtheta)^T lambda over a step, by Gauss-Legendre nodes."""
        stepper: Any = self._method(w.adjoint)
        nodes, weights = gauss_legendre(stepper.order(self._forward), w.s.dtype)
        width = w.s - target

        def integrand(s):
            return jax.vjp(lambda theta: self._slope(theta, s, z.evaluate(s)), self.split.theta)[1](path.evaluate(-s))[
                0
            ]

        parts = jax.vmap(integrand)(target + nodes * width)
        return jax.tree.map(lambda x, p: x + jnp.tensordot((weights * width).astype(p.dtype), p, 1), w.theta, parts)


def gauss_legendre(order: int, dtype: Any) -> tuple[Array, Array]:
    """Nodes and weights on [0, 1], exact to the order of the solver and two more."""
    x, w = np.polynomial.legendre.leggauss(order // 2 + 2)
    return jnp.asarray((x + 1) / 2, dtype), jnp.asarray(w / 2, dtype)
