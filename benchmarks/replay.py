"""Diffrax's default adjoint against `Replay` and `Reversible`: `python benchmarks/replay.py [case ...]`.

- lotka: Lotka-Volterra, T = 10, Tsit5 at rtol = atol = 1e-6, the gradient of the four rates and the start.
- mlp: the field 64-256-64, batch 256, T = 1, Tsit5 at 1e-3, the gradient of the weights and the start.
- stiff: the Brusselator in one dimension, n = 16, 64 and 128 states, T = 2, Kvaerno5 at 1e-5, the gradient of 2 n numbers;
  `LU each` has one factorisation in each stage for every n, `LU shared` one in each step.

float64. All are called in turn in one process; medians with the quartiles. Tracing and compilation are timed first, in
seconds of this process, without the cache on disk. The difference is from Diffrax's gradient; `Reversible` solves by a method of
its own, so its is that of two solutions.
"""

import functools
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp

from implicitexp.adjoints.discrete import stage_equations
from implicitexp.adjoints.discrete.replay import Replay
from implicitexp.adjoints.discrete.reversible import Reversible
from implicitexp.adjoints.discrete.stage_equations import AT_EACH_STAGE

DEFAULT = dfx.RecursiveCheckpointAdjoint()
ADJOINTS = {"diffrax default": DEFAULT, "Replay()": Replay(), 'Replay("stages")': Replay("stages")}
EXPLICIT = {**ADJOINTS, "Replay(16)": Replay(16), "Reversible()": Reversible(), "Reversible(0.95)": Reversible(0.95)}


class Case(NamedTuple):
    """`loss(p, adjoint)`, and with which adjoints its gradient is timed, `repeats` times."""

    loss: Callable
    p: Any
    adjoints: dict[str, Any]
    repeats: int


def solved(field, solver, start, args, end, tolerance, adjoint):
    controller = dfx.PIDController(rtol=tolerance, atol=tolerance)
    sol = dfx.diffeqsolve(
        dfx.ODETerm(field), solver, 0.0, end, None, start, args, stepsize_controller=controller, adjoint=adjoint
    )
    assert sol.ys is not None
    return jnp.sum(sol.ys[-1] ** 2)


def lotka():
    def field(t, y, rates):
        a, b, c, d = rates
        return jnp.stack([a * y[0] - b * y[0] * y[1], d * y[0] * y[1] - c * y[1]])

    def loss(p, adjoint):
        return solved(field, dfx.Tsit5(), p[1], p[0], 10.0, 1e-6, adjoint)

    return Case(loss, (jnp.array([1.5, 1.0, 3.0, 1.0]), jnp.array([1.0, 1.0])), EXPLICIT, 1000)


def mlp():
    network = eqx.nn.MLP(64, 64, 256, 1, jnp.tanh, key=jax.random.key(0))
    weights, rest = eqx.partition(network, eqx.is_array)

    def loss(p, adjoint):
        field = lambda t, y, weights: jax.vmap(eqx.combine(weights, rest))(y)  # noqa: E731
        return solved(field, dfx.Tsit5(), p[1], p[0], 1.0, 1e-3, adjoint)

    adjoints = {name: EXPLICIT[name] for name in ("diffrax default", "Replay()", "Reversible()")}
    return Case(loss, (weights, jax.random.normal(jax.random.key(1), (256, 64))), adjoints, 20)


def stiff(n):
    x = jnp.linspace(0, 1, n // 2)

    def laplacian(u, edge):
        padded = jnp.pad(u, 1, constant_values=edge)
        return 0.02 * (u.size + 1) ** 2 * (padded[:-2] - 2 * u + padded[2:])

    def field(t, y, p):
        (u, v), (a, b) = y, p
        return jnp.stack([a + u * u * v - (b + 1) * u + laplacian(u, 1), b * u - u * u * v + laplacian(v, 3)])

    def loss(p, adjoint):
        return solved(field, dfx.Kvaerno5(), p[1], p[0], 2.0, 1e-5, adjoint)

    start = jnp.stack([1 + jnp.sin(2 * jnp.pi * x), jnp.full_like(x, 3)])
    adjoints = {**ADJOINTS, "LU each": Replay("stages"), "LU shared": Replay("stages")}
    return Case(loss, ((jnp.ones_like(x), jnp.full_like(x, 3)), start), adjoints, 20)


FACTORED = {"LU each": 10**6, "LU shared": 0}  # in the place of stage_equations.AT_EACH_STAGE
CASES = {"lotka": lotka, "mlp": mlp, **{f"stiff {n}": functools.partial(stiff, n) for n in (16, 64, 128)}}


def seconds(call, p):
    began = time.perf_counter()
    jax.block_until_ready(call(p))
    return time.perf_counter() - began


def compiled(case, name):
    """The gradient, or the loss alone, and how long it took to trace and compile."""
    jax.clear_caches()
    stage_equations.AT_EACH_STAGE = FACTORED.get(name, AT_EACH_STAGE)
    began = time.process_time()
    call = (
        (lambda p: case.loss(p, DEFAULT))
        if name == "forward"
        else jax.grad(lambda p: case.loss(p, case.adjoints[name]))
    )
    program = jax.jit(call).lower(case.p).compile()
    return program, time.process_time() - began


def measured(case):
    programs = {name: compiled(case, name) for name in ("forward", *case.adjoints)}
    times = {name: [] for name in programs}
    for _ in range(case.repeats):
        for name, (call, _) in programs.items():
            times[name].append(seconds(call, case.p))
    reference = programs["diffrax default"][0](case.p)
    print(f"{'':18} {'median ms':>10} {'quartiles':>16} {'compile s':>10} {'difference':>11}")
    for name, (call, compile_s) in programs.items():
        low, median, high = (1e3 * x for x in statistics.quantiles(times[name][1:], n=4))
        gap = ""
        if name != "forward":
            errors = jax.tree.map(lambda x, y: jnp.max(jnp.abs(x - y)) / jnp.max(jnp.abs(y)), call(case.p), reference)
            gap = f"{max(float(e) for e in jax.tree.leaves(errors)):.1e}"
        print(f"{name:18} {median:10.3f} {low:8.3f}-{high:.3f} {compile_s:10.2f} {gap:>11}", flush=True)


def main():
    jax.config.update("jax_enable_x64", True)
    for name in sys.argv[1:] or CASES:
        print(f"\n{name}")
        measured(CASES[name]())


if __name__ == "__main__":
    main()
