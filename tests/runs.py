"""What the tests of the runner share: a run of a small problem, without Hydra and without MLflow."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

import implicitexp
from implicitexp import problems, solvers, strategies
from implicitexp.tracking import open_tracker
from implicitexp.training import Settings, train

ADAM = {"_target_": "optax.adam", "learning_rate": 0.05}
SCHEMA = {
    "schema", "status", "problem", "seed", "precision", "device", "steps", "gradient", "loss", "params", "gradient_check",
    "reference", "cost", "error", "config_hash", "git_commit", "versions", "solver", "metrics",
}  # fmt: skip
CHECK = {"value", "norm", "absolute_error", "relative_error", "cosine", "program_error", "uncertainty", "resolved", "worst",
         "remark"}  # fmt: skip
COST = {"compile_s", "forward_ms", "gradient_ms", "memory_bytes", "solver_steps"}


def a_run(
    folder: Any, problem: Any = None, gradient: Any = None, optimizer: Any = None, solver: Any = None, **settings: Any
):
    """Train; Kepler's equation, 30 updates of Adam, implicit gradients unless told otherwise."""
    chosen: dict[str, Any] = {"problem": "root_kepler", "gradient": "implicit", "solver": "auto", "steps": 30}
    chosen |= {"folder": folder, "config": {"steps": 30, "optimizer": optimizer or ADAM}, "progress": False}
    return train(
        problems.Kepler() if problem is None else problem,
        solvers.Auto() if solver is None else solver,
        strategies.Implicit() if gradient is None else gradient,
        optimizer or ADAM,
        Settings(**(chosen | settings)),
        open_tracker(None),
    )


class Cliff(implicitexp.AbstractProblem):
    """y² + p = 0 has a root for p <= 0 only, and descent pushes p up: the solve fails after some updates."""

    start: float = -1.0
    lanes: int = eqx.field(static=True, default=0)

    def init(self, key):
        return jnp.asarray(self.start)

    def loss(self, params, batch, solve):
        equation = implicitexp.Root(lambda y, p: y**2 + p, 1.0)
        return -params + 0 * solve(equation, params).value


class Drawn(problems.Kepler):
    """Kepler's equation at `rows` mean anomalies, drawn anew for every update."""

    rows: int = 8

    def batch(self, key):
        return jax.random.uniform(key, (self.rows,), minval=0.5, maxval=1.5)

    def loss(self, params, batch, solve):
        def one(mean):
            equation = implicitexp.Root(lambda E, args: E - args[0] * jnp.sin(E) - args[1], mean)
            return (solve(equation, (params["eccentricity"], mean)).value - self.target) ** 2

        return jnp.mean(jax.vmap(one)(batch))

    def exact_loss(self, params, batch):
        def one(mean):
            return problems.Kepler.exact_loss(dataclasses.replace(self, mean_anomaly=mean), params, None)

        return jnp.mean(jax.vmap(one)(batch))
