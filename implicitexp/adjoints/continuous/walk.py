"""The continuous adjoint, solved backwards over the steps of a forward solve.

lambda' = -(df/dy)^T lambda with a jump at every output, y(s) from the forward steps. The backward solve has a method
and an error test of its own, and ends a step wherever a forward step began, since y(s) is smooth in between only.
What is done about the parameters, dL/dtheta = integral (df/dtheta)^T lambda ds, is a value: `Parameters`.
"""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Bool, Float, Int, PyTree

from implicitexp.adjoints.continuous.extension import interpolation
from implicitexp.adjoints.continuous.trajectory import Chunk, Flow, Trajectory, as_terms
from implicitexp.adjoints.continuous.trees import Packing, added, chosen, few, largest_of
from implicitexp.solvers.base import all_finite

SPARE_STEPS = 4  # the backward solve may take this many times the forward's largest number of steps
CRUMB = 0.1  # of a step: a rest shorter than this is taken together with the step before it

State = tuple[PyTree, ...]  # lambda, and what is solved beside it


class Outputs(eqx.Module):
    """Times at which the loss sees y, in the order of s, and its cotangents there; from `valid` on it is padding."""

    times: Float[Array, " outputs"]
    cotangents: PyTree  # leading axis: outputs
    valid: Int[Array, ""]


class Backward(eqx.Module):
    """lambda(s0), the integral over theta, and what is known of the backward solve."""

    adjoint: PyTree
    theta: list[Array]
    converged: Array
    steps: Array


class Integral(NamedTuple):
    """Over a step; and how far it may be off, where that takes part in the step control."""

    value: list[Array]
    error: list[Array] | None = None


class AbstractParameters(eqx.Module):
    """How the integral over theta is taken."""

    in_error_test: eqx.AbstractVar[bool]  # whether the integral over a step takes part in the step control

    @abc.abstractmethod
    def beside(self, flow: Flow) -> State:
        """Something like what is solved beside lambda."""

    @abc.abstractmethod
    def rate(self, flow: Flow, part: Callable, s: Any, y: PyTree, state: State) -> State:
        """What one part of the flow adds to the derivative of the state, in the time -s."""

    @abc.abstractmethod
    def over_step(self, flow: Flow, solver: Any, y: Callable, state: Callable, s0: Any, s1: Any) -> Integral:
        """The integral from s0 to s1, given y(s) and state(s); empty where it is a state."""


class _Walker(eqx.Module):
    """Where the backward solve stands."""

    i: Int[Array, ""]  # times[i] < s
    s: Float[Array, ""]
    dt: Float[Array, ""]
    pending: Int[Array, ""]  # outputs whose cotangent has not been added yet
    state: PyTree  # packed
    theta: list[Array]
    controller: PyTree
    stepper: PyTree
    jumped: Bool[Array, ""]
    steps: Int[Array, ""]
    failed: Bool[Array, ""]


