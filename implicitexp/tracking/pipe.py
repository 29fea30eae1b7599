"""Our end of the pipe into MLflow's process: a thread that writes, a thread that listens."""

import atexit
import contextlib
import json
import os
import queue
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MODULE = "implicitexp.tracking.process"
ROOT = Path(__file__).parents[2]  # where the package is found, installed or not
SHARED = (
    "IMPLICITEXP_MLFLOW"  # in the environment: the socket of another process's MLflow process, which takes our runs too
)
PACE = 1.0  # s, that metrics wait for others to go with them
LAST_WORDS = 2.0  # s, at the interpreter's exit, for messages that are still on their way into the pipe

Message = dict[str, Any]


class Spawned:
    """A process of our own. `shared`: a socket at which it listens to other processes as well."""

    def __init__(self, shared: Path | None = None):
        # A file, since a pipe that nobody reads would block its writer.
        self.complaints = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the process
        # Its own session: Ctrl-C in a terminal is for the trainer, who then says how the run ended.
        # -P: a folder called mlflow in the working directory is not MLflow.
        self.popen = subprocess.Popen(
            [sys.executable, "-P", "-m", MODULE, *([str(shared)] if shared else [])],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.complaints, text=True, encoding="utf-8",
            env=environment(), start_new_session=True,
        )  # fmt: skip
        assert self.popen.stdin is not None
        assert self.popen.stdout is not None
        self.messages, self.answers = self.popen.stdin, self.popen.stdout

    def hang_up(self) -> None:
        """No more messages."""
        self.messages.close()

    def last_words(self) -> str:
        """Why it ended, once it has."""
        status = self.popen.wait()
        with self.complaints:
            self.complaints.seek(0)
            lines = self.complaints.read().decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else f"exit status {status}"


class Connected:
    """The process of somebody else, of the sweep that we are a job of say: MLflow's import takes longer than many a job."""

    def __init__(self, path: str):
        """**Raises** `OSError` where nobody listens."""
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(path)
        self.messages = self.socket.makefile("w", encoding="utf-8")
        self.answers = self.socket.makefile("r", encoding="utf-8")

    def hang_up(self) -> None:
        """No more messages."""
        self.socket.shutdown(socket.SHUT_WR)

    def last_words(self) -> str:
        """Why it ended, once it has."""
        return "the process that keeps MLflow for this sweep is gone"


def paced(outbox: "queue.SimpleQueue[Message | None]") -> Iterator[Message]:
    """The messages up to a None; metrics of a run in a row become one message every PACE seconds.

    A store takes longer for ten small batches than training takes for the updates that are in them.
    """
    held: Message | None = None
    due = 0.0
    while True:
        try:
            message = outbox.get(timeout=None if held is None else max(0.0, due - time.monotonic()))
        except queue.Empty:
            message = held
            held = None
        else:
            if held and message and message["op"] == "log" and message["run"] == held["run"] and time.monotonic() < due:
                held = {**message, "rows": held["rows"] + message["rows"]}
                continue
            if held:
                yield held
                held = None
            if message and message["op"] == "log":
                held, due = message, time.monotonic() + PACE
                continue
        if message is None:
            return
        yield message


class Process:
    """MLflow's process, seen from ours. All methods return at once but `flush`."""

    def __init__(self, end: Spawned | Connected | None = None):
        self.owner = os.getpid()
        self.end = end or Spawned()
        self.outbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self.runs: dict[str, Message] = {}
        self.news = threading.Condition()
        self.flushed: Message = {"flushed": 0}
        self.tokens = 0
        self.gone: str | None = None  # its last words, once it has ended
        self.writer = threading.Thread(target=self._write, name="mlflow-writer", daemon=True)
        self.writer.start()
        threading.Thread(target=self._listen, name="mlflow-listener", daemon=True).start()

    def send(self, message: Message) -> None:
        self.outbox.put(message)

    def flush(self, uri: str, timeout: float) -> str | None:
        """Wait until all that was sent for this store is recorded; a warning in one line if it is not."""
        self.tokens += 1
        self.send({"op": "flush", "uri": uri, "token": self.tokens})
        with self.news:
            told = self.news.wait_for(lambda: self.gone is not None or self.flushed["flushed"] >= self.tokens, timeout)
        folder = "the run's folder is complete"
        if self.gone is not None:
            return f"MLflow has no record of this, its process ended: {self.gone}; {folder}"
        if not told:
            return (
                f"MLflow's record in {uri} was not done after {timeout:.0f} s and goes on in the background; {folder}"
            )
        if self.flushed["warnings"]:
            return f"MLflow's record in {uri} is not complete: {'; '.join(self.flushed['warnings'])}; {folder}"
        return None

    def farewell(self) -> None:
        """No more messages. What the process has not done yet it does after we are gone."""
        self.outbox.put(None)
        self.writer.join(LAST_WORDS)

    def _write(self) -> None:
        # The process may be gone, which the listener reports; then messages go nowhere, instead of into memory.
        for message in paced(self.outbox):
            with contextlib.suppress(OSError, ValueError):
                self.end.messages.write(json.dumps(message) + "\n")
                self.end.messages.flush()
        with contextlib.suppress(OSError):
            self.end.hang_up()

    def _listen(self) -> None:
        with self.end.answers as answers, contextlib.suppress(OSError):
            for line in answers:
                self._hear(json.loads(line))
        gone = self.end.last_words()
        with self.news:
            self.gone = gone
            self.news.notify_all()

    def _hear(self, answer: Message) -> None:
        with self.news:
            if "flushed" in answer:
                self.flushed = answer
            else:
                self.runs[answer["run"]] = answer
            self.news.notify_all()


def environment() -> dict[str, str]:
    """Ours, for a Python that finds this package and does not call home."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "PYTHONPATH": path}


_shared: list[Process] = []  # the one of this process, started by the first tracker


def shared_process() -> Process:
    """One MLflow process for all runs of this process, one after the other or at once; a fork needs its own."""
    if not _shared or _shared[0].gone is not None or _shared[0].owner != os.getpid():
        _shared[:] = [Process(_connected())]
        atexit.register(_shared[0].farewell)
    return _shared[0]


def _connected() -> Connected | None:
    """The process that somebody shares with us; None where nobody does, as on another machine."""
    path = os.environ.get(SHARED)
    with contextlib.suppress(OSError):
        return Connected(path) if path else None
    return None


def share() -> Path:
    """Start the one MLflow process of this process, for its children too -> the socket that SHARED is to name."""
    folder = Path(tempfile.mkdtemp(prefix="implicitexp-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    _shared[:] = [Process(Spawned(folder / "mlflow"))]
    atexit.register(_shared[0].farewell)
    return folder / "mlflow"
