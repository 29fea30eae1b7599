"""`Backsolve`: the continuous adjoint that keeps nothing but k states, for `diffrax.diffeqsolve(..., adjoint=...)`."""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, PyTree

from implicitexp.adjoints.continuous.backsolve import Nodes, backsolve
from implicitexp.adjoints.continuous.diffrax_forward import Recording, Setup, Solved
from implicitexp.adjoints.continuous.diffrax_outputs import Saved, in_order, like_rows
from implicitexp.adjoints.continuous.diffrax_problem import Problem
from implicitexp.adjoints.continuous.diffrax_rule import AbstractContinuous
from implicitexp.adjoints.continuous.diffrax_walk import backward_controller
from implicitexp.adjoints.continuous.forward_sensitivity import ForwardSensitivity
from implicitexp.adjoints.continuous.trajectory import as_terms
from implicitexp.adjoints.continuous.trees import Packing, largest_of
from implicitexp.adjoints.continuous.walk import Backward, Outputs
from implicitexp.errors import Unsupported


class Backsolve(AbstractContinuous):
    """The continuous adjoint with the state solved backwards too, restored at `checkpoints` steps and at every output.

    y, lambda and mu go backwards as one system, each of the three held to the tolerance by its own root mean square. The
    memory is that of k states, whatever the number of steps. Where the ODE forwards contracts, backwards it is unstable:
    the gradient is wrong without a word, unless the drift is looked at.

    `checkpoints`: how many states of the steps are kept, at most, and at least half as many (every s-th, s a power of two
    that is not known before; an even number counts as one more); 0 is R. T. Q. Chen et al. 2018, "Neural Ordinary Differential
    Equations". `rtol`, `atol`, `solver`, `stepsize_controller`, `max_steps`: of the backward solve (None: the forward solve's;
    `max_steps` counts between two kept states).

    `drift`: a zero, `jnp.zeros(())`. Its cotangent is the largest relative distance |y - y_kept| / |y_kept| with which the
    state came back to one that is kept, the start included (summed over lanes and calls that share the zero):

        def loss(args, drift):
            return diffeqsolve(..., args, adjoint=Backsolve(drift=drift)).ys[-1].sum()

        gradient, drift = jax.grad(loss, argnums=(0, 1))(args, jnp.zeros(()))

    A drift far above the tolerance: take more checkpoints, or `Gauss()`.

    **Raises** `Unsupported` as `AbstractContinuous` says, and for `diffrax.StepTo` without tolerances of its own.
    """

    checkpoints: int = eqx.field(static=True, default=0)
    rtol: Any = None
    atol: Any = None
    solver: dfx.AbstractSolver | None = None
    stepsize_controller: dfx.AbstractStepSizeController | None = None
    max_steps: int | None = eqx.field(static=True, default=None)
    drift: Array | None = None

    def __check_init__(self):
        if self.checkpoints < 0:
            raise ValueError(f"Backsolve(checkpoints={self.checkpoints}): a number of states, at least 0.")

    def tap(self) -> list[Array]:
        return [] if self.drift is None else [jnp.asarray(self.drift)]

    def recording(self, problem: Problem, setup: Setup) -> Recording:
        return Recording([], [], checkpoints=self.checkpoints)

    def tangents(self, solved: Solved, moving: list[Array]) -> tuple[list[PyTree], list[Array]]:
        return ForwardSensitivity().tangents(solved, moving)

    def backward(self, solved: Solved, ahead: Outputs, saved: Saved) -> tuple[Backward, list[Array]]:
        problem = solved.chosen.problem()
        nodes = self._nodes(solved, ahead, problem)
        flow = solved.chosen.flow()
        result, drift = backsolve(flow, problem.t0, problem.y0, nodes, lambda *xs: self._integrate(solved, *xs))
        return result, [drift.astype(x.dtype) for x in self.tap()]

    def _nodes(self, solved: Solved, ahead: Outputs, problem: Problem) -> Nodes:
        """Outputs and checkpoints in the order of time; the padding stands at the last one, and adds nothing."""
        places = solved.places
        order, _, _ = in_order(places)
        states = jax.tree.map(lambda _, *ys: jnp.concatenate(ys)[order], problem.y0, *(r.states for r in places))
        i = jnp.maximum(ahead.valid - 1, 0)
        last, at_last = ahead.times[i], jax.tree.map(lambda y: y[i], states)

        def up_to_last(times, states):
            """What is later has nothing to come back to: it stands at the last output."""
            late = ~(times <= last)
            held = jax.tree.map(lambda ys, y: jnp.where(like_rows(late, ys), y, ys), states, at_last)
            return jnp.where(late, last, times), held

        times, states = up_to_last(ahead.times, states)
        cotangents = ahead.cotangents
        if solved.recorded:
            (kept,) = solved.recorded
            kept_times, kept_states = up_to_last(kept.ts, kept.ys)
            times = jnp.concatenate([times, kept_times])
            states = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), states, kept_states)
            cotangents = jax.tree.map(lambda c, y: jnp.concatenate([c, jnp.zeros_like(y)]), cotangents, kept_states)
        together = jnp.argsort(times, stable=True)
        return Nodes(times[together], *jax.tree.map(lambda x: x[together], (states, cotangents)))

    def _integrate(self, solved: Solved, fields: list, state: PyTree, upper: Array, lower: Array) -> Any:
        solve = solved.setup.solve
        controller = backward_controller(self, solve.stepsize_controller)
        if isinstance(controller, dfx.StepTo):
            raise Unsupported(
                "Backsolve cannot step back to given places, which need not be those of its outputs and checkpoints; give it "
                "rtol and atol, or a stepsize_controller, or use Gauss()."
            )
        packing = Packing.of(state)
        sol = dfx.diffeqsolve(
            as_terms([packing.field(field) for field in fields]),
            solve.solver if self.solver is None else self.solver,
            upper,
            lower,
            None if solve.dt0 is None else -solve.dt0,
            packing.pack(state),
            saveat=dfx.SaveAt(t1=True),
            stepsize_controller=_for_three(controller, packing),
            adjoint=dfx.ForwardMode(),
            max_steps=solve.max_steps if self.max_steps is None else self.max_steps,
            throw=False,
        )
        end = packing.unpack(jax.tree.map(lambda y: y[0], sol.ys))
        return end, sol.result == dfx.RESULTS.successful, sol.stats["num_steps"]


def _for_three(controller: Any, packing: Packing) -> Any:
    """The controller of y for (y, lambda, mu)."""
    if isinstance(controller, dfx.ClipStepSizeController):
        return eqx.tree_at(lambda c: c.controller, controller, _for_three(controller.controller, packing))
    if isinstance(controller, dfx.PIDController):
        norm = controller.norm

        def largest(state):
            y, adjoint, theta = state
            return jnp.maximum(norm(y), largest_of(norm, optx.rms_norm)((adjoint, theta)))

        return eqx.tree_at(lambda c: c.norm, controller, packing.norm(largest))
    return controller
