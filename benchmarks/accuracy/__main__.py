"""Judge and keep: `python -m benchmarks.accuracy [--kind K ...] [--precision P ...] [--case NAME ...] [--out FOLDER]`.

Prints each strategy on each case as it is computed, and at the end the misses, each with its reason if it is known. Exit status
1 if one is not, or if a case states a condition that is not so. What is computed stands in benchmarks/results afterwards:
accuracy.csv, accuracy.md, accuracy.png; kinds and precisions that were not computed stay as they were there. With --case it is
printed only, unless there is --out.
"""

import os

# Programs that run once: without the passes that make them fast. As tests/conftest.py, whose cache serves here too.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
)

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks.accuracy import report
from benchmarks.accuracy.condition import misstated
from benchmarks.accuracy.judge import judged, unknown
from benchmarks.accuracy.measure import measured, truth_of
from benchmarks.accuracy.rows import Row, merged, read, write
from benchmarks.accuracy.subjects import BY_KIND, KINDS, OF_THE_PROGRAM, PRECISIONS, UNROLL, kind_of, strategies_of
from implicitexp import device

RESULTS = Path(__file__).parents[1] / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    """-> exit status."""
    given = _parser().parse_args(arguments)
    folder = RESULTS if given.out is None and given.case is None else given.out
    rows: list[Row] = []
    wrong: list[str] = []
    began = time.perf_counter()
    for precision in given.precision:
        for kind in given.kind:
            cases = [case for case in BY_KIND[kind] if given.case is None or case.name in given.case]
            found, said = group(precision, cases, conditions=precision == "float64")
            rows, wrong = [*rows, *found], [*wrong, *said]
            if folder is not None:
                keep(found, folder)
    print(report.misses(rows, wrong), flush=True)
    print(f"{time.perf_counter() - began:.0f} s")
    return 1 if unknown(rows) or wrong else 0


def _parser() -> argparse.ArgumentParser:
    names = [case.name for cases in BY_KIND.values() for case in cases]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy", description="How right the exact strategies are."
    )
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=KINDS, help="of equation; all by default")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=PRECISIONS, help="both by default")
    parser.add_argument("--case", nargs="+", choices=names, metavar="NAME", default=None, help="a case by its name")
    parser.add_argument("--out", type=Path, default=None, help="folder of the results")
    return parser


def group(precision: str, cases: Sequence[Any], conditions: bool) -> tuple[list[Row], list[str]]:
    """-> the rows of these cases, and what they state wrongly (if `conditions` are to be computed)."""
    rows: list[Row] = []
    wrong: list[str] = []
    with device.configured("cpu", precision):
        for case in cases:
            print(f"{case.name}, {precision}, condition {case.condition:.3g}", flush=True)
            if conditions and (said := misstated(case)):
                wrong.append(f"{case.name}: {said}")
            for row in of_case(case, precision):
                print(report.line(row), flush=True)
                rows.append(row)
            jax.clear_caches()  # nothing of a case serves another one
    return rows, wrong


def of_case(case: Any, precision: str) -> Iterator[Row]:
    kind = kind_of(case)
    truth = truth_of(case, precision, of_program=True)
    for name, strategy in strategies_of(kind).items():
        found = measured(case, strategy, truth, name in OF_THE_PROGRAM)
        key = (case.name, name, precision)
        yield judged(key, kind, case.condition, found, case.on_the_way, for_problem=name != UNROLL)


def keep(rows: Sequence[Row], folder: Path) -> None:
    """Beside what stands there of other kinds and precisions."""
    from benchmarks.accuracy.figure import draw  # matplotlib takes two seconds

    folder.mkdir(parents=True, exist_ok=True)
    everything = merged(read(folder / "accuracy.csv"), rows)
    everything.sort(key=lambda row: (PRECISIONS.index(row.precision), KINDS.index(row.kind)))
    write(everything, folder / "accuracy.csv")
    (folder / "accuracy.md").write_text(report.document(everything))
    draw(everything, folder / "accuracy.png")


if __name__ == "__main__":
    sys.exit(main())
