"""Test accuracy on the digits with an ODE layer, a residual layer and no layer, trained alike: `python benchmarks/layers.py`.

Prints a row a layer: every seed and the mean. Further arguments are overrides: `python benchmarks/layers.py steps=2000`.
"""

import statistics
import sys
import tempfile
from pathlib import Path

import implicitexp

LAYERS = ("ode", "residual", "identity")
SEEDS = (0, 1, 2)


def accuracies(layer: str, overrides: list[str], folder: Path) -> list[float]:
    """The test accuracy of each seed, after the last update."""
    found = []
    for seed in SEEDS:
        where = f"hydra.run.dir={folder}/{layer}-{seed}"
        fixed = ["problem=ode", f"problem.layer={layer}", f"seed={seed}", "tracker=none", "check_every=1000000", where]
        found.append(implicitexp.run([*fixed, *overrides]).metrics["test_accuracy"])
    return found


def main(overrides: list[str]) -> None:
    print(f"{'layer':10}" + "".join(f"{f'seed {seed}':>10}" for seed in SEEDS) + f"{'mean':>10}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for layer in LAYERS:
            found = accuracies(layer, overrides, Path(folder))
            cells = [*found, statistics.mean(found)]
            print(f"{layer:10}" + "".join(f"{100 * x:9.2f}%" for x in cells), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