class Walk(eqx.Module):
    """One backward solve: `solver`, `controller` are Diffrax's, ready for the state's structure."""

    trajectory: Trajectory
    outputs: Outputs
    solver: dfx.AbstractSolver
    controller: dfx.AbstractStepSizeController
    parameters: AbstractParameters
    max_steps: int | None = eqx.field(static=True, default=None)

    def __call__(self) -> Backward:
        walker, whole = self._start(), self.trajectory.whole()
        walker = self._by_chunks(walker) if whole is None else self._over(whole, walker)
        at_start = jnp.arange(self.outputs.times.size) < walker.pending
        state = self._packing.unpack(walker.state)
        adjoint = jax.tree.map(
            lambda w, c: w + jnp.tensordot(at_start.astype(c.dtype), c, 1), state[0], self.outputs.cotangents
        )
        theta = state[1] if len(state) > 1 else walker.theta
        return Backward(adjoint, theta, ~walker.failed & all_finite((adjoint, theta)), walker.steps)

    def _by_chunks(self, walker: _Walker) -> _Walker:
        prepared, stride = self.trajectory.prepared()

        def one_chunk(carry):
            index, walker = carry
            return index - 1, self._over(self.trajectory.chunk(prepared, index, stride), walker)

        start = (walker.i // stride, walker)
        return jax.lax.while_loop(lambda c: (c[0] >= 0) & ~c[1].failed, one_chunk, start)[1]

    def _over(self, chunk: Chunk, walker: _Walker) -> _Walker:
        """Back over the forward steps of the chunk. An interpolation that takes evaluations of the field is made once in each
        of them, else with every backward step: in lanes of a vmap two nested loops wait for the slowest lane twice."""
        times, inside = self.trajectory.mesh.times, self.trajectory.inside

        def down_to(s: Array, advance: Callable, walker: _Walker) -> _Walker:
            return jax.lax.while_loop(lambda w: (w.s > s) & ~w.failed, advance, walker)

        def step(w):
            y = inside(chunk, w.i).evaluate
            return down_to(times[w.i], lambda w: self._advance(w, y), w)

        def part(w):
            return self._advance(w, inside(chunk, w.i).evaluate)

        return down_to(times[chunk.start], step if self.trajectory.is_swept else part, walker)

    @property
    def _flow(self) -> Flow:
        return self.trajectory.flow

    @property
    def _controlled(self) -> bool:
        return isinstance(self.controller, dfx.AbstractAdaptiveStepSizeController)

    @property
    def _like(self) -> State:
        """Something like lambda and what is solved beside it."""
        return (self.trajectory.y0, *self.parameters.beside(self._flow))

    @property
    def _packing(self) -> Packing:
        """Not where the controller judges by a norm that is not known, or by more than the state."""
        known = not self._controlled or isinstance(self.controller, dfx.PIDController)
        return Packing.of(self._like, known and (len(self._like) > 1 or not self.parameters.in_error_test))

    @property
    def _control(self) -> Any:
        """The controller of the packed state."""
        if not isinstance(self.controller, dfx.PIDController):
            return self.controller
        return eqx.tree_at(lambda c: c.norm, self.controller, self._packing.norm(self.controller.norm))

    def _terms(self, y: Callable) -> Any:
        """Of the backward solve in the time -s, y(s) being given."""

        def field(part):
            return lambda tau, state: self.parameters.rate(self._flow, part, -tau, y(-tau), state)

        return as_terms([self._packing.field(field(part)) for part in self._flow.parts])

    def _like_terms(self) -> Any:
        """Of the same structure, to prepare solver and controller."""
        return as_terms([lambda tau, state: state for _ in self._flow.parts])

    def _start(self) -> _Walker:
        """At the last output, with no cotangent added yet."""
        mesh, outputs = self.trajectory.mesh, self.outputs
        state = self._packing.pack(jax.tree.map(jnp.zeros_like, self._like))
        s = outputs.times[jnp.maximum(outputs.valid - 1, 0)]
        i = jnp.maximum(mesh.interval(s), 0)
        step = mesh.ends[i] - mesh.times[i]
        dt = jnp.where(jnp.isfinite(step) & (step > 0), step, 1) if self._controlled else jnp.full_like(s, jnp.inf)
        terms = self._like_terms()
        return _Walker(
            i=i,
            s=s,
            dt=dt,
            pending=outputs.valid,
            state=state,
            theta=jax.tree.map(jnp.zeros_like, self._flow.theta) if len(self._like) == 1 else [],
            controller=self._first_controller_state(terms, s, dt, state),
            stepper=jax.tree.map(jnp.asarray, self.solver.init(terms, -s, -s + dt, state, None)),
            jumped=jnp.array(True),
            steps=jnp.array(0, jnp.int32),
            failed=jnp.array(False),
        )

    def _first_controller_state(self, terms: Any, s: Array, dt: Array, state: PyTree) -> PyTree:
        if not self._controlled:
            return ()
        order = self.solver.error_order(terms)
        _, controller = self._control.init(terms, -s, -s + dt, state, dt, None, self.solver.func, order)
        return jax.tree.map(jnp.asarray, controller)

    def _advance(self, w: _Walker, y: Callable) -> _Walker:
        """Add the cotangent of an output that has been reached, and try a step to the next stop: the start of a forward
        step, or an output. `y`: as a function of s."""
        mesh, times, packing = self.trajectory.mesh, self.outputs.times, self._packing
        s = jnp.minimum(w.s, mesh.ends[w.i])  # over the gap that a jump of the field leaves
        here = (w.pending > 0) & (times[w.pending - 1] >= s)
        jump = jax.tree.map(lambda c: jnp.where(here, c[w.pending - 1], 0), self.outputs.cotangents)
        pending = w.pending - here
        stop = jnp.where(pending > 0, jnp.maximum(times[pending - 1], mesh.times[w.i]), mesh.times[w.i])
        adjoint, *beside = packing.unpack(w.state)
        w = eqx.tree_at(
            lambda w: (w.s, w.state, w.pending, w.jumped),
            w,
            (s, packing.pack((added(adjoint, jump), *beside)), pending, w.jumped | here | (s != w.s)),
        )
        return self._where(
            stop < s, lambda: self._attempt(w, y, stop), w
        )  # not where another output is at the same time

    def _where(self, condition: Array, new: Callable[[], PyTree], old: PyTree) -> PyTree:
        """`new`, if the condition holds. Few numbers are computed in any case: a branch costs more than they do."""
        if few((self._flow.theta, self.trajectory.y0)):
            return chosen(condition, new(), old)
        return jax.lax.cond(condition, new, lambda: old)

    def _attempt(self, w: _Walker, y: Callable, stop: Array) -> _Walker:
        terms = self._terms(y)
        target = jnp.maximum(w.s - w.dt, stop)
        target = jnp.where(target - stop < CRUMB * w.dt, stop, target)
        new, error, info, stepper, result = self.solver.step(terms, -w.s, -target, w.state, None, w.stepper, w.jumped)

        def integral():
            path = interpolation(self.solver, -w.s, -target, info)

            def state(s):
                return self._packing.unpack(path.evaluate(-s))

            return self.parameters.over_step(self._flow, self.solver, y, state, target, w.s)

        if self.parameters.in_error_test and self._controlled:
            over = integral()
            theta, errors = added(w.theta, over.value), (error, over.error)
            keep, dt, controller = self._judged(w, terms, target, ((w.state, w.theta), (new, theta)), errors)
            keep = keep & (result == dfx.RESULTS.successful)
            theta = chosen(keep, theta, w.theta)
        else:
            keep, dt, controller = self._judged(w, terms, target, (w.state, new), error)
            keep = keep & (result == dfx.RESULTS.successful)
            theta = w.theta
            if theta:
                theta = self._where(keep, lambda: added(w.theta, integral().value), w.theta)
        moved = (target, new, stepper, jnp.array(False))
        s, state, stepper, jumped = chosen(keep, moved, (w.s, w.state, w.stepper, w.jumped))
        i = w.i - (s <= self.trajectory.mesh.times[w.i])
        steps = w.steps + 1
        failed = (steps >= self._most_steps) | ~(s - dt < s) | ~all_finite(state)
        return _Walker(i, s, dt, w.pending, state, theta, controller, stepper, jumped, steps, failed)

    def _judged(
        self, w: _Walker, terms: Any, target: Array, ends: tuple[PyTree, PyTree], error: Any
    ) -> tuple[Array, Array, PyTree]:
        """`ends`: what is controlled, before and after the step. -> whether it is accepted, the next one's length, the
        controller's state."""
        if not self._controlled:
            return jnp.array(True), w.dt, w.controller
        error = jax.tree.map(lambda e: jnp.where(jnp.isnan(e), jnp.inf, e), error)
        order: Any = self.solver.error_order(terms)
        keep, t0, t1, _, controller, _ = self._control.adapt_step_size(
            -w.s, -target, *ends, None, error, order, w.controller
        )
        # A step cut short by a stop says little about the next: it does not shrink the proposal.
        dt = jnp.where(keep & (w.s - target < w.dt), jnp.maximum(t1 - t0, w.dt), t1 - t0)
        return jnp.asarray(keep), dt, controller

    @property
    def _most_steps(self) -> int:
        if self.max_steps is not None:
            return self.max_steps
        return SPARE_STEPS * self.trajectory.mesh.times.size + self.outputs.times.size


def for_state(controller: Any) -> Any:
    """A controller of y for the state of a walk: the largest of its norm on lambda and the root mean square of what is
    solved beside it. A walk ends its steps at those of the forward solve, so that what clips them is taken off."""
    while isinstance(controller, dfx.ClipStepSizeController):
        controller = controller.controller
    if isinstance(controller, dfx.PIDController):
        return eqx.tree_at(lambda c: c.norm, controller, largest_of(controller.norm, optx.rms_norm))
    return controller
