"""`python -m benchmarks.accuracy` finds a gradient that is off, a solution that is wrong, a miss that nobody has explained."""

import dataclasses
import math
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # the benchmarks are no part of what is installed

from benchmarks.accuracy import __main__ as command
from benchmarks.accuracy import judge, report, rows
from benchmarks.accuracy.measure import Measured
from benchmarks.accuracy.misses import KNOWN, Known
from benchmarks.accuracy.subjects import BY_KIND, EXACT, PRECISIONS
from implicitexp import strategies
from implicitexp.strategies.base import AbstractCell, AbstractStrategy

FLOOR = 1e-10  # of the bound in float64, at condition 1
KEY = ("square root", "implicit", "float64")


class Off(AbstractStrategy):
    """Another strategy, whose gradient is off by `part` of itself."""

    inner: AbstractStrategy
    part: float

    def cell(self, kind, solver):
        return OffCell(self.inner.cell(kind, solver), self.part)


class OffCell(AbstractCell):
    inner: AbstractCell
    part: Any

    def linearize(self, split):
        return self.inner.linearize(split)

    def push(self, residuals, tangents):
        return self.inner.push(residuals, tangents)

    def pull(self, residuals, cotangent):
        moved, backward = self.inner.pull(residuals, cotangent)
        return [x * (1 + self.part) for x in moved], backward


def run(monkeypatch, found, *more):
    """The command on one case of Newton's method, whose solution is right to rounding."""
    for module in (command, report):
        monkeypatch.setattr(module, "strategies_of", lambda kind: found)
    return command.main(["--kind", "root", "--case", KEY[0], "--precision", "float64", *more])


def test_a_gradient_that_is_off_by_twenty_bounds_is_found(monkeypatch, tmp_path, capsys):
    strategy = strategies.Implicit()
    assert run(monkeypatch, {"implicit": strategy, "off": Off(strategy, 20 * FLOOR)}, "--out", str(tmp_path)) == 1
    said = capsys.readouterr().out
    assert "NOT KNOWN: square root, off, float64: the gradient is off, 20 times what is allowed" in said
    assert "1 of 2 right" in said
    assert {path.name for path in tmp_path.iterdir()} == {"accuracy.csv", "accuracy.md", "accuracy.png"}
    assert (
        "| square root | off | float64 | the gradient is off | 20 | **not known**"
        in (tmp_path / "accuracy.md").read_text()
    )
    found = rows.read(tmp_path / "accuracy.csv")
    assert [row.verdict for row in found] == [rows.RIGHT, rows.GRADIENT]
    for of_group, status in ((found[:1], 0), (found, 1)):
        monkeypatch.setattr(command, "group", lambda *_, of_group=of_group, **__: (of_group, []))
        assert run(monkeypatch, {}) == status
    monkeypatch.setattr(command, "group", lambda *_, **__: (found[:1], ["the condition is 1, not 2"]))
    assert run(monkeypatch, {}) == 1


def judged(found, condition=1.0, key=KEY, **more):
    return judge.judged(key, "root", condition, found, **more)


def test_a_wrong_solution_is_found_though_it_would_explain_any_gradient():
    row = judged(Measured(primal=890.0, tolerances=7e4, gradient=0.05))
    assert row.share < 1
    assert row.verdict == rows.SOLUTION
    assert judge.unknown([row]) == [row]
    assert judged(Measured(primal=math.nan, tolerances=math.nan, gradient=0.0)).verdict == rows.SOLUTION
    assert judged(Measured(primal=1e-9, tolerances=0.1, gradient=9e-9)).verdict == rows.RIGHT


def test_no_error_of_the_solution_explains_a_gradient_that_is_off_by_a_tenth():
    assert judged(Measured(primal=0.9, tolerances=1.0, gradient=0.2)).verdict == rows.GRADIENT
    assert judged(Measured(primal=0.9, tolerances=1.0, gradient=0.2), condition=1e9).verdict == rows.GRADIENT


def test_what_has_no_number_or_raises_is_no_success():
    assert judged(Measured(1e-12, 0.0, math.nan)).verdict == rows.NO_NUMBER
    assert judged(Measured(failure="it is not defined", refused=True)).verdict == rows.REFUSED
    assert judged(Measured(failure="ZeroDivisionError")).verdict == rows.FAILED
    assert len(judge.unknown([judged(Measured(failure="ZeroDivisionError"))])) == 1


def test_the_bound_is_ten_kappa_times_the_error_or_the_rounding():
    assert judge.bound(3.0, 1e-6, "float64") == pytest.approx(3e-5)
    assert judge.bound(3.0, 0.0, "float64") == pytest.approx(3e-10, rel=0.02)
    assert judge.bound(3.0, 0.0, "float32") == pytest.approx(3 * 3.5e-4, rel=0.02)
    assert judge.bound(1e4, 0.0, "float32") == judge.LARGEST
    assert judged(Measured(1e-12, 0.0, 5e-9)).verdict == rows.GRADIENT
    assert judged(Measured(1e-12, 0.0, 5e-9), on_the_way=1e-9).verdict == rows.RIGHT


def test_a_derivative_of_the_program_is_held_to_rounding():
    found = Measured(1e-6, 10.0, 1e-6, program=2e-10)
    assert judged(found).verdict == rows.PROGRAM
    assert judged(found, condition=2.5).verdict == rows.RIGHT
    only = dataclasses.replace(found, gradient=1.0, program=0.0)
    assert judged(only, for_problem=False).verdict == rows.RIGHT


def test_a_known_miss_may_not_grow_nor_change_its_kind(monkeypatch):
    monkeypatch.setitem(KNOWN, KEY, Known(rows.GRADIENT, 3.0, "the reason"))
    small, large = (judged(Measured(1e-12, 0.0, times * FLOOR)) for times in (2.0, 4.0))
    assert judge.unknown([small, large]) == [large]
    assert "known: square root, implicit, float64: the gradient is off" in report.misses([small])
    assert judge.unknown([judged(Measured(1e-12, 0.0, math.nan))])
    right = judged(Measured(1e-12, 0.0, 0.0))
    assert judge.outdated([right]) == [right]
    assert "no miss any more" in report.misses([right])


def test_known_misses_are_of_strategies_and_cases_that_there_are():
    there = {
        (case.name, name, precision)
        for kind, cases in BY_KIND.items()
        for case in cases
        for name in (*EXACT[kind], "unroll")
        for precision in PRECISIONS
    }
    assert set(KNOWN) <= there
    assert all(known.why for known in KNOWN.values())


def test_what_is_computed_again_replaces_its_kind_and_precision():
    old = [judged(Measured(0.0, 0.0, x), key=(*KEY[:2], precision)) for x in (0.0, 1e-3) for precision in PRECISIONS]
    new = [judged(Measured(0.0, 0.0, 0.5))]
    assert rows.merged(old, new) == [old[1], old[3], *new]
