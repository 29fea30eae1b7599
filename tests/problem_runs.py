"""What the tests of the problems share: a problem as its YAML sets it up, trained without checks and without a record."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from implicitexp import prepare
from implicitexp.composing import Composer
from implicitexp.experiment import advance, answers, most
from implicitexp.launch import build

COMPOSER = Composer()
# For networks, whose updates are work: with the passes that conftest.py leaves out they take a third of the time.
OPTIMIZED: dict[str, str | bool] = {"xla_backend_optimization_level": "3", "xla_llvm_disable_expensive_passes": False}


@dataclass(frozen=True)
class Trained:
    """Where a run of the YAML's defaults has ended."""

    problem: Any
    start: Any  # parameters
    params: Any
    losses: np.ndarray  # before each update
    before: dict[str, float]  # the problem's own numbers at the start
    found: dict[str, float]  # and at the end


def configured(name: str, *overrides: str) -> tuple[dict[str, Any], Any, Any, Any]:
    """-> configuration, problem, solver, gradient."""
    config, _ = COMPOSER.checked([f"problem={name}", "tracker=none", *overrides])
    return config, *(build(group, config[group]) for group in ("problem", "solver", "gradient"))


def trained(name: str, *overrides: str, optimized: bool = False) -> Trained:
    """The problem after the updates of its YAML, in the precision of the process."""
    precision = "float64" if jax.config.jax_enable_x64 else "float32"
    config, problem, solver, gradient = configured(name, f"precision={precision}", *overrides)
    experiment, state, key = prepare.prepare(problem, solver, gradient, config["optimizer"], seed=config["seed"])
    start, losses = state.params, []
    program, every = advance, jnp.array(1, jnp.int32)
    if optimized:
        program = advance.lower(experiment, state, key, jnp.asarray(0, jnp.int32), every).compile(OPTIMIZED)
    while int(state.step) < config["steps"] and not int(state.fault):
        count = min(most(1), config["steps"] - int(state.step))
        state, rows, _ = program(experiment, state, key, jnp.asarray(count, jnp.int32), every)
        losses.append(np.asarray(rows.metrics["loss"][: int(rows.count)]))
    assert int(state.fault) == 0, f"{name}: a solve failed at update {int(state.step)}"

    def numbers(params):
        return {key: float(x) for key, x in answers(experiment, params).items()}

    return Trained(problem, start, state.params, np.concatenate(losses), numbers(start), numbers(state.params))
