"""Test accuracy on the digits with and without the layer that is solved, trained alike: `python benchmarks/layers.py`.

`problem=ode` (without it the same): an ODE layer, a residual layer, no layer. `problem=fixed_point`: the deep
equilibrium z = tanh(W z + U x + b), and z = tanh(U x + b).
Prints a row a layer: every seed and the mean. Further arguments are overrides: `python benchmarks/layers.py steps=2000`.
"""

import statistics
import sys
import tempfile
from pathlib import Path

import implicitexp

LAYERS = {"ode": ("ode", "residual", "identity"), "fixed_point": ("fixed_point", "feedforward")}
SEEDS = (0, 1, 2)


def accuracies(problem: str, layer: str, overrides: list[str], folder: Path) -> list[float]:
    """The test accuracy of each seed, after the last update."""
    found = []
    for seed in SEEDS:
        where = f"hydra.run.dir={folder}/{layer}-{seed}"
        fixed = [f"problem={problem}", f"problem.layer={layer}", f"seed={seed}", "tracker=none", where]
        fixed.append("check_every=1000000")
        found.append(implicitexp.run([*fixed, *overrides]).metrics["test_accuracy"])
    return found


def main(overrides: list[str]) -> None:
    chosen = [text for text in overrides if text.startswith("problem=")]
    problem = chosen[-1].removeprefix("problem=") if chosen else "ode"
    if problem not in LAYERS:
        sys.exit(
            f"problem={problem} has no layers to compare; use {' or '.join(f'problem={name}' for name in LAYERS)}."
        )
    others = [text for text in overrides if text not in chosen]
    print(f"{'layer':12}" + "".join(f"{f'seed {seed}':>10}" for seed in SEEDS) + f"{'mean':>10}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for layer in LAYERS[problem]:
            found = accuracies(problem, layer, others, Path(folder))
            cells = [*found, statistics.mean(found)]
            print(f"{layer:12}" + "".join(f"{100 * x:9.2f}%" for x in cells), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
