"""Cases 3 and 4: a neural ODE of a batch, and an update of the main job. In float32, as networks are trained."""

from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.peers import ode_programs as ode
from benchmarks.peers.cases import Case, Foreign, Program, Reference
from implicitexp.problems import Digits
from implicitexp.problems.digit_images import apply, classified
from implicitexp.problems.digits import field as digits_field

TOLERANCE = 1e-5
TIGHT = 1e-11
SEVEN_STEPS = 2.4  # length of the interval, on which Tsit5 takes seven steps
LEARNING_RATE = 5e-3
PEERS = ["RecursiveCheckpointAdjoint()", "DirectAdjoint()", "BacksolveAdjoint()"]


# -- case 3 ---------------------------------------------------------------------------------------------------------------


def field(t, y, weights):
    return jnp.tanh(y @ weights["w1"] + weights["b1"]) @ weights["w2"] + weights["b2"]


def mlp(small: bool) -> Case:
    """Case 3."""
    width, hidden, batch = (4, 8, 3) if small else (64, 256, 256)
    rng = np.random.default_rng(3)
    weights = {
        "b1": np.zeros(hidden),
        "b2": np.zeros(width),
        "w1": rng.normal(size=(width, hidden)) / np.sqrt(width),
        "w2": rng.normal(size=(hidden, width)) / np.sqrt(hidden),
    }
    start = rng.normal(size=(batch, width))
    problem = ode.InitialValue(
        field, SEVEN_STEPS, dfx.Tsit5(), TOLERANCE, loss=lambda y: jnp.mean(jnp.sum(y**2, axis=-1))
    )
    args = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (weights, start))
    steps = problem.counted(*args)
    names = ("Replay()",) if small else ("Replay()", "Gauss()", "Interpolating()", "Backsolve()", "Reversible()")
    data = {name: np.asarray(x, np.float32) for name, x in {**weights, "start": start}.items()}
    return Case(
        3,
        f"MLP field {width}-{hidden}-{width}, batch {batch}, {steps} steps",
        TOLERANCE,
        args,
        [
            *ode.ours(problem, *names),
            *ode.diffrax(problem, *PEERS[: 1 if small else None]),
            ode.explicit_floor(problem, args),
        ],
        lambda: ode.tight(problem.changed(solver=dfx.Dopri8()), _doubled(args), TIGHT),
        [
            Foreign("torch", "torchdiffeq", "odeint_adjoint, dopri5", "torch_ode", "mlp_adjoint"),
            Foreign("torch", "torchdiffeq", "odeint, dopri5", "torch_ode", "mlp"),
        ],
        {**data, "end": np.array(SEVEN_STEPS), "tolerance": np.array(TOLERANCE), "method": np.array("dopri5")},
        ("torchdiffeq has no Tsit5: dopri5, of the same order.",),
    )


# -- case 4 ---------------------------------------------------------------------------------------------------------------


def main_job(small: bool) -> Case:
    """Case 4: value, gradient and step of AdamW on a minibatch of digits. The gradient is what is judged."""
    job = Digits(width=4, batch_size=3) if small else Digits()
    params = job.init(jax.random.key(0))
    images, labels = job.batch(jax.random.key(1))
    pixels = images.reshape(len(images), -1)
    optimizer = optax.adamw(LEARNING_RATE)
    args = (params, optimizer.init(params), pixels, labels)
    problem = ode.InitialValue(lambda t, h, w: digits_field(t, h, w), 1.0, dfx.Tsit5(), TOLERANCE)

    def loss(params, pixels, labels, adjoint, tolerance=None, problem=problem):
        h = apply(params["features"], pixels)
        ys = problem.solution(params["field"], h, adjoint, tolerance).ys
        assert ys is not None
        return classified(apply(params["readout"], ys[-1]), labels)[0]

    def update(adjoint):
        def program(params, state, pixels, labels):
            slope = jax.grad(loss)(params, pixels, labels, adjoint)
            changes, state = optimizer.update(slope, state, params)
            return slope, optax.apply_updates(params, changes), state

        return program

    def reference() -> Reference:
        by = jax.jit(
            jax.grad(
                lambda params, pixels, tolerance: loss(
                    params,
                    pixels,
                    labels,
                    dfx.RecursiveCheckpointAdjoint(),
                    tolerance,
                    problem.changed(solver=dfx.Dopri8()),
                )
            )
        )
        exact = _doubled((params, pixels))
        return Reference.of_two(by(*exact, TIGHT), by(*exact, 10 * TIGHT))

    ours = ["Replay()"] if small else ["Replay()", "Gauss()", "Interpolating()", "Backsolve()", "Reversible()"]
    programs = [Program("ours", "implicitexp", name, update(ode.OURS[name]())) for name in ours]
    programs += [Program("jax", "Diffrax", name, update(ode.DIFFRAX[name]())) for name in PEERS[: 1 if small else None]]
    return Case(
        4,
        "the main job's update: digits, batch 128, AdamW",
        TOLERANCE,
        args,
        [*programs, _floor(problem, optimizer, args)],
        reference,
        [
            Foreign("torch", "torchdiffeq", "odeint_adjoint, dopri5", "torch_ode", "digits_adjoint"),
            Foreign("torch", "torchdiffeq", "odeint, dopri5", "torch_ode", "digits"),
        ],
        _as_data(params, pixels, labels),
        ("torchdiffeq has no Tsit5: dopri5, of the same order.",),
    )


def _floor(problem: ode.InitialValue, optimizer: Any, args: tuple) -> Program:
    """Features, the floor of the solve, read-out and their vjps, and the step."""
    params, _, pixels, _ = args
    h = apply(params["features"], pixels)
    inner = ode.explicit_floor(problem, (params["field"], h))

    def program(params, state, pixels, labels):
        h, to_features = jax.vjp(lambda p: apply(p, pixels), params["features"])
        at_start, by_field = inner.gradient(params["field"], h)
        by_readout = jax.grad(lambda p: classified(apply(p, at_start), labels)[0])(params["readout"])
        slope = {"features": to_features(at_start)[0], "field": by_field, "readout": by_readout}
        changes, state = optimizer.update(slope, state, params)
        return slope, optax.apply_updates(params, changes), state

    return Program("floor", "floor", inner.name, program)


def _as_data(params: Any, pixels: Any, labels: Any) -> dict[str, np.ndarray]:
    weights = {f"{layer}_{name}": x for layer, named in params.items() for name, x in named.items()}
    numbers = {"end": 1.0, "tolerance": TOLERANCE, "learning_rate": LEARNING_RATE, "method": "dopri5"}
    arrays = {**weights, **numbers, "pixels": pixels, "labels": labels}
    return {name: np.asarray(x) for name, x in arrays.items()}


def _doubled(tree: Any) -> Any:
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x, np.float64)), tree)
