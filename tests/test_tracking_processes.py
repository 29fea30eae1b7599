"""MLflow's record when processes are killed, are several at once, or do not wait."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from mlflow_reader import free_port, python, read_back

from implicitexp import tracking

PATIENCE = 60.0  # s, for MLflow's import and a new store on a busy machine
REFUSED = 5.0  # s, the longest that a store out of reach may hold up the end of a run
SERVER = 120.0  # s, for MLflow's server to start

TRAINER = """
import sys, time
from implicitexp import tracking
tracker = tracking.open_tracker({"uri": sys.argv[1]})
run = tracker.start("ode", sys.argv[2], {"seed": 1}, {})
run.log([(i, {"loss": 1.0}) for i in range(100)])
"""
DONE = TRAINER + "run.finish('finished'); print(tracker.close(60).warning)\n"
SHORT = TRAINER + "run.finish('finished')\n"  # does not wait for MLflow's import
SHOT = TRAINER + "tracker.close(60); print('ready', flush=True); time.sleep(60)\n"
INTERRUPTED = (
    TRAINER
    + """
tracker.close(60)
try:
    print('ready', flush=True)  # in here, for the signal may come before the next statement
    time.sleep(60)
except KeyboardInterrupt:
    run.finish("killed"); print(tracker.close(60).warning)
"""
)


@pytest.mark.slow
def test_four_processes_open_a_fresh_store_at_once(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    trainers = [python(DONE, uri, f"run{i}", stdout=subprocess.PIPE) for i in range(4)]
    assert [trainer.communicate()[0].strip() for trainer in trainers] == ["None"] * 4
    runs = read_back(uri)
    assert {name: run["status"] for name, run in runs.items()} == {f"run{i}": "FINISHED" for i in range(4)}
    assert all(len(run["loss"]) == 100 and run["experiment"] == "ode" for run in runs.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "number"), [(SHOT, signal.SIGKILL), (INTERRUPTED, signal.SIGINT)], ids=["shot", "interrupted"]
)
def test_an_end_by_force_is_recorded(code: str, number: int, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with python(code, uri, "run", stdout=subprocess.PIPE, start_new_session=True) as trainer:
        assert trainer.stdout is not None
        assert trainer.stdout.readline() == "ready\n"
        os.killpg(trainer.pid, number)  # as a terminal does it: the whole group
        trainer.communicate()
    run = wait_until_ended(uri, "run")
    assert (run["status"], len(run["loss"])) == ("KILLED", 100)
    assert ("ended" in run["tags"]) == (number == signal.SIGKILL)


@pytest.mark.slow
def test_a_trainer_that_does_not_wait_loses_nothing(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    start = time.monotonic()
    with python(SHORT, uri, "run") as trainer:
        trainer.communicate()
    assert time.monotonic() - start < REFUSED
    run = wait_until_ended(uri, "run")
    assert (run["status"], len(run["loss"])) == ("FINISHED", 100)


@pytest.mark.slow
def test_a_server_that_comes_up_late_gets_everything(tmp_path: Path) -> None:
    port = free_port()
    uri = f"http://127.0.0.1:{port}"
    artifact = tmp_path / "a.txt"
    artifact.write_text("a")
    tracker = tracking.open_tracker({"uri": uri})
    run = tracker.start("ode", "run", {"seed": 1}, {"a": "b"})
    run.log([(0, {"loss": 1.0})])
    outcome = tracker.close(PATIENCE)
    assert outcome.warning is not None
    assert "Connection refused" in outcome.warning
    with mlflow_server(tmp_path, port):
        run.log([(1, {"loss": 2.0})])
        run.artifacts([artifact])
        run.finish("finished")
        outcome = tracker.close(PATIENCE)
        assert outcome.warning is None
        assert outcome.url is not None
        assert outcome.url.startswith(uri)
        read = read_back(uri)["run"]
    assert (read["status"], read["loss"], read["files"]) == ("FINISHED", [[0, 1.0], [1, 2.0]], ["a.txt"])
    assert read["params"] == {"seed": "1"}


@pytest.mark.slow
def test_the_dashboard_says_where_to_look_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    uri, port = f"sqlite:///{tmp_path}/mlflow.db", free_port()
    tracker = tracking.open_tracker({"uri": uri})
    tracker.start("ode", "run", {}, {}).finish("finished")
    assert tracker.close(PATIENCE).warning is None
    code = f"import sys; from implicitexp import tracking; sys.exit(tracking.dashboard({uri!r}, {port}))"
    with python(code, stdout=subprocess.PIPE, cwd=tmp_path) as dashboard:
        assert dashboard.stdout is not None
        lines = [dashboard.stdout.readline() for _ in range(2)]
        assert f"ode  http://127.0.0.1:{port}/#/experiments/1/runs?workflowType=machine_learning" in lines[1]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as page:
            assert "MLflow" in page.read().decode()
        dashboard.send_signal(signal.SIGINT)
        assert dashboard.wait(20) == 0
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10)
    assert {path.name for path in tmp_path.iterdir()} <= {"mlflow.db", "mlflow.db.lock", "artifacts"}


def wait_until_ended(uri: str, name: str) -> dict[str, Any]:
    """The run, once MLflow's process has said how it ended."""
    deadline = time.monotonic() + PATIENCE
    while not ended(Path(uri.removeprefix("sqlite:///")), name):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return read_back(uri)[name]


def ended(database: Path, name: str) -> bool:
    """Looked up past MLflow, which must not open a store that is being made."""
    if not database.exists():
        return False
    with closing(sqlite3.connect(database)) as connection, suppress(sqlite3.OperationalError):
        query = "SELECT count(*) FROM runs WHERE name = ? AND status != 'RUNNING'"
        return connection.execute(query, [name]).fetchone()[0] == 1
    return False


@contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[None]:
    """MLflow's own server on a store in this folder."""
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1",
               "--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "a")]  # fmt: skip
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with subprocess.Popen(command, env=environment, cwd=folder, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                          start_new_session=True) as server:  # fmt: skip
        try:
            deadline = time.monotonic() + SERVER
            while not is_up(port):
                assert time.monotonic() < deadline
                time.sleep(0.3)
            yield
        finally:
            os.killpg(server.pid, signal.SIGTERM)


def is_up(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1.0):
            return True
    except OSError:
        return False
