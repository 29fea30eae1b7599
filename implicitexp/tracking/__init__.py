"""MLflow, at arm's length: it lives in a process of its own (`process.py`), which is fed through a pipe (`pipe.py`).

So its slow import overlaps with compilation, training never waits for a store, and the death of the trainer is
noticed by the process that survives it. This package imports MLflow in that process only, and JAX never.
"""

import abc
import dataclasses
import math
import os
import re
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

from implicitexp.errors import ConfigError
from implicitexp.tracking.pipe import SHARED, Message, Process, shared_process
from implicitexp.tracking.pipe import share as share

DEFAULT_URI = "sqlite:///runs/mlflow.db"
SCHEMES = ("sqlite", "http", "https", "postgresql", "mysql", "mssql")  # a driver may follow: postgresql+psycopg2
NOTE = "mlflow.note.content"  # the Markdown that a run's page shows on top

PARENT = (
    "IMPLICITEXP_PARENT_RUN"  # in the environment: MLflow's id of the run in which those of this process are nested
)

Status = Literal["finished", "failed", "killed"]


class RunHandle:
    """A run that is being recorded. Nothing here blocks, and nothing raises because of MLflow."""

    def __init__(self, send: Callable[[Message], None]):
        self._send = send
        self.key = uuid.uuid4().hex  # our own name of it; MLflow's id is known later

    def log(self, rows: Iterable[tuple[int, dict[str, float]]]) -> None:
        """Metrics by step; what is not a finite number is left out."""
        kept = [(int(step), finite(row)) for step, row in rows]
        self._say("log", rows=[(step, row) for step, row in kept if row], time=now())

    def artifacts(self, paths: Iterable[Path]) -> None:
        """Files, or folders, that are complete."""
        self._say("artifacts", paths=[str(Path(path).absolute()) for path in paths])

    def note(self, markdown: str) -> None:
        """The text on top of the run's page."""
        self.tags({NOTE: markdown})

    def tags(self, tags: dict[str, Any]) -> None:
        self._say("tags", tags={name: str(value) for name, value in tags.items()})

    def finish(self, status: Status) -> None:
        """The last message: how the run ended."""
        self._say("finish", status=status, time=now())

    def _say(self, op: str, **content: Any) -> None:
        self._send({"op": op, "run": self.key, **content})


@dataclasses.dataclass(frozen=True)
class TrackingOutcome:
    """Where the record lies, and what went wrong with it."""

    uri: str | None = None
    runs: dict[str, str] = dataclasses.field(default_factory=dict)  # a handle's key -> MLflow's run id
    url: str | None = None  # the page of the first run; of a store in a file, once the dashboard runs
    hint: str | None = None  # how to open the dashboard
    warning: str | None = None  # one line


class AbstractTracker(abc.ABC):
    """Where runs are recorded, besides their folders."""

    @abc.abstractmethod
    def start(
        self,
        experiment: str,
        name: str,
        params: dict[str, Any],
        tags: dict[str, str],
        parent: RunHandle | None = None,
    ) -> RunHandle:
        """Begin a run; `params` is the flat resolved configuration. Returns at once."""

    @abc.abstractmethod
    def close(self, timeout: float) -> TrackingOutcome:
        """Wait until everything is recorded, at most `timeout` seconds."""


class NullTracker(AbstractTracker):
    """Records nothing: `tracker=none`."""

    def start(self, experiment, name, params, tags, parent=None) -> RunHandle:
        return RunHandle(lambda message: None)

    def close(self, timeout: float) -> TrackingOutcome:
        return TrackingOutcome()


