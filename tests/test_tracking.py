"""MLflow's record: read back through MLflow's own client, and out of reach."""

import queue
import signal
import socket
import sqlite3
import subprocess
import time
from contextlib import closing
from pathlib import Path

import pytest
from mlflow_reader import free_port, python, read_back

from implicitexp import tracking
from implicitexp.errors import ConfigError
from implicitexp.tracking import pipe

PATIENCE = 60.0  # s, for MLflow's import and a new store on a busy machine
AT_ONCE = 0.5  # s, more than anything takes that does not wait
REFUSED = 5.0  # s, the longest that a store out of reach may hold up the end of a run


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


def test_metrics_of_a_run_go_together(monkeypatch):
    """In a row they are one message, with the time of the last; any other message, or a second's silence, ends the row."""
    monkeypatch.setattr(pipe, "PACE", 0.05)

    def log(run, step):
        return {"op": "log", "run": run, "rows": [(step, {"loss": 1.0})], "time": step}

    outbox = queue.SimpleQueue()
    for message in [log("a", 0), log("a", 1), {"op": "tags", "run": "a"}, log("a", 2), log("b", 3)]:
        outbox.put(message)
    sent = pipe.paced(outbox)
    first = next(sent)
    assert ([step for step, _ in first["rows"]], first["time"]) == ([0, 1], 1)
    assert next(sent)["op"] == "tags"
    assert [next(sent)["run"] for _ in range(2)] == ["a", "b"]  # the last one without anything after it
    outbox.put(log("b", 4))
    outbox.put(None)
    assert [message["time"] for message in sent] == [4]
