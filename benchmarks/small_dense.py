"""Many small systems at once, with `SmallDense` and with Lineax's default: `python benchmarks/small_dense.py [count]`.

10,000 roots of size 1 to 4, vmapped: Newton's method, and its gradient by `optx.ImplicitAdjoint`; then the bare linear solve of
as many matrices. In turn, so that both see the same machine; medians of 21, the quartiles in brackets, the seconds that each was
compiled in, and the largest difference between the two, relative.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx

from implicitexp.adjoints.linear.small_dense import SmallDense

REPEATS = 21
DEFAULT = lx.AutoLinearSolver(well_posed=None)  # what Optimistix takes when nothing is said


def equation(y: jax.Array, args: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Written without a product of matrices, of which a batch is itself slow. It has one root."""
    matrix, a = args
    return y + 0.5 * jnp.tanh(jnp.sum(matrix * y, axis=1)) - a


def root(solver: lx.AbstractLinearSolver, matrix: jax.Array, a: jax.Array) -> jax.Array:
    newton = optx.Newton(1e-8, 1e-8, linear_solver=solver)
    adjoint = optx.ImplicitAdjoint(linear_solver=solver)
    return optx.root_find(equation, newton, jnp.zeros_like(a), (matrix, a), adjoint=adjoint).value


def programs(solver: lx.AbstractLinearSolver) -> dict[str, Callable]:
    """Name -> a compiled function of matrices and vectors."""

    def loss(matrix, a):
        return jnp.sum(jax.vmap(lambda m, a: root(solver, m, a))(matrix, a) ** 2)

    def solve(matrix, a):
        return lx.linear_solve(lx.MatrixLinearOperator(matrix), a, solver, throw=False).value

    return {
        "root": jax.jit(jax.vmap(lambda m, a: root(solver, m, a))),
        "gradient": jax.jit(jax.grad(loss, argnums=1)),
        "linear solve": jax.jit(jax.vmap(solve)),
    }


def compiled(run: Any, *args: jax.Array) -> tuple[Callable, float]:
    """The program, and the seconds of the process's own that it was traced and compiled in, which others do not stretch."""
    begin = time.process_time()
    program = run.lower(*args).compile()
    return program, time.process_time() - begin


def milliseconds(run: Callable, *args: jax.Array) -> float:
    begin = time.perf_counter()
    jax.block_until_ready(run(*args))
    return 1e3 * (time.perf_counter() - begin)


def shown(times: Sequence[float]) -> str:
    low, middle, high = statistics.quantiles(times, n=4)
    return f"{middle:8.2f} [{low:.2f}, {high:.2f}]"


def main(count: int) -> None:
    jax.config.update("jax_enable_x64", True)
    print(f"{count} systems, float64, {jax.devices()[0].device_kind}, jax {jax.__version__}")
    print(
        f"{'n':>2} {'what':13}{'SmallDense (ms)':>24}{'default (ms)':>26}{'ratio':>8}{'compile (s)':>14}{'difference':>12}",
        flush=True,
    )
    for n in (1, 2, 3, 4):
        rng = np.random.default_rng(n)
        matrix = rng.normal(size=(count, n, n))
        matrix /= 1 + np.linalg.norm(matrix, axis=(1, 2), keepdims=True)
        args = (jnp.asarray(matrix), jnp.asarray(rng.normal(size=(count, n))))
        ours, theirs = programs(SmallDense()), programs(DEFAULT)
        for name in ours:
            pair, seconds = zip(*(compiled(run[name], *args) for run in (ours, theirs)), strict=True)
            values = [np.asarray(program(*args)) for program in pair]
            times = [[milliseconds(program, *args) for program in pair] for _ in range(REPEATS)]
            pairs = list(zip(*times, strict=True))
            ratio = statistics.median(pairs[1]) / statistics.median(pairs[0])
            scale = np.abs(values[1]).max(axis=-1, keepdims=True)
            difference = float(np.max(np.abs(values[0] - values[1]) / scale))
            took = f"{seconds[0]:.1f} {seconds[1]:.1f}"
            print(
                f"{n:2} {name:13}{shown(pairs[0]):>24}{shown(pairs[1]):>26}{ratio:8.1f}{took:>14}{difference:12.1e}",
                flush=True,
            )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 10_000)
