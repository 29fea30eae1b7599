"""Updates a second of a run, MLflow on, against a hand-written jitted scan of the same update: `python benchmarks/overhead.py`.

Compilation and gradient checks are left out on both sides. The hand-written loop has the problem's loss, one call of
`jax.value_and_grad` and the Optax optimizer, and neither statistics of solves nor a look at failures. Both are timed in turn
several times, on the same machine; the ratio of the medians is what counts. The lines of a chunk of updates are written while the
next one is computed, those of the last one when training is over, which is not timed. Further arguments are overrides.
"""

import statistics
import sys
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp
import optax

import implicitexp
from implicitexp import device, launch, recipe
from implicitexp.composing import Composer
from implicitexp.solving import Solve

JOBS = (("ode", 600, 3), ("ode_exponential", 10_000, 15))  # problem, updates, times


def by_hand(overrides: list[str]) -> tuple[Any, Any]:
    """-> a compiled function that trains, its inputs."""
    config, _ = Composer().checked(overrides)
    problem, solver, gradient = (launch.build(name, config[name]) for name in ("problem", "solver", "gradient"))
    optimizer = recipe.from_node(config["optimizer"]).build()
    solve = Solve(solver, gradient)
    first, draws = jax.random.split(jax.random.key(config["seed"]))
    params = problem.init(first)

    def update(carry, i):
        params, state = carry
        batch = problem.batch(jax.random.fold_in(draws, i + 1))

        def loss(params):
            out = problem.loss(params, batch, solve)
            return out[0] if isinstance(out, tuple) else out

        value, slope = jax.value_and_grad(loss)(params)
        changes, state = optimizer.update(slope, state, params)
        return (optax.apply_updates(params, changes), state), value

    @jax.jit
    def train(params):
        return jax.lax.scan(update, (params, optimizer.init(params)), jnp.arange(config["steps"]))[1]

    return train, params


def seconds_by_hand(train: Any, params: Any) -> float:
    began = time.perf_counter()
    jax.block_until_ready(train(params))
    return time.perf_counter() - began


def seconds_by_run(overrides: list[str], folder: str, i: int) -> float:
    where = [f"hydra.run.dir={folder}/{i}", f"tracker.uri=sqlite:///{folder}/mlflow.db", "check_every=1000000000"]
    return implicitexp.run([*overrides, *where]).history[-1]["time/train_s"]


def main(more: list[str]) -> None:
    print(f"{'problem':18}{'updates':>9}{'by hand':>14}{'implicitexp':>14}{'slower by':>11}", flush=True)
    for problem, steps, repeats in JOBS:
        overrides = [f"problem={problem}", f"steps={steps}", *more]
        with device.configured("cpu"), tempfile.TemporaryDirectory() as folder:
            train, params = by_hand(overrides)
            seconds_by_hand(train, params)  # compiles
            pairs = [(seconds_by_hand(train, params), seconds_by_run(overrides, folder, i)) for i in range(repeats)]
        hand, run = (statistics.median(times) for times in zip(*pairs, strict=True))
        print(
            f"{problem:18}{steps:9}{steps / hand:12.0f}/s{steps / run:12.0f}/s{100 * (run / hand - 1):10.1f}%",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
