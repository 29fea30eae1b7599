"""Diffrax's default adjoint against `Replay` and `Reversible`: `python benchmarks/replay.py`.

Lotka-Volterra, T = 10, Tsit5 at rtol = atol = 1e-6, float64, the gradient of the four rates and the start. All are called in
turn in one process, REPEATS times; medians with the quartiles. Compilation is timed first, without the cache on disk. The
difference is from Diffrax's gradient; `Reversible` solves by a method of its own, so its is that of two solutions.
"""

import statistics
import time

import diffrax as dfx
import jax
import jax.numpy as jnp

from implicitexp.adjoints.discrete.replay import Replay
from implicitexp.adjoints.discrete.reversible import Reversible

REPEATS = 1000
ADJOINTS = {
    "diffrax default": dfx.RecursiveCheckpointAdjoint(),
    "Replay()": Replay(),
    'Replay("stages")': Replay("stages"),
    "Replay(16)": Replay(16),
    "Reversible(0.95)": Reversible(0.95),
}


def field(t, y, rates):
    a, b, c, d = rates
    return jnp.stack([a * y[0] - b * y[0] * y[1], d * y[0] * y[1] - c * y[1]])


def loss(p, adjoint):
    rates, start = p
    controller = dfx.PIDController(rtol=1e-6, atol=1e-6)
    sol = dfx.diffeqsolve(
        dfx.ODETerm(field), dfx.Tsit5(), 0.0, 10.0, None, start, rates, stepsize_controller=controller, adjoint=adjoint
    )
    assert sol.ys is not None
    return jnp.sum(sol.ys[-1] ** 2)


def seconds(call, p):
    began = time.perf_counter()
    jax.block_until_ready(call(p))
    return time.perf_counter() - began


def main():
    jax.config.update("jax_enable_x64", True)
    p = (jnp.array([1.5, 1.0, 3.0, 1.0]), jnp.array([1.0, 1.0]))
    calls, compile_s = {"forward": jax.jit(lambda p: loss(p, dfx.RecursiveCheckpointAdjoint()))}, {}
    calls |= {name: jax.jit(jax.grad(lambda p, a=a: loss(p, a))) for name, a in ADJOINTS.items()}
    for name, call in calls.items():
        compile_s[name] = seconds(call, p)
    times = {name: [] for name in calls}
    for _ in range(REPEATS):
        for name, call in calls.items():
            times[name].append(seconds(call, p))
    reference = calls["diffrax default"](p)
    print(f"{'':18} {'median ms':>10} {'quartiles':>16} {'compile s':>10} {'difference':>11}")
    for name, call in calls.items():
        low, median, high = (1e3 * x for x in statistics.quantiles(times[name], n=4))
        gap = ""
        if name != "forward":
            errors = jax.tree.map(lambda x, y: jnp.max(jnp.abs(x - y) / jnp.abs(y)), call(p), reference)
            gap = f"{max(float(e) for e in jax.tree.leaves(errors)):.1e}"
        print(f"{name:18} {median:10.3f} {low:8.3f}-{high:.3f} {compile_s[name]:10.2f} {gap:>11}")


if __name__ == "__main__":
    main()
