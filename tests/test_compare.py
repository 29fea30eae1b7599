"""`task=compare`: one reference for all rows, the best trade first, a row that fails ends no others."""

import json

import jax
import pytest
from runs import CHECK, COST

from implicitexp import figures, problems, report, solvers, strategies
from implicitexp.compare import compare, trade
from implicitexp.errors import ConfigError
from implicitexp.launch import shipped_strategies
from implicitexp.tracking import open_tracker
from implicitexp.training import Settings

ALL = {
    "unroll": strategies.Unroll(),
    "implicit": strategies.Implicit(),
    "adjoint": strategies.Adjoint(),
    "forward": strategies.Forward(),
    "finite_difference": strategies.FiniteDifference(),
}


@pytest.fixture(autouse=True)
def clearings(monkeypatch):
    """How often the traces of this process were to be forgotten; they are kept, for the tests that come after."""
    found = []
    monkeypatch.setattr(jax, "clear_caches", lambda: found.append(True))
    return found


def a_comparison(folder, problem, rows):
    settings = Settings(problem="mine", gradient="implicit", solver="auto", steps=0, folder=folder, task="compare")
    return compare(problem, solvers.Auto(), rows, settings, open_tracker(None))


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
def test_the_trap_is_shown(tmp_path, capsys):
    """DESIGN 3: at the equilibrium `unroll` is exact for the program and 290 times wrong for the problem."""
    result = a_comparison(tmp_path, problems.Equilibrium(), ALL)
    rows = {row["gradient"]["name"]: row["gradient_check"] for row in result.strategies}
    assert rows["unroll"]["relative_error"] == pytest.approx(289.6, rel=1e-3)
    assert rows["unroll"]["program_error"] < 1e-10
    assert rows["implicit"]["relative_error"] == pytest.approx(rows["unroll"]["relative_error"], rel=1e-6)
    assert rows["adjoint"]["relative_error"] < 1e-6
    assert rows["forward"]["relative_error"] < 1e-6
    assert rows["adjoint"]["program_error"] > 0.9
    order = [row["gradient"]["name"] for row in result.strategies]
    assert set(order[:2]) == {"adjoint", "forward"}
    assert set(order[-2:]) == {"unroll", "implicit"}
    printed = capsys.readouterr().out
    assert "half the step" in printed
    assert "closed form" in printed


def test_the_record_of_a_comparison(tmp_path, clearings):
    rows = {"implicit": strategies.Implicit(), "adjoint": strategies.Adjoint()}
    result = a_comparison(tmp_path, problems.Kepler(), rows)
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["status"] == "finished"
    assert result.exit_status == 0
    for row in written["strategies"]:
        assert set(row) == {"gradient", "status", "remark", "gradient_check", "cost"}
        assert set(row["gradient_check"]) == CHECK
        assert set(row["cost"]) == COST
    one, two = (row["gradient_check"]["uncertainty"] for row in written["strategies"])
    assert one == two  # one reference for all
    assert len(clearings) == 2  # each compiles as in a process of its own
    assert (tmp_path / "compare.png").stat().st_size > 10_000
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_a_row_that_fails_says_why_and_ends_no_others(tmp_path, monkeypatch):
    from implicitexp.checking import Checker

    original = Checker.value

    def breaks(self, params, step):
        if isinstance(self.experiment.gradient, strategies.Adjoint):
            raise RuntimeError("out of memory\nand more")
        return original(self, params, step)

    monkeypatch.setattr(Checker, "value", breaks)
    rows = {"adjoint": strategies.Adjoint(), "implicit": strategies.Implicit()}
    result = a_comparison(tmp_path, problems.Kepler(), rows)
    implicit, adjoint = result.strategies
    assert (result.status, implicit["status"], adjoint["status"]) == ("finished", "finished", "failed")
    assert adjoint["remark"] == "RuntimeError: out of memory"
    assert adjoint["gradient_check"] is None


LAST = strategies.Unroll(last=2)  # not defined for an ODE


@pytest.mark.slow
def test_an_undefined_pair_is_a_row(tmp_path):
    result = a_comparison(tmp_path, problems.Exponential(), {"last": LAST, "implicit": strategies.Implicit()})
    assert [row["status"] for row in result.strategies] == ["finished", "undefined"]
    assert "not defined for an ODE" in result.strategies[1]["remark"]


def test_only_undefined_pairs_are_an_error(tmp_path):
    with pytest.raises(ConfigError, match="not defined for an ODE"):
        a_comparison(tmp_path / "b", problems.Exponential(), {"last": LAST})
    assert not (tmp_path / "b").exists()


@pytest.mark.slow
def test_a_comparison_takes_them_all(tmp_path, capsys):
    shipped = shipped_strategies()
    rows = {name: shipped[name] for name in ("adjoint", "frozen_mesh", "iterated", "leibniz", "one_step", "replay")}
    result = a_comparison(tmp_path, problems.Kepler(), rows)
    found = {row["gradient"]["name"]: row for row in result.strategies}
    assert set(found) == set(rows)
    undefined = {name for name, row in found.items() if row["status"] == "undefined"}
    assert undefined == {"frozen_mesh", "leibniz", "replay"}
    assert found["iterated"]["remark"] == "another name for adjoint"
    assert found["iterated"]["gradient_check"] == found["adjoint"]["gradient_check"]
    printed = capsys.readouterr().out
    assert "Other names of the same gradient: iterated = adjoint." in printed
    assert "For other kinds of equation: frozen_mesh, leibniz, replay" in " ".join(printed.split())


def row(error, uncertainty, milliseconds, label="x"):
    check = {
        "relative_error": error,
        "uncertainty": uncertainty,
        "absolute_error": error,
        "program_error": None,
        "worst": {},
    }
    cost = {"gradient_ms": milliseconds, "forward_ms": 1.0, "memory_bytes": None}
    return {
        "label": label,
        "gradient_check": check,
        "cost": cost,
        "status": "finished",
        "remark": None,
        "error_text": "-",
    }


def test_the_order_is_trusted_by_error_times_time_then_by_error_then_failed():
    slow_exact, fast_exact, fast_wrong, wrong = (
        row(1e-9, 1e-12, 5),
        row(1e-9, 1e-12, 1),
        row(0.1, 0, 0.1),
        row(0.5, 0, 0.1),
    )
    unresolved = row(1e-13, 1e-9, 2)
    failed = {"gradient_check": None, "cost": None}
    rows = [failed, wrong, slow_exact, fast_wrong, unresolved, fast_exact]
    assert sorted(rows, key=trade) == [fast_exact, unresolved, slow_exact, fast_wrong, wrong, failed]


@pytest.mark.parametrize(
    "rows", [[], [row(0.0, 1e-12, 1.0)], [row(1e-3, 1e-12, 0.01, "a"), row(1e-9, 1e-8, 100.0, "b")]], ids=len
)
def test_figures_and_markdown_of_any_number_of_rows(rows, tmp_path):
    figures.compare_figure(rows, "title").savefig(tmp_path / "x.png")
    text = report.markdown_compare("title", rows, 1.0 if rows else None, "caption")
    assert all(f"| {r['label']} |" in text for r in rows)


@pytest.mark.parametrize(("excess", "shown"), [(0.0, "-"), (2e-3, "0.002 in a")])
def test_a_component_within_its_uncertainty_is_no_error_of_zero(excess, shown):
    one = row(1e-3, 1e-4, 1.0)
    one["gradient_check"]["worst"] = {"leaf": "a", "index": [], "relative_error": excess}
    assert report.compare_cells(one | {"error_text": "x", "status": "finished"}, 1.0)[2] == shown
