"""What a gradient costs: compilation, time, memory, solver steps."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from implicitexp.device import uncached
from implicitexp.solving import Solve, zero_tap
from implicitexp.truth.doubles import scalar
from implicitexp.truth.witnesses import directions, is_directional

REPEATS = 20  # of a timed call at most
MAX_SECONDS = 1.0  # for all repeats of one call; three are made in any case
FEWEST = 3


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one gradient costs. `memory_bytes`: XLA's own figure of the temporary memory of the compiled gradient."""

    compile_s: float  # s, tracing and compiling loss and gradient; in training as the cache of programs has it
    forward_ms: float  # ms, the loss alone, median after a warm-up
    gradient_ms: float  # ms, loss and gradient together, median after a warm-up
    memory_bytes: int | None  # bytes; None where the backend does not say
    solver_steps: int | None  # of the forward solves, summed

    def as_dict(self) -> dict[str, Any]:
        """`cost` of result.json."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        memory = "-" if self.memory_bytes is None else f"{self.memory_bytes / 2**20:.3g} MiB"
        steps = "-" if self.solver_steps is None else str(self.solver_steps)
        return (
            f"cost              gradient {self.gradient_ms:.3g} ms, forward {self.forward_ms:.3g} ms, "
            f"compilation {self.compile_s:.2g} s, memory {memory}, {steps} solver steps"
        )


def measure_cost(
    problem: Any,
    params: PyTree,
    batch: PyTree = None,
    solver: Any = None,
    gradient: Any = None,
    max_seconds: float = MAX_SECONDS,
) -> Cost:
    """Compile the loss and its gradient, and time both. The gradient of `forward` and `finite_difference` above
    MAX_PARAMETERS parameters is its derivatives along a few directions."""
    inputs = (problem, params, batch, solver, gradient)
    arrays, static = eqx.partition(inputs, eqx.is_array)
    tap = zero_tap(ravel_pytree(params)[0].dtype)

    def loss(arrays, tap):
        problem, params, batch, solver, gradient = eqx.combine(arrays, static)
        return scalar(problem.loss(params, batch, Solve(solver, gradient, tap)))

    def forward(arrays, tap):
        del tap
        return loss(arrays, None)

    def reverse(arrays, tap):
        def of(params, tap):
            return loss((arrays[0], params, *arrays[2:]), tap)

        return jax.value_and_grad(of, argnums=(0, 1))(arrays[1], tap)

    def along(arrays, tap):
        flat, unravel = ravel_pytree(arrays[1])
        rows = jnp.asarray(directions(flat.size), flat.dtype)

        def one(row):
            return jax.jvp(lambda p: loss((arrays[0], p, *arrays[2:]), None), (arrays[1],), (unravel(row),))

        return jax.vmap(one)(rows), jax.grad(lambda tap: loss(arrays, tap))(tap)

    directional = is_directional(params, gradient)
    start = time.perf_counter()
    with uncached():
        compiled = jax.jit(along if directional else reverse).lower(arrays, tap).compile()
    compile_s = time.perf_counter() - start
    forward_compiled = jax.jit(forward).lower(arrays, tap).compile()
    out, gradient_ms = timed(lambda: compiled(arrays, tap), max_seconds)
    _, forward_ms = timed(lambda: forward_compiled(arrays, tap), max_seconds)
    tapped = out[1] if directional else out[1][1]
    steps = float(tapped["steps"])
    return Cost(compile_s, forward_ms, gradient_ms, memory_of(compiled), int(steps) if steps == steps else None)


def timed(call: Callable[[], Any], max_seconds: float = MAX_SECONDS) -> tuple[Any, float]:
    """-> the result, and the median time in ms after a warm-up."""
    out = jax.block_until_ready(call())
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < FEWEST or (len(times) < REPEATS and time.perf_counter() - begin < max_seconds):
        start = time.perf_counter()
        jax.block_until_ready(call())
        times.append(time.perf_counter() - start)
    return out, 1e3 * statistics.median(times)


def memory_of(compiled: Any) -> int | None:
    analysis = compiled.memory_analysis()
    return None if analysis is None else int(analysis.temp_size_in_bytes)
