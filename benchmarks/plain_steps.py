"""When do plain steps beat Anderson's on an adjoint equation w <- M^T w + c? `python -m benchmarks.plain_steps`

For contractions of 0.2 to 0.7, symmetric ones (whose eigenvalues lie on a line, where acceleration saves most) and random ones
(in a disc, where no Krylov method saves a product), of which the product costs little or much beside the history: time with
acceleration over time without, both to eps^(3/4), and the steps of both. `QUICK` in `implicitexp/solvers/anderson.py` is chosen
by it.
"""

import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from implicitexp.adjoints.implicit import iterated

CONTRACTIONS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
SIZES = (
    (64, 1, "float64"),
    (1000, 1, "float64"),
    (64, 256, "float32"),
    (500, 32, "float32"),
)  # unknowns, how many systems in one, precision
TURNS = 15


def contraction(kind: str, n: int, rng: np.random.Generator) -> np.ndarray:
    """With a spectral radius of one."""
    drawn = rng.normal(size=(n, n))
    if kind == "random":
        return drawn / np.abs(np.linalg.eigvals(drawn)).max()
    basis = np.linalg.qr(drawn)[0]
    return (basis * np.linspace(-1, 1, n)) @ basis.T


def compiled(accelerate, n: int, batch: int, dtype: str):
    """(matrix, contraction, b) -> w, converged, steps."""

    def run(matrix, size, b):
        def step(w):
            return (size * (w.reshape(batch, n) @ matrix)).reshape(-1) + b

        return iterated.AdjointIteration(accelerate=accelerate)(step, b, 0)[:3]

    shapes = ((n, n), (), (n * batch,))
    return jax.jit(run).lower(*(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes)).compile()


def ratio(programs, arguments) -> str:
    """Time of the first over that of the second, and the steps of both."""
    times = [[], []]
    for _ in range(TURNS):
        for program, seconds in zip(programs, times, strict=True):
            began = time.perf_counter()
            jax.block_until_ready(program(*arguments))
            seconds.append(time.perf_counter() - began)
    accelerated, plain = (statistics.median(seconds) for seconds in times)
    steps = "/".join(str(int(program(*arguments)[2])) for program in programs)
    return f"{accelerated / plain:5.2f} ({steps})"


def main() -> None:
    jax.config.update("jax_enable_x64", True)
    rng = np.random.default_rng(0)
    print("| unknowns | systems | M | " + " | ".join(map(str, CONTRACTIONS)) + " |")
    for n, batch, dtype in SIZES:
        iterated.QUICK = 0.0  # pyright: ignore[reportPrivateImportUsage, reportConstantRedefinition]
        programs = [compiled(accelerate, n, batch, dtype) for accelerate in ("anderson", None)]
        b = rng.normal(size=n * batch)
        for kind in ("symmetric", "random"):
            matrix = contraction(kind, n, rng)
            cells = [
                ratio(programs, [jnp.asarray(x, dtype) for x in (matrix, size, b / np.linalg.norm(b))])
                for size in CONTRACTIONS
            ]
            print(f"| {n} | {batch} | {kind} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