class MLflowTracker(AbstractTracker):
    """Records in one MLflow store, through this process's MLflow process."""

    def __init__(self, process: Process, uri: str, experiment: str | None, tags: dict[str, Any]):
        self.process, self.uri, self.experiment = process, uri, experiment
        self.common_tags = {name: str(value) for name, value in tags.items()}
        self.handles: list[RunHandle] = []

    def start(self, experiment, name, params, tags, parent=None) -> RunHandle:
        handle = RunHandle(self.process.send)
        self.handles.append(handle)
        self.process.send({
            "op": "start", "run": handle.key, "uri": self.uri, "experiment": self.experiment or experiment, "name": name,
            "params": {key: str(value) for key, value in params.items()},
            "tags": self.common_tags | {key: str(value) for key, value in tags.items()},
            "parent": parent.key if parent else None, "parent_id": None if parent else os.environ.get(PARENT), "time": now(),
        })  # fmt: skip
        return handle

    def close(self, timeout: float) -> TrackingOutcome:
        warning = self.process.flush(self.uri, timeout) if self.handles else None
        known = [
            (handle.key, self.process.runs[handle.key]) for handle in self.handles if handle.key in self.process.runs
        ]
        runs = {key: ids["run_id"] for key, ids in known}
        url = run_url(self.uri, known[0][1]["experiment_id"], known[0][1]["run_id"]) if known else None
        return TrackingOutcome(self.uri, runs, url, dashboard_hint(self.uri), warning)


def open_tracker(node: dict[str, Any] | None) -> AbstractTracker:
    """The tracker that a configuration describes: `uri`, `experiment` (null: the problem's name), `tags`.

    None and {} record nothing. Returns at once; MLflow's import goes on in its own process.
    **Raises** `ConfigError` where `uri` is nothing that MLflow opens.
    """
    if not node:
        return NullTracker()
    uri = absolute_uri(node.get("uri"))
    return MLflowTracker(shared_process(), uri, node.get("experiment"), node.get("tags") or {})


def for_children(run_id: str | None, shared: Path | None) -> dict[str, str]:
    """The environment of processes whose runs are to be nested in this one, and recorded by this process's MLflow."""
    found = {PARENT: run_id, SHARED: None if shared is None else str(shared)}
    return {name: value for name, value in found.items() if value is not None}


def absolute_uri(uri: str | None) -> str:
    """The store's address, an SQLite file's as an absolute path. None: runs/mlflow.db in the working directory."""
    uri = uri or DEFAULT_URI
    scheme = re.match(r"([a-z]+)(\+\w+)?://", uri)
    if scheme is None or scheme.group(1) not in SCHEMES:
        raise ConfigError(
            f"tracker.uri={uri} is no store of MLflow: use sqlite:///runs/mlflow.db (a file), http://host:5000 (a server) "
            "or a database such as postgresql://; tracker=none does without"
        )
    if scheme.group(1) != "sqlite":
        return uri
    path = uri.partition(":///")[2]
    if not path or path == ":memory:" or path.endswith("/"):
        raise ConfigError(f"tracker.uri={uri} names no file: use sqlite:///runs/mlflow.db")
    return f"sqlite:///{Path(path).absolute()}"


def run_url(uri: str, experiment_id: str, run_id: str) -> str:
    """The page of a run: on its server, or on the dashboard at its default place."""
    base = uri.rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"
    return f"{base}/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


def dashboard_hint(uri: str) -> str:
    """What to do to see the record."""
    if uri.startswith("http"):
        return f"open {uri}"
    return "implicitexp dashboard" if uri == absolute_uri(None) else f"implicitexp dashboard tracker.uri={uri}"


def finite(row: dict[str, Any]) -> dict[str, float]:
    """MLflow takes finite numbers only."""
    return {name: float(value) for name, value in row.items() if value is not None and math.isfinite(value)}


def now() -> int:
    """Milliseconds since 1970."""
    return int(time.time() * 1000)


def dashboard(uri: str | None = None, port: int = 5000, host: str = "127.0.0.1") -> int:
    """Serve MLflow's pages on a store (None: the default one) until Ctrl-C; returns the exit status.

    **Raises** `ConfigError` where there is no store, or the port is taken.
    """
    from implicitexp.tracking.pages import serve

    return serve(absolute_uri(uri), port, host)
