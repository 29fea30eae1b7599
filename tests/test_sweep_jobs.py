"""Whole sweeps, as a user starts them: by both launchers, with jobs that fail, are killed or interrupted."""

import contextlib
import csv
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import own_problems
import pytest
from command_line import CONSOLE, MODULE, process

from implicitexp import tracking
from implicitexp.tracking import pipe

pytestmark = pytest.mark.slow


@pytest.fixture
def here(tmp_path_factory):
    """A folder with modules and configurations of a user's own."""
    folder = tmp_path_factory.mktemp("own")
    own_problems.written(folder)
    return folder


def test_a_failing_job_of_a_sweep_leaves_the_others_alone(here, tmp_path):
    """Three jobs: one is refused when its loss is traced, one fails in training, one finishes."""
    line = f"-m --config-dir conf +problem=vector,cliff,kepler steps=60 tracker=none optimizer=sgd hydra.sweep.dir={tmp_path}"
    done, _ = process(CONSOLE, f"{line} optimizer.learning_rate=0.1", here)
    assert done.returncode == 2, done.stderr
    assert "own.Vector.loss" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "0").exists()
    results = {number: json.loads((tmp_path / number / "result.json").read_text()) for number in ("1", "2")}
    assert results["1"]["status"] == "failed"
    assert results["1"]["error"]["reason"] == "a solve did not converge"
    assert results["2"]["status"] == "finished"
    assert {"config.yaml", "metrics.jsonl", "result.json", "params.npz"} <= {x.name for x in (tmp_path / "2").iterdir()}
    with (tmp_path / "sweep.csv").open(newline="") as file:
        rows = [(row["problem"], row["status"]) for row in csv.DictReader(file)]
    assert rows == [("kepler", "finished"), ("cliff", "failed"), ("vector", "refused")]
    assert (tmp_path / "sweep.png").exists()


