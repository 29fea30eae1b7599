"""Sweeps: the table, file and figure over given results, and whole sweeps whose jobs have processes of their own."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from implicitexp.sweeps import figures, rows, tables
from implicitexp.sweeps.rows import Ended, Job


def check(error: float | None, uncertainty: float = 1e-9, absolute: float | None = None) -> dict[str, Any]:
    return {"relative_error": error, "uncertainty": uncertainty, "absolute_error": absolute}


def cost(gradient_ms: float) -> dict[str, Any]:
    return {"compile_s": 1.0, "forward_ms": 0.5, "gradient_ms": gradient_ms, "memory_bytes": 2**20, "solver_steps": 7}


def training(loss: float | None, error: float | None, status: str = "finished") -> dict[str, Any]:
    fault = None if status == "finished" else {"step": 3, "reason": "a solve did not converge"}
    checks = {"first": check(error), "last": check(2e-3)}
    return {"status": status, "error": fault, "loss": {"first": 1.0, "last": loss}, "metrics": {"accuracy": 0.9},
            "params": {"file": "params.npz", "size": 2000}, "gradient_check": checks, "cost": cost(error or 1.0)}  # fmt: skip


def comparison(errors: dict[str, float | None]) -> dict[str, Any]:
    strategies = [
        {"gradient": {"name": name}, "status": "finished" if error is not None else "undefined", "remark": None,
         "gradient_check": None if error is None else check(error), "cost": None if error is None else cost(1.0)}
        for name, error in errors.items()
    ]  # fmt: skip
    return training(0.5, 1e-6) | {"strategies": strategies}


def job(folder: Path, number: int, content: dict[str, Any] | None, ended: Ended | None, **keys: str) -> Job:
    where = folder / str(number)
    where.mkdir()
    if content is not None:
        (where / "result.json").write_text(json.dumps(content))
    return Job(number, keys, where, ended)


def trainings(folder: Path) -> list[Job]:
    """Two seeds of two layers: one resolved, one a bound, one failed, one whose process died; one that never began."""
    return [
        job(folder, 0, training(0.2, 1e-3), Ended(0, 3.0), layer="ode", seed="0"),
        job(folder, 1, training(0.1, 1e-12), Ended(0, 4.0), layer="ode", seed="1"),
        job(folder, 2, training(None, None, "failed"), Ended(1, 5.0), layer="residual", seed="0"),
        job(folder, 3, None, Ended(1, 6.0, "its process was killed by SIGKILL, 2 times"), layer="residual", seed="1"),
        job(folder, 4, None, None, layer="identity", seed="0"),
    ]


def test_the_table_over_trainings(tmp_path):
    jobs = trainings(tmp_path)
    found = rows.rows_of(jobs, "gradient_error")
    assert [row.job for row in found] == [1, 0, 2, 3, 4]  # what is not known comes last
    assert [row.job for row in rows.rows_of(jobs, "seconds")] == [0, 1, 2, 3, 4]
    assert [row.job for row in rows.rows_of(jobs, "loss")][:2] == [1, 0]
    assert [row.status for row in found] == ["finished", "finished", "failed", "died", "not started"]
    names, body = tables.cells(found)
    assert names == ["job", "layer", "seed", "loss", "accuracy", "gradient error", "at the end", "gradient ms", "MiB",
                     "time s", "status"]  # fmt: skip
    assert body[0][5] == "< 2e-09"
    assert body[1][5] == "0.001 ± 1e-09"
    assert rows.matrix(found) is None
    means = tables.seed_cells(found)
    assert means is not None
    assert (means[0], means[1][:2]) == (["", "ode"], [["seeds", "2"], ["loss", "0.15 ± 0.07"]])
    assert "at the end" not in tables.fitting(found, 80)[0]
    note = tables.markdown_sweep("Sweep", found, "gradient_error")
    assert (
        "2 of 5 rows finished; first by gradient_error: layer=ode, seed=1, gradient error < 2e-09"
        in note.splitlines()[0]
    )
    assert "- #3: its process was killed by SIGKILL, 2 times" in note
    with rows.write_csv(found, tmp_path / "sweep.csv").open(newline="") as file:
        written = list(csv.DictReader(file))
    assert [line["status"] for line in written] == [row.status for row in found]
    assert (float(written[1]["gradient_error"]), written[3]["loss"], written[0]["parameters"]) == (1e-3, "", "2000")
    figure = figures.sweep_figure(found, "a sweep")
    assert {"loss", "gradient error", "time s"} <= {axes.get_xlabel() for axes in figure.axes}
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == ["ode", "residual", "identity"]


def test_the_matrix_over_comparisons(tmp_path):
    jobs = [
        job(tmp_path, 0, comparison({"implicit": 1e-6, "unroll": 2.0}), Ended(0, 1.0), problem="root"),
        job(tmp_path, 1, comparison({"unroll": 1e-12, "implicit": None}), Ended(0, 1.0), problem="ode"),
        job(tmp_path, 2, None, Ended(2, 1.0), problem="odd"),
    ]
    found = rows.rows_of(jobs, "job")
    assert len(found) == 5
    square = rows.matrix(found)
    assert square is not None
    names, body = tables.matrix_cells(square)
    assert names == ["", "implicit", "unroll"]
    assert body == [["root", "1e-06, 2x", "2, 2x"], ["ode", "undefined", "< 2e-09, 2x"], ["odd", "-", "-"]]
    assert tables.matrix_tables(square, 34) == [(names, body)]
    root, rest = (
        [["implicit", "1e-06, 2x"], ["unroll", "2, 2x"]],
        [["implicit", "undefined", "-"], ["unroll", "< 2e-09, 2x", "-"]],
    )
    assert tables.matrix_tables(square, 33) == [(["", "root"], root), (["", "ode", "odd"], rest)]
    texts = [text.get_text() for text in figures.sweep_figure(found, "a sweep").axes[0].texts]
    assert texts == ["1.0e-06", "2.0e+00", "undefined", "< 1.0e-09", "-", "-"]


def test_swept_keys_are_those_that_differ():
    given = [["problem=a", "+problem.P=[2,1]", "seed=0", "hydra.x=1"], ["problem=a", "+problem.P=[3,1]", "seed=1"]]
    assert rows.swept_keys(given) == ["problem.P", "seed"]
    assert rows.settings_of(given[0]) == {"problem": "a", "problem.P": "[2,1]", "seed": "0"}


@pytest.mark.parametrize("value", [0, -1])
def test_an_exit_status_has_a_word(value, tmp_path):
    (row,) = rows.rows_of_job(job(tmp_path, 0, None, Ended(2 if value else 77)))
    assert row.status == ("refused" if value else "failed")
