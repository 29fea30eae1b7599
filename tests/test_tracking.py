"""MLflow's record: read back through MLflow's own client, out of reach, killed, and written by several at once."""

import json
import os
import signal
import socket
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

from implicitexp import tracking
from implicitexp.errors import ConfigError
from implicitexp.tracking import pipe

PATIENCE = 60.0  # s, for MLflow's import and a new store on a busy machine
AT_ONCE = 0.5  # s, more than anything takes that does not wait
REFUSED = 5.0  # s, the longest that a store out of reach may hold up the end of a run
SERVER = 120.0  # s, for MLflow's server to start

READER = """
import json, sys
from mlflow import MlflowClient

def read(run):
    history = client.get_metric_history(run.info.run_id, "loss")
    files = [file.path for file in client.list_artifacts(run.info.run_id)]
    return {"id": run.info.run_id, "status": run.info.status, "experiment": experiments[run.info.experiment_id].name,
            "experiment_tags": experiments[run.info.experiment_id].tags, "files": files,
            "loss": [[m.step, m.value] for m in history], "artifact_uri": run.info.artifact_uri, **run.data.to_dictionary()}

client = MlflowClient(tracking_uri=sys.argv[1])
experiments = {e.experiment_id: e for e in client.search_experiments()}
print(json.dumps({run.info.run_name: read(run) for run in client.search_runs(list(experiments))}))
"""


def python(code: str, *args: str, **options: Any) -> subprocess.Popen[str]:
    """A process of its own that runs this code."""
    environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
    return subprocess.Popen([sys.executable, "-c", code, *args], text=True, env=environment, **options)