def test_a_local_sweep_survives_a_failing_and_a_killed_job(here, tmp_path):
    """Four jobs at once: one finishes, one fails in training, one is killed at its first attempt, one whenever it runs."""
    store = f"sqlite:///{tmp_path}/mlflow.db"
    line = "-m --config-dir conf problem=kepler,cliff,shot,doomed optimizer=sgd optimizer.learning_rate=0.1 steps=60"
    line += f" hydra/launcher=local hydra.launcher.n_jobs=4 hydra.sweep.dir={tmp_path}/sweep tracker.uri={store}"
    done, _ = process(CONSOLE, line, here, OWN_MARKER=str(tmp_path / "shot"))
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.count("killed by SIGKILL") == 4  # three deaths, and the row's remark
    assert done.stdout.count("it is tried again") == 2
    with (tmp_path / "sweep" / "sweep.csv").open(newline="") as file:
        rows = {row["problem"]: row for row in csv.DictReader(file)}
    words = {"kepler": "finished", "cliff": "failed", "shot": "finished", "doomed": "died"}
    assert {name: row["status"] for name, row in rows.items()} == words
    assert float(rows["kepler"]["gradient_error"]) < 1e-5
    assert (tmp_path / "sweep" / "sweep.png").stat().st_size > 10_000
    assert "own.Kepler" in (tmp_path / "sweep" / "0" / "config.yaml").read_text()
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        runs = database.execute("SELECT run_uuid, name, status FROM runs").fetchall()
        nested = "SELECT count(*) FROM tags WHERE key = 'mlflow.parentRunId' AND value = ?"
        ((parent, status),) = [(run, status) for run, name, status in runs if name.startswith("Sweep over problem")]
        assert (status, database.execute(nested, [parent]).fetchone()) == ("FAILED", (6,))
        note = "SELECT value FROM tags WHERE key = 'mlflow.note.content' AND run_uuid = ?"
        assert "| 3 | doomed |" in database.execute(note, [parent]).fetchone()[0]
    states = sorted((name.split()[0], status) for _, name, status in runs)
    assert states == [("Sweep", "FAILED"), ("cliff", "FAILED"), ("doomed", "KILLED"), ("doomed", "KILLED"),
                      ("kepler", "FINISHED"), ("shot", "FINISHED"), ("shot", "KILLED")]  # fmt: skip


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "SIGTERM"])
def test_an_interrupted_local_sweep_ends_its_jobs(tmp_path, number, status):
    """Ctrl-C reaches the whole process group, as in a terminal; SIGTERM the parent only."""
    line = f"-m problem=root_kepler seed=0,1,2 steps=100000000 hydra.sweep.dir={tmp_path}/sweep"
    line += f" tracker.uri=sqlite:///{tmp_path}/mlflow.db hydra/launcher=local hydra.launcher.n_jobs=2"
    running = subprocess.Popen([*MODULE, *line.split()], cwd=tmp_path, env={**os.environ, "JAX_PLATFORMS": "cpu"},
                               stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)  # fmt: skip
    logs = [tmp_path / "sweep" / job / "metrics.jsonl" for job in "01"]
    deadline = time.monotonic() + 120
    while not all(log.exists() and log.stat().st_size for log in logs) and time.monotonic() < deadline:
        time.sleep(0.1)
    if number == signal.SIGINT:
        os.killpg(running.pid, number)
    else:
        running.send_signal(number)
    output, _ = running.communicate(timeout=90)
    assert running.returncode == status, output
    assert "Traceback" not in output
    with (tmp_path / "sweep" / "sweep.csv").open(newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["killed", "killed", "not started"]
    for log in logs:
        assert json.loads(log.with_name("result.json").read_text())["status"] == "killed"
    deadline = time.monotonic() + 60
    while (
        left := [pid for pid in Path("/proc").glob("[0-9]*") if in_folder(pid, tmp_path)]
    ) and time.monotonic() < deadline:
        time.sleep(0.1)  # MLflow's process has still to write down what it was told
    assert left == []
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        assert database.execute("SELECT status FROM runs").fetchall() == [("KILLED",)] * 3


def in_folder(process_folder: Path, folder: Path) -> bool:
    """Whether a process of /proc works in this folder."""
    with contextlib.suppress(OSError):
        return (process_folder / "cwd").resolve() == folder
    return False


def test_the_fork_server_computes_nothing():
    """A backend of JAX has threads, which a fork does not take along."""
    code = "import implicitexp.sweeps.preloaded; from jax._src import xla_bridge; print(list(xla_bridge._backends))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_sweep_in_which_nothing_could_start_leaves_nothing(here):
    done, _ = process(CONSOLE, "-m --config-dir conf problem=vector,words tracker=none", here)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 2
    assert not (here / "runs").exists()


JOB = """
import sys
from implicitexp import tracking
tracker = tracking.open_tracker({"uri": sys.argv[1]})
run = tracker.start("ode", "job", {}, {})
run.log([(i, {"loss": 1.0}) for i in range(100)])
run.finish("killed")
tracker.close(0.1)
"""


def test_last_words_of_a_job_are_recorded_after_its_sweep_has_ended(tmp_path):
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    shared = tracking.share()
    tracker = tracking.open_tracker({"uri": uri})
    parent = tracker.start("ode", "sweep", {}, {})
    run_id = tracker.close(60.0).runs[parent.key]
    keeper = pipe.shared_process().end.popen
    keeper.send_signal(signal.SIGSTOP)
    environment = os.environ | tracking.for_children(run_id, shared)
    subprocess.run([sys.executable, "-c", JOB, uri], env=environment, check=True)
    parent.finish("killed")
    pipe.shared_process().farewell()
    keeper.send_signal(signal.SIGCONT)
    assert keeper.wait(60) == 0
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:
        assert database.execute("SELECT name, status FROM runs ORDER BY name").fetchall() == [
            ("job", "KILLED"),
            ("sweep", "KILLED"),
        ]
        assert database.execute("SELECT count(*) FROM metrics").fetchone() == (100,)
