"""The figures of the documentation: `python docs/figures/make.py [NAME ...]`, all of them without a name.

Each measures what a page of docs/strategies claims, prints the numbers and draws them: NAME.png, beside this file (another
folder: `--into FOLDER`). In float64, on the CPU. Times are ratios of what has been measured in turn in one process.
"""

import argparse
from collections.abc import Callable
from pathlib import Path

import approximate
import continuous
import converged
import integrals
import jax
import steps
from panels import Panel, drawn, printed, saved

HERE = Path(__file__).parent
FIGURES: dict[str, Callable[[], list[Panel]]] = {
    "unroll": steps.unroll,
    "implicit": converged.implicit,
    "adjoint": converged.adjoint,
    "forward": steps.forward,
    "finite_difference": steps.finite_difference,
    "gauss": continuous.gauss,
    "interpolating": continuous.interpolating,
    "backsolve": continuous.backsolve,
    "forward_sensitivity": continuous.forward_sensitivity,
    "replay": steps.replay,
    "reversible": steps.reversible,
    "iterated": converged.iterated,
    "one_step": approximate.one_step,
    "neumann": approximate.neumann,
    "phantom": approximate.phantom,
    "truncated": approximate.truncated,
    "shine": approximate.shine,
    "reuse": approximate.reuse,
    "frozen_mesh": integrals.frozen_mesh,
    "leibniz": integrals.leibniz,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FIGURES))
    parser.add_argument("--into", type=Path, default=HERE, metavar="FOLDER")
    given = parser.parse_args()
    unknown = sorted(set(given.names) - set(FIGURES))
    if unknown:
        parser.error(f"no figure {', '.join(unknown)}; there are {', '.join(FIGURES)}")
    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_platforms", "cpu")
    for name in given.names or FIGURES:
        panels = FIGURES[name]()
        print(f"{name}\n" + "\n".join(printed(panel) for panel in panels), flush=True)
        saved(drawn(panels), given.into / f"{name}.png")


if __name__ == "__main__":
    main()