def read_back(uri: str) -> dict[str, Any]:
    """All runs of a store by their names, in the words of MLflow's client."""
    with python(READER, uri, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as reader:
        return json.loads(reader.communicate()[0])


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store that is made by the first run in it."""
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/deep/mlflow.db"


# --- the record ---------------------------------------------------------------------------------------------------


def test_what_is_logged_is_read_back(store: str, tmp_path: Path) -> None:
    figure, folder = tmp_path / "loss.png", tmp_path / "figures"
    figure.write_text("a picture")
    folder.mkdir()
    (folder / "a.txt").write_text("a")
    params = {"problem.P[0]": 1.5, "long": "x" * 7000} | {f"p{i}": i for i in range(250)}
    tracker = tracking.open_tracker({"uri": store, "experiment": None, "tags": {"team": "one"}})
    parent = tracker.start("ode", "compare", params, {"git_commit": "abc1"})
    child = tracker.start("ode", "unroll", {"gradient": "unroll"}, {}, parent)
    parent.log([(i, {"loss": 1.0 / (i + 1), "bad": float("nan")}) for i in range(1200)])
    parent.log([(1200, {"grad/relative_error": 1e-7, "reference/uncertainty": 0.0})])
    parent.tags({f"tag{i}": i for i in range(150)})
    parent.artifacts([figure, folder, tmp_path / "missing.png"])
    parent.note("**Right** to 1e-7")
    child.finish("failed")
    parent.finish("finished")
    outcome = tracker.close(PATIENCE)

    assert outcome.warning is not None
    assert "missing.png" in outcome.warning
    runs = read_back(store)
    assert {name: run["status"] for name, run in runs.items()} == {"compare": "FINISHED", "unroll": "FAILED"}
    assert outcome.runs == {parent.key: runs["compare"]["id"], child.key: runs["unroll"]["id"]}
    assert outcome.url is not None
    assert f"/runs/{runs['compare']['id']}?" in outcome.url
    assert runs["unroll"]["tags"]["mlflow.parentRunId"] == runs["compare"]["id"]
    run = runs["compare"]
    assert run["experiment_tags"]["mlflow.sharedViewState.implicitexp"].startswith("deflate;")
    assert run["experiment"] == "ode"
    assert run["loss"] == [[i, 1.0 / (i + 1)] for i in range(1200)]
    metrics = {"loss": 1.0 / 1200, "grad/relative_error": 1e-7}
    assert run["metrics"] == pytest.approx(metrics | {"reference/uncertainty": 0.0})
    assert run["params"] == {"problem.P_0_": "1.5", "long": "x" * 6000} | {f"p{i}": str(i) for i in range(250)}
    tags = {
        "git_commit": "abc1",
        "mlflow.source.git.commit": "abc1",
        "team": "one",
        "tag149": "149",
        "mlflow.note.content": "**Right** to 1e-7",
    }
    assert tags.items() <= run["tags"].items()
    assert sorted(run["files"]) == ["figures", "loss.png"]
    assert run["artifact_uri"].startswith(f"file://{Path(store.removeprefix('sqlite:///')).parent}/artifacts/")
    assert pipe.shared_process() is pipe.shared_process()
    assert "jaxlib" not in Path(f"/proc/{pipe.shared_process().end.popen.pid}/maps").read_text()


def test_the_trainer_never_waits_for_the_pipe(store: str) -> None:
    tracker = tracking.open_tracker({"uri": store, "experiment": "other"})
    process = pipe.shared_process().end.popen
    process.send_signal(signal.SIGSTOP)
    try:
        start = time.monotonic()
        run = tracker.start("ode", "stopped", {}, {})
        for i in range(5):  # more than the 64 kB that a pipe holds
            run.log([(1000 * i + j, {"loss": 1.0}) for j in range(1000)])
        run.finish("killed")
        assert time.monotonic() - start < AT_ONCE
        outcome = tracker.close(0.1)
        assert outcome.warning is not None
        assert "in the background" in outcome.warning
    finally:
        process.send_signal(signal.SIGCONT)
    outcome = tracker.close(PATIENCE)
    assert outcome.warning is None
    with closing(sqlite3.connect(store.removeprefix("sqlite:///"))) as database:  # quicker than MLflow's client
        query = "SELECT count(*), status FROM metrics JOIN runs USING (run_uuid) WHERE run_uuid = ?"
        assert database.execute(query, [outcome.runs[run.key]]).fetchone() == (5000, "KILLED")


# --- out of reach -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["no server", "no folder", "no database"])
def test_a_store_out_of_reach_is_a_warning(broken: str, store: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a database at all, but longer than its header of a hundred bytes" * 4)
    uri, reason = {
        "no server": (f"http://127.0.0.1:{free_port()}", "Connection refused"),
        "no folder": (f"sqlite:///{tmp_path}/file/mlflow.db", "File exists"),
        "no database": (f"sqlite:///{tmp_path}/file", "file is not a database"),
    }[broken]
    warm = tracking.open_tracker({"uri": store})
    warm.start("ode", "warm", {}, {}).finish("finished")
    assert warm.close(PATIENCE).warning is None
    tracker = tracking.open_tracker({"uri": uri})
    run = tracker.start("ode", "run", {}, {})
    run.log([(0, {"loss": 1.0})])
    run.finish("finished")
    start = time.monotonic()
    outcome = tracker.close(2 * REFUSED)
    assert time.monotonic() - start < REFUSED
    assert outcome.warning is not None
    assert uri in outcome.warning
    assert reason in outcome.warning
    assert (outcome.runs, outcome.url) == ({}, None)


def test_a_process_that_does_not_start_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe, "MODULE", "implicitexp.tracking.absent")
    tracker = tracking.MLflowTracker(pipe.Process(), "sqlite:////nowhere/mlflow.db", None, {})
    run = tracker.start("ode", "run", {}, {})
    run.log([(i, {"loss": 1.0}) for i in range(100_000)])
    run.finish("finished")
    outcome = tracker.close(PATIENCE)
    assert outcome.warning is not None
    assert "No module named implicitexp.tracking.absent" in outcome.warning
    tracker.process.farewell()


def test_no_tracker_records_nothing() -> None:
    for node in (None, {}):
        tracker = tracking.open_tracker(node)
        run = tracker.start("ode", "run", {"a": 1}, {})
        run.log([(0, {"loss": 1.0})])
        run.finish("finished")
        assert tracker.close(0.0) == tracking.TrackingOutcome()


def test_neither_jax_nor_mlflow_is_imported_by_the_trainer() -> None:
    code = "import sys, implicitexp.tracking; print(sorted({'jax', 'mlflow', 'numpy'} & set(sys.modules)))"
    with python(code, stdout=subprocess.PIPE) as process:
        assert process.communicate()[0].strip() == "[]"


# --- addresses ----------------------------------------------------------------------------------------------------


def test_addresses_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert tracking.absolute_uri(None) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert tracking.absolute_uri("sqlite:///a.db") == f"sqlite:///{tmp_path}/a.db"
    assert tracking.absolute_uri("sqlite:////b/a.db") == "sqlite:////b/a.db"
    assert tracking.absolute_uri("http://host:5000") == "http://host:5000"
    assert tracking.absolute_uri("postgresql+psycopg2://u@h/d") == "postgresql+psycopg2://u@h/d"


@pytest.mark.parametrize(
    "uri", ["mlruns", "file:///mlruns", "sqlite://", "sqlite:///:memory:", "sqlite:///runs/", "ftp://x"]
)
def test_other_addresses_are_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"tracker\.uri=.*sqlite:///runs/mlflow\.db"):
        tracking.open_tracker({"uri": uri})


def test_a_dashboard_needs_a_store_and_a_port(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no store .*/mlflow\.db: run `implicitexp problem=ode`"):
        tracking.dashboard(f"sqlite:///{tmp_path}/mlflow.db")
    (tmp_path / "mlflow.db").touch()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"Port {port} .* give another"):
            tracking.dashboard(f"sqlite:///{tmp_path}/mlflow.db", port)


def test_the_dashboard_of_a_server_is_the_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert tracking.dashboard("http://host:5000") == 0
    assert "open http://host:5000" in capsys.readouterr().out


# --- processes ----------------------------------------------------------------------------------------------------

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
tracker.close(60); print('ready', flush=True)
try:
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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


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
