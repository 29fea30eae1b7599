"""MLflow's own pages on a store, for as long as the command runs."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from types import FrameType
from typing import IO

from implicitexp.errors import ConfigError
from implicitexp.tracking.store import VIEW, connect, locked

# Without job execution the server starts in half the time: it runs language models, not experiments.
ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
START = 120.0  # s, the longest that a server may take to answer; 10 to 30 s are usual
POLL = 0.2  # s
PATIENCE = 5.0  # s, between asking the server to end and ending it
MOST_EXPERIMENTS = 20  # that are listed


def serve(uri: str, port: int, host: str) -> int:
    """Serve the pages until Ctrl-C. Returns an exit status: 0, or 1 if the server ended by itself.

    **Raises** `ConfigError` where there is no store, or the port is taken.
    """
    if uri.startswith(("http://", "https://")):
        print(f"The dashboard of {uri} is that server itself: open {uri}")
        return 0
    database = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:") else None
    if database is not None and not database.exists():
        raise ConfigError(
            f"There is no store {database}: run `implicitexp problem=ode` in this folder first, "
            "or name another one: `implicitexp dashboard tracker.uri=sqlite:///PATH/mlflow.db`"
        )
    _check_port(host, port)
    if database is not None:
        with locked(database):  # a run may be making the store at this moment
            pass
    os.environ.update(ENVIRONMENT)
    for number in (signal.SIGTERM, signal.SIGINT):  # a shell's background job ignores SIGINT unless told otherwise
        signal.signal(number, _interrupt)
    with tempfile.TemporaryFile() as complaints:
        server = subprocess.Popen(_command(uri, port, host, database), stderr=complaints, stdout=complaints,
                                  start_new_session=True)  # fmt: skip
        try:
            return _watch(server, uri, f"http://{host}:{port}", complaints)
        except KeyboardInterrupt:
            return 0
        finally:
            _end(server)


def _command(uri: str, port: int, host: str, database: Path | None) -> list[str]:
    artifacts = (database.parent / "artifacts").as_uri() if database else (Path.cwd() / "runs" / "artifacts").as_uri()
    # -P: a folder called mlflow in the working directory is not MLflow.
    return [
        sys.executable, "-P", "-m", "mlflow", "server", "--backend-store-uri", uri, "--default-artifact-root", artifacts,
        "--host", host, "--port", str(port), "--workers", "1",
    ]  # fmt: skip


def _watch(server: subprocess.Popen[bytes], uri: str, base: str, complaints: IO[bytes]) -> int:
    """Say where to look as soon as there is something to see, then wait."""
    print(f"Starting MLflow's pages on {uri} (Ctrl-C ends them) ...", flush=True)
    addresses = run_tables(uri, base)  # imports MLflow while the server does the same
    deadline = time.monotonic() + START
    while server.poll() is None and not answers(base):
        if time.monotonic() > deadline:
            print(f"The server did not answer within {START:.0f} s:\n{_tail(complaints)}", file=sys.stderr)
            return 1
        time.sleep(POLL)
    if server.poll() is None:
        print("\n".join(addresses or [f"There is no experiment yet: {base}"]), flush=True)
    server.wait()
    print(f"The server ended by itself:\n{_tail(complaints)}", file=sys.stderr)
    return 1


def run_tables(uri: str, base: str) -> list[str]:
    """A line for each experiment, the newest first: its name and the address of its table of runs.

    `/experiments/ID` alone lands on a page for language models. An order in the address
    would switch the view off, whose columns and order are in a tag of the experiment.
    """
    client = connect(uri)
    found = client.search_experiments(max_results=MOST_EXPERIMENTS, order_by=["last_update_time DESC"])
    named = [experiment for experiment in found if experiment.name != "Default"]
    width = max((len(experiment.name) for experiment in named), default=0)
    query = f"workflowType=machine_learning&viewStateShareKey={VIEW}"
    return [f"{e.name:<{width}}  {base}/#/experiments/{e.experiment_id}/runs?{query}" for e in named]


def answers(base: str) -> bool:
    """Whether the server is up."""
    try:
        with urllib.request.urlopen(f"{base}/health", timeout=1.0) as response:
            return response.status == 200
    except OSError:
        return False


def _check_port(host: str, port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port just left is free
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"Port {port} of {host} cannot be used ({error.strerror}): give another, {port + 1} say"
            ) from error


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _end(server: subprocess.Popen[bytes]) -> None:
    """End the server and its workers, which have a session of their own."""
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGTERM)
        try:
            server.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _tail(complaints: IO[bytes]) -> str:
    complaints.seek(0)
    return "\n".join(complaints.read().decode(errors="replace").strip().splitlines()[-10:])
