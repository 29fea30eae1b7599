"""`benchmarks/peers`: the clock, the verdict, the tables and the figure; and cases of tiny size, from end to end."""

import csv
import itertools
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import quad

sys.path.insert(0, str(Path(__file__).parents[1]))  # the benchmarks are no part of what is installed

from benchmarks.peers import figure, integrals, ode_small, roots, rows, table, timing, verdict
from benchmarks.peers import fixed_point_truth as truth
from benchmarks.peers.__main__ import CASES, run
from benchmarks.peers.cases import Entry, Reference, relative_error
from benchmarks.peers.rows import Memory, Result, Row
from benchmarks.peers.timing import Times


def row(role, name, milliseconds, error, compile_s=1.0, **more):
    t = milliseconds / 1e3
    return Row(role, role, name, Times(t, t, t, 3), error, compile_s, 2**20, **more)


def result(*found, **more):
    return Result(1, "a case", list(found), 1e-12, **more)


# -- the clock ------------------------------------------------------------------------------------------------------------


class Clock:
    """Calls that are not made, and take what they are told to."""

    def __init__(self, seconds, log, name):
        self.each, self.log, self.name = seconds, log, name

    def seconds(self, calls):
        self.log.append((self.name, calls))
        return [self.each] * calls


def test_all_are_called_in_turn_and_each_has_its_share():
    log = []
    runners = {name: Clock(s, log, name) for name, s in (("fast", 1e-5), ("usual", 0.1), ("slow", 20.0))}
    times = timing.alternated(runners, budget=1.0)
    assert {name: t.turns for name, t in times.items()} == {"fast": timing.MOST, "usual": 10, "slow": 1}
    assert {name: t.median for name, t in times.items()} == pytest.approx({"fast": 1e-5, "usual": 0.1, "slow": 20.0})
    assert max(calls for name, calls in log if name == "fast") == 200  # fill a turn of 2 ms
    after_warm_up = [name for name, _ in log[3:]]
    longest = max(len(list(same)) for name, same in itertools.groupby(after_warm_up) if name == "usual")
    assert longest == 1  # never twice in succession, but spread over the rounds


def test_median_and_quartiles():
    assert Times.of([3.0, 1.0, 2.0, 5.0, 4.0]) == Times(3.0, 2.0, 4.0, 5)
    assert Times.of([2.0]) == Times(2.0, 2.0, 2.0, 1)


# -- the verdict ----------------------------------------------------------------------------------------------------------


def test_a_peer_is_compared_with_the_fastest_of_ours_that_is_as_accurate():
    ours = [row("ours", "quick", 1.0, 1e-3), row("ours", "exact", 2.0, 1e-6)]
    loose, tight = row("jax", "loose", 4.0, 2e-3), row("jax", "tight", 6.0, 1e-6)
    judged = verdict.judge(result(*ours, loose, tight, row("floor", "floor", 1.6, None)))
    assert (judged.jax.peer.name, judged.jax.ours.name, judged.jax.faster) == ("tight", "exact", 3.0)
    assert judged.over_floor == pytest.approx(1.0 / 1.6)  # the quick one is as accurate as the loose peer
    assert judged.torch is None
    assert judged.missed() == ["compilation 1.00 of the peer's, not 0.5"]


def test_a_peer_that_is_more_accurate_than_all_of_ours_is_a_miss():
    judged = verdict.judge(result(row("ours", "ours", 1.0, 1e-3), row("jax", "better", 9.0, 1e-6, compile_s=4.0)))
    assert not judged.jax.as_accurate
    assert "less accurate than jax better (1.0e-03 against 1.0e-06)" in judged.missed()[0]
    assert "9.00*" in table.summary([judged])
    within = verdict.judge(result(row("ours", "ours", 1.0, 1e-3), row("jax", "better", 9.0, 1e-6), tolerance=1e-2))
    assert "9.00+" in table.summary([within])
    assert "1 more at a larger error" in verdict.goals([within])[0]


def test_to_the_tolerance_the_fastest_of_ours_below_it_will_do():
    ours = [row("ours", "quick", 1.0, 1e-9), row("ours", "exact", 8.0, 1e-14)]
    judged = verdict.judge(result(*ours, row("jax", "exact", 4.0, 1e-14), tolerance=1e-8))
    assert (judged.jax.faster, judged.by_tolerance.faster) == (0.5, 4.0)


def test_a_slower_one_and_a_wrong_one():
    slower = verdict.judge(result(row("ours", "ours", 2.0, 1e-6), row("torch", "peer", 1.0, 1e-6)))
    assert slower.missed() == ["slower than torch's torch peer: 0.50 times as fast"]
    wrong = verdict.judge(result(row("ours", "ours", 2.0, 1e-6), row("torch", "peer", 1.0, 0.5)))
    assert wrong.torch is None
    broken = verdict.judge(result(row("ours", "ours", 2.0, math.nan), row("torch", "peer", 1.0, 1e-6)))
    assert broken.best is None


def test_goals_are_counted():
    memory = [Memory("implicitexp", "Reversible()", {100: 1000, 10_000: 1050})]
    judged = [
        verdict.judge(result(row("ours", "a", 1.0, 1e-6), row("jax", "b", factor, 1e-6, compile_s=c), memory=memory))
        for factor, c in ((2.0, 4.0), (8.0, 1.0))
    ]
    lines = verdict.goals(judged)
    assert "at least 1.5: 4.00" in lines[1]
    assert "no case" in lines[3]
    assert lines[4].endswith("1 of 2 cases")
    assert lines[-1].endswith("100 to 10,000 steps: 1.05 times")


