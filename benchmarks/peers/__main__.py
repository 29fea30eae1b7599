"""Measure the cases, and write what came out: `python -m benchmarks.peers [--case N ...] [--budget S] [--out FOLDER]`.

All 14 without arguments, into benchmarks/results: peers.md, peers.csv, peers.png, written anew after each case. With --case the
tables are printed, and written only if there is --out.
"""

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers import fixed_points, integrals, ode_long, ode_networks, ode_small, ode_stiff, roots, table
from benchmarks.peers.cases import Entry
from benchmarks.peers.measure import measured
from benchmarks.peers.rows import Result, write
from benchmarks.peers.verdict import judge
from benchmarks.peers.workers import Workers

RESULTS = Path(__file__).parents[1] / "results"
BUDGET = 0.5  # s for each program of a case: all fourteen take about a quarter of an hour
CASES = (
    Entry(1, "float64", ode_small.usual),
    Entry(2, "float64", ode_small.tight),
    Entry(3, "float32", ode_networks.mlp),
    Entry(4, "float32", ode_networks.main_job),
    Entry(5, "float64", ode_stiff.robertson),
    Entry(6, "float64", ode_stiff.brusselator),
    Entry(7, "float64", ode_stiff.many_parameters),
    Entry(8, "float64", ode_long.long_solve),
    Entry(9, "float64", roots.many_roots),
    Entry(10, "float64", roots.large_root),
    Entry(11, "float64", fixed_points.large),
    Entry(12, "float32", fixed_points.classifier),
    Entry(13, "float64", fixed_points.slow),
    Entry(14, "float64", integrals.integrals),
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers", description="Ours beside the peers, in 14 cases."
    )
    numbers = [entry.number for entry in CASES]
    parser.add_argument("--case", type=int, nargs="+", choices=numbers, default=None, help="which; all by default")
    parser.add_argument("--budget", type=float, default=BUDGET, help=f"s for each program, {BUDGET} by default")
    parser.add_argument("--small", action="store_true", help="tiny cases, to see that all works")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results")
    given = parser.parse_args(arguments)
    whole = given.case is None and not given.small
    folder = RESULTS if given.out is None and whole else given.out
    chosen = [entry for entry in CASES if given.case is None or entry.number in given.case]
    run(chosen, given.budget, folder, given.small)


def run(entries: Sequence[Entry], budget: float, folder: Path | None, small: bool) -> list[Result]:
    """Case by case, each printed and written when it is done."""
    results: list[Result] = []
    began = time.perf_counter()
    with Workers() as workers, tempfile.TemporaryDirectory() as scratch:
        for entry in entries:
            result = measured(entry, small, budget, Path(scratch), workers)
            results.append(result)
            print(table.details(result), flush=True)
            if folder is not None:
                _write(results, folder, time.perf_counter() - began)
    print(table.summary([judge(r) for r in results]), flush=True)
    print(f"{time.perf_counter() - began:.0f} s")
    if folder is not None:
        from benchmarks.peers.figure import draw  # matplotlib takes two seconds

        draw(results, folder / "peers.png")
    return results


def _write(results: Sequence[Result], folder: Path, seconds: float) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "peers.md").write_text(table.document(results, seconds))
    write(results, folder / "peers.csv")


if __name__ == "__main__":
    main()
