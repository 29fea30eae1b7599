"""Our end of the pipe into MLflow's process: a thread that writes, a thread that listens."""

import atexit
import contextlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

MODULE = "implicitexp.tracking.process"
ROOT = Path(__file__).parents[2]  # where the package is found, installed or not
LAST_WORDS = 2.0  # s, at the interpreter's exit, for messages that are still on their way into the pipe

Message = dict[str, Any]


class Process:
    """MLflow's process, seen from ours. All methods return at once but `flush`."""

    def __init__(self):
        self.owner = os.getpid()
        # A file, since a pipe that nobody reads would block its writer.
        self.complaints = tempfile.TemporaryFile()  # noqa: SIM115  lives as long as the process
        # Its own session: Ctrl-C in a terminal is for the trainer, who then says how the run ended.
        # -P: a folder called mlflow in the working directory is not MLflow.
        self.popen = subprocess.Popen(
            [sys.executable, "-P", "-m", MODULE],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.complaints, text=True, encoding="utf-8",
            env=environment(), start_new_session=True,
        )  # fmt: skip
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
        assert self.popen.stdin is not None
        # The process may be gone, which the listener reports; then messages go nowhere, instead of into memory.
        while (message := self.outbox.get()) is not None:
            with contextlib.suppress(OSError, ValueError):
                self.popen.stdin.write(json.dumps(message) + "\n")
                self.popen.stdin.flush()
        with contextlib.suppress(OSError):
            self.popen.stdin.close()

    def _listen(self) -> None:
        assert self.popen.stdout is not None
        with self.popen.stdout as answers:
            for line in answers:
                self._hear(json.loads(line))
        status = self.popen.wait()
        with self.complaints, self.news:
            self.complaints.seek(0)
            lines = self.complaints.read().decode(errors="replace").strip().splitlines()
            self.gone = lines[-1][:300] if lines else f"exit status {status}"
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
        _shared[:] = [Process()]
        atexit.register(_shared[0].farewell)
    return _shared[0]