def test_error_is_relative_to_the_norm():
    reference = Reference.of_two(
        {"a": np.array([3.0]), "b": np.array([[4.0]])}, {"a": np.array([3.0]), "b": np.array([[4.5]])}
    )
    assert reference.uncertainty == pytest.approx(0.1)
    assert relative_error([3.0, 4.05], reference) == pytest.approx(0.01)


# -- tables and figure ----------------------------------------------------------------------------------------------------


def some_results():
    memory = [Memory("implicitexp", "Reversible()", {100: 2**20, 10_000: 3 * 2**20})]
    failed = Row("torch", "torchdiffeq", "odeint", remark="no .venv-peers/bin/python")
    whole = [row("ours", "ours", 1.0, 1e-6), row("jax", "peer", 2.0, 1e-6), row("floor", "floor", 0.5, None), failed]
    return [result(*whole, memory=memory), Result(2, "alone", [row("ours", "ours", 250.0, 0.0)], 1e-12)]


def test_tables_say_what_was_measured_and_what_was_not():
    text = table.document(some_results(), 60.0)
    assert (
        "| 1 | a case | ours | 1 | 1.0e-06 | jax peer | 2 | 1.0e-06 | 2.00 | 2.00 | no peer | no peer | 2.00 | 1.00 |"
        in text
    )
    assert "| torchdiffeq | odeint | not run: no .venv-peers/bin/python |" in text
    assert "| implicitexp | Reversible() | 1 | 3 |" in text
    assert "Uncertainty of the reference: 1.0e-12. No peer." in text
    assert "| 2 | alone | ours | 250 | < 1.0e-12 | no JAX peer |" in text


def test_the_csv_comes_back_and_the_figure_is_drawn(tmp_path):
    rows.write(some_results(), tmp_path / "peers.csv")
    with (tmp_path / "peers.csv").open(newline="") as file:
        assert next(csv.reader(file)) == list(rows.COLUMNS)
    found = rows.read(tmp_path / "peers.csv")
    assert [r.rows for r in found] == [r.rows for r in some_results()]
    figure.draw(found, tmp_path / "peers.png")
    assert (tmp_path / "peers.png").read_bytes()[:4] == b"\x89PNG"


# -- cases ----------------------------------------------------------------------------------------------------------------


def test_the_list_has_the_fourteen_cases():
    assert [entry.number for entry in CASES] == list(range(1, 15))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("entry", "largest"),
    [
        (Entry(1, "float64", ode_small.usual), 1e-5),  # ten times the tolerance
        (Entry(9, "float64", roots.many_roots), 1e-10),  # Newton's last step squares an error below 1e-8
    ],
    ids=lambda x: str(getattr(x, "number", "")),
)
def test_a_tiny_case_from_end_to_end(entry, largest, tmp_path, capsys):
    (found,) = run([entry], 0.01, tmp_path, small=True)
    judged = [r for r in found.rows if r.error is not None]
    assert {r.role for r in judged} >= {"ours", "jax"}
    assert max(r.error for r in judged) < largest
    assert all(r.compile_s > 0 and r.memory_bytes >= 0 for r in judged if r.role in ("ours", "jax"))
    assert all(r.remark for r in found.rows if r.times is None)  # such as a library that is not installed
    assert {path.name for path in tmp_path.iterdir()} == {"peers.md", "peers.csv", "peers.png"}
    assert found.title in capsys.readouterr().out


# -- references: against central differences of the value, computed another way ------------------------------------------

STEP, TRUNCATED = 1e-5, 1e-8  # of a difference: STEP^2 times a third derivative, and rounding over STEP


def _difference(value, point, direction):
    return (value(point + STEP * direction) - value(point - STEP * direction)) / (2 * STEP)


def _iterated(flat):
    matrix, shift = flat[:16].reshape(4, 4), flat[16:]
    z = np.zeros(4)
    for _ in range(200):
        z = np.tanh(matrix @ z + shift)
    return z @ z


def _solved(flat):
    z = np.linalg.solve(np.eye(4) - flat[:16].reshape(4, 4), flat[16:])
    return z @ z


def _integrated(flat):
    heights, places = flat.reshape(2, 3)
    return (
        quad(lambda x: np.sum(heights / (1 + integrals.SHARPNESS**2 * (x - places) ** 2)), -1, 1, epsabs=1e-13)[0] ** 2
    )


@pytest.mark.parametrize(
    ("reference", "value", "size"),
    [
        (lambda p: truth.tanh_reference(p[:16].reshape(4, 4), p[16:]), _iterated, 20),
        (lambda p: truth.affine_reference(p[:16].reshape(4, 4), p[16:]), _solved, 20),
        (lambda p: integrals.reference(*p.reshape(2, 1, 3)), _integrated, 6),
    ],
    ids=["tanh", "affine", "integral"],
)
def test_references(reference, value, size):
    rng = np.random.default_rng(0)
    point, direction = 0.3 * rng.normal(size=size), rng.normal(size=size)
    found = reference(point)
    assert found.gradient @ direction == pytest.approx(_difference(value, point, direction), abs=TRUNCATED)
    assert found.uncertainty < 1e-10
