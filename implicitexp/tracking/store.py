"""One MLflow store, and how a message is told to it. Imports MLflow when it is first needed."""

import base64
import contextlib
import fcntl
import getpass
import json
import os
import re
import sqlite3
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlflow import MlflowClient

METRICS_PER_BATCH = 1000  # MLflow's own limits, here and below
PARAMS_PER_BATCH = 100
PARAM_LENGTH = 6000
TAG_LENGTH = 8000
KEY_LENGTH = 250
FORBIDDEN = re.compile(r"[^\w\-. :/]")  # in the names of params, tags and metrics
LONGEST_PAUSE = 60.0  # s, between two attempts to reach a store
MOST_WAITING = 20_000  # messages that are kept for a store out of reach; more would eat the training's memory
# What MLflow says of a message that it will never take; anything else that it says is taken for an outage.
REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS", "BAD_REQUEST",
            "PERMISSION_DENIED", "INVALID_STATE", "NOT_IMPLEMENTED")  # fmt: skip
# The pages open on their part for language models unless an experiment says what it is, and its table of runs has no
# metrics until somebody chooses them: MLflow keeps such a choice in a tag, and an address can ask for it by name.
VIEW = "implicitexp"


def deflated(state: dict[str, Any]) -> str:
    """As MLflow's pages write a view's state."""
    return "deflate;" + base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()


COLUMNS = ("loss", "grad/relative_error", "reference/uncertainty", "grad/program_error", "cost/gradient_ms")
EXPERIMENT_TAGS = {
    "mlflow.experimentKind": "custom_model_development",
    f"mlflow.sharedViewState.{VIEW}": deflated(
        {
            "selectedColumns": [f"metrics.`{name}`" for name in COLUMNS],
            # Sorted by a metric, the best run stands first and the strategies of a comparison are unfolded.
            "orderByKey": "metrics.`grad/relative_error`",
            "orderByAsc": True,
        }
    ),
}

Message = dict[str, Any]
Say = Callable[[Message], None]


class Refused(Exception):
    """A message that cannot be kept, however often one tries; the text says what to do."""


