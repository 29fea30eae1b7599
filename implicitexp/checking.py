"""The gradient of an experiment under examination: its value, the ground truth, its own program, its cost.

What is compiled for one check serves all later ones.
"""

import contextlib
import dataclasses
import math
import time
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from implicitexp.accuracy import GradientCheck, judge, step_remark
from implicitexp.cost import Cost, measure_cost, memory_of, timed
from implicitexp.device import local, uncached
from implicitexp.experiment import Evaluation, Experiment, batch_at, evaluate
from implicitexp.reference import Referee, Reference
from implicitexp.truth.witnesses import Directional, is_directional, program_gradient, strategy_gradient

SMALLEST_LOG = 1e-17  # an error of zero has no logarithm


@dataclasses.dataclass(frozen=True)
class Checked:
    """One check: the loss there, the verdict on the gradient, and the truth that it was held against."""

    step: int
    loss: float
    check: GradientCheck
    reference: Reference

    def metrics(self) -> dict[str, Any]:
        """In the vocabulary of the record; the logarithm besides, since dashboards print small numbers as 0.00."""
        check = self.check
        error = check.relative_error
        logarithm = None if error is None else math.log10(max(error, check.uncertainty or 0.0, SMALLEST_LOG))
        return {
            "loss": self.loss,
            "grad/norm": check.norm,
            "grad/relative_error": error,
            "grad/log10_relative_error": logarithm,
            "grad/absolute_error": check.absolute_error,
            "grad/worst_component_error": check.worst["relative_error"],
            "grad/cosine": check.cosine,
            "grad/program_error": check.program_error,
            "reference/uncertainty": check.uncertainty,
        }


class Checker:
    """Checks the gradient of one experiment. `referee` may be shared by experiments of the same problem; `fresh`: do not
    read the gradient's program from the cache, so that its compilation can be measured."""

    def __init__(self, experiment: Experiment, key: jax.Array, referee: Referee, fresh: bool = False):
        self.experiment, self.key, self.referee, self.fresh = experiment, key, referee, fresh
        self.alone = dataclasses.replace(experiment, mesh=None)  # what judges is not shared among devices
        self._batch = eqx.filter_jit(batch_at)
        self.memory: PyTree = experiment.problem.memory()  # what is remembered at the update that is examined
        self._compiled: Any = None
        self.compile_seconds = 0.0

    def batch(self, step: int) -> PyTree:
        """The minibatch of that update."""
        return self._batch(self.alone, self.key, jnp.asarray(step, jnp.int32), local(self.memory, self.experiment.mesh))

    def evaluation(self, params: PyTree, step: int) -> Evaluation:
        """Loss and gradient by the strategy, and the statistics of the solves: what the update of that step sees."""
        batch = self._batch(self.experiment, self.key, jnp.asarray(step, jnp.int32), self.memory)
        if self._compiled is None:
            if self.fresh:
                jax.clear_caches()  # traces of the solver that another strategy left: a process of its own has none
            began = time.perf_counter()
            with uncached() if self.fresh else contextlib.nullcontext():
                self._compiled = evaluate.lower(self.experiment, params, batch).compile()
            self.compile_seconds = time.perf_counter() - began
        return self._compiled(self.experiment, params, batch)

    def value(self, params: PyTree, step: int) -> tuple[float, PyTree | Directional]:
        """-> loss, gradient; its derivatives along a few directions where a strategy carries too large a Jacobian."""
        if not is_directional(params, self.experiment.gradient):
            at = self.evaluation(params, step)
            return float(at.loss), local(at.gradient, self.experiment.mesh)
        experiment, params = self.alone, local(params, self.experiment.mesh)
        batch = self.batch(step)
        loss = eqx.filter_jit(lambda e, p, b: e.loss(p, b)[0])(experiment, params, batch)
        return float(loss), strategy_gradient(experiment.problem, params, batch, experiment.solver, experiment.gradient)

    def reference(self, params: PyTree, step: int, judged: PyTree = None) -> Reference:
        """The ground truth at these parameters, on the minibatch of that update."""
        return self.referee(local(params, self.experiment.mesh), self.batch(step), judged)

    def __call__(self, params: PyTree, step: int, reference: Reference | None = None) -> Checked:
        """Judge the gradient; against a given reference, or one that is found for it."""
        experiment, batch = self.alone, self.batch(step)
        loss, value = self.value(params, step)
        params = local(params, self.experiment.mesh)
        if reference is None:
            reference = self.reference(params, step, None if isinstance(value, Directional) else value)
        program = program_gradient(experiment.problem, params, batch, experiment.solver)
        remark = step_remark(experiment.problem, params, batch, experiment.solver, experiment.gradient, reference)
        return Checked(step, loss, judge(value, reference, program, remark), reference)

    def cost(self, params: PyTree, step: int) -> Cost:
        """Of one gradient: compilation, time of loss and of gradient, memory, solver steps."""
        experiment = self.experiment
        if is_directional(params, experiment.gradient) or jax.process_count() > 1:  # whose repeats would not be in step
            own = local(params, experiment.mesh)
            return measure_cost(experiment.problem, own, self.batch(step), experiment.solver, experiment.gradient)
        at, batch = (
            self.evaluation(params, step),
            self._batch(experiment, self.key, jnp.asarray(step, jnp.int32), self.memory),
        )
        forward = eqx.filter_jit(lambda e, p, b: e.loss(p, b)[0]).lower(experiment, params, batch).compile()
        _, forward_ms = timed(lambda: forward(experiment, params, batch))
        _, gradient_ms = timed(lambda: self._compiled(experiment, params, batch))
        steps = float(at.metrics["solver/steps"])
        return Cost(
            compile_s=self.compile_seconds,
            forward_ms=forward_ms,
            gradient_ms=gradient_ms,
            memory_bytes=memory_of(self._compiled.compiled),
            solver_steps=int(steps) if math.isfinite(steps) else None,
        )