@contextlib.contextmanager
def locked(database: Path) -> Iterator[None]:
    """Only one process at a time opens a store: several at once destroy one that is new."""
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(database.name + ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def connect(uri: str) -> "MlflowClient":
    """A client on a store that exists afterwards."""
    from mlflow import MlflowClient

    if not uri.startswith("sqlite:"):
        return MlflowClient(tracking_uri=uri, registry_uri=uri)
    database = Path(uri.removeprefix("sqlite:///"))
    with locked(database):
        # MLflow tries for 100 s to open a file that is not a database; SQLite says so at once.
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA schema_version")
        return MlflowClient(tracking_uri=uri, registry_uri=uri)


class Store:
    """One tracking store, and the messages that it has not taken yet."""

    def __init__(self, uri: str, say: Say):
        self.uri, self.say = uri, say
        self.client: MlflowClient | None = None
        self.experiments: dict[str, str] = {}  # name -> id
        self.runs: dict[str, str] = {}  # sender's name -> id
        self.waiting: deque[Message] = deque()
        self.failures, self.next_attempt = 0, 0.0
        self.trouble: str | None = None  # why the store is out of reach, while it is
        self.warnings: list[str] = []  # what was left out, and why

    def put(self, message: Message) -> None:
        if len(self.waiting) >= MOST_WAITING and message["op"] == "log":
            self.warn("it was out of reach for so long that metrics had to be dropped")
        else:
            self.waiting.append(message)

    def drain(self) -> None:
        """Hand over what waits, in order; a message leaves the queue only once it has arrived."""
        while self.waiting:
            try:
                self._do(self.waiting[0])
            except Exception as error:
                if is_outage(error):
                    self.failures += 1
                    self.next_attempt = time.monotonic() + min(2.0**self.failures, LONGEST_PAUSE)
                    self.trouble = first_line(root_cause(error))
                    return
                self.warn(first_line(error))
            self.waiting.popleft()
            self.failures, self.trouble = 0, None

    def warn(self, text: str) -> None:
        if text not in self.warnings:
            self.warnings.append(text)

    def _do(self, message: Message) -> None:
        self.client = self.client or connect(self.uri)
        if message["op"] == "start":
            return self._start(self.client, message)
        if (run_id := self.runs.get(message["run"])) is None:
            return None  # its start was refused, which has been said
        return ACTIONS[message["op"]](self.client, run_id, message)

    def _start(self, client: "MlflowClient", message: Message) -> None:
        if message["run"] in self.runs:
            return  # a repetition: the connection broke after it had arrived
        parent = self._parent(message)
        experiment = self._experiment(client, message, parent)
        tags = {"mlflow.user": user(), "mlflow.source.name": "implicitexp", "mlflow.source.type": "LOCAL"}
        if commit := message["tags"].get("git_commit"):
            tags["mlflow.source.git.commit"] = commit  # which the table of runs shows as the version
        if parent is not None:
            tags["mlflow.parentRunId"] = parent
        run = client.create_run(experiment, message["time"], tags=tags, run_name=message["name"])
        self.runs[message["run"]] = run.info.run_id
        self.say({"run": message["run"], "run_id": run.info.run_id, "experiment_id": run.info.experiment_id})

    def _parent(self, message: Message) -> str | None:
        """MLflow's id of the run in which this one is nested: a run of the sender's, or one of another process."""
        if message["parent"] is None:
            return message.get("parent_id")
        if message["parent"] not in self.runs:
            raise Refused(f"run {message['name']!r} is left out, since its parent is")
        return self.runs[message["parent"]]

    def _experiment(self, client: "MlflowClient", message: Message, parent: str | None) -> str:
        """The id of the run's experiment: that of its parent, since the pages show nested runs nowhere else."""
        if parent is not None:
            return client.get_run(parent).info.experiment_id
        name = message["experiment"]
        if name not in self.experiments:
            self.experiments[name] = experiment_id(client, self.uri, name)
        return self.experiments[name]


def experiment_id(client: "MlflowClient", uri: str, name: str) -> str:
    """Of the experiment by that name, which is made if there is none; the artifacts lie beside an SQLite file."""
    from mlflow.exceptions import MlflowException

    database = Path(uri.removeprefix("sqlite:///")) if uri.startswith("sqlite:") else None
    with locked(database) if database else contextlib.nullcontext():
        found = client.get_experiment_by_name(name)
        if found is None:
            location = (database.parent / "artifacts").as_uri() if database else None
            try:
                return client.create_experiment(name, artifact_location=location, tags=EXPERIMENT_TAGS)
            except MlflowException:  # on a server another process may have been first
                found = client.get_experiment_by_name(name)
                if found is None:
                    raise
    if found.lifecycle_stage == "deleted":
        raise Refused(f"experiment {name!r} was deleted there: restore it, or set tracker.experiment to another name")
    return found.experiment_id


def _log(client: "MlflowClient", run_id: str, message: Message) -> None:
    from mlflow.entities import Metric

    metrics = [
        Metric(clean(name), value, message["time"], step)
        for step, row in message["rows"]
        for name, value in row.items()
    ]
    for batch in batches(metrics, METRICS_PER_BATCH):
        client.log_batch(run_id, metrics=batch)


def _params(client: "MlflowClient", run_id: str, message: Message) -> None:
    from mlflow.entities import Param

    params = [Param(clean(name), str(value)[:PARAM_LENGTH]) for name, value in message["params"].items()]
    for batch in batches(params, PARAMS_PER_BATCH):
        client.log_batch(run_id, params=batch)


def _tags(client: "MlflowClient", run_id: str, message: Message) -> None:
    from mlflow.entities import RunTag

    tags = [RunTag(clean(name), str(value)[:TAG_LENGTH]) for name, value in message["tags"].items()]
    for batch in batches(tags, PARAMS_PER_BATCH):
        client.log_batch(run_id, tags=batch)


def _artifacts(client: "MlflowClient", run_id: str, message: Message) -> None:
    for path in map(Path, message["paths"]):
        if not path.exists():
            raise Refused(f"there is no file {path}")
        if path.is_dir():
            client.log_artifacts(run_id, str(path), path.name)
        else:
            client.log_artifact(run_id, str(path))


def _finish(client: "MlflowClient", run_id: str, message: Message) -> None:
    client.set_terminated(run_id, message["status"].upper(), message["time"])


ACTIONS = {"log": _log, "params": _params, "tags": _tags, "artifacts": _artifacts, "finish": _finish}


def is_outage(error: Exception) -> bool:
    """Whether it is worth to try again: the store is out of reach, not the message at fault."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code not in REFUSALS
    return isinstance(error, OSError | sqlite3.Error)  # requests' errors are OSErrors


def clean(name: str) -> str:
    return FORBIDDEN.sub("_", name)[:KEY_LENGTH]


def batches(entries: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (entries[i : i + size] for i in range(0, len(entries), size))


def first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return (text[0] if text else type(error).__name__)[:300]


def root_cause(error: BaseException) -> BaseException:
    """What the network said, below what three libraries made of it; other errors are told as they are."""
    seen = error
    while (below := seen.__cause__ or seen.__context__) is not None:
        seen = below
    return seen if isinstance(seen, OSError) and str(seen) else error


def user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
