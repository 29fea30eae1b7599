"""The process that keeps MLflow: it reads one JSON message a line, and tells MLflow.

`pipe.py` starts it. Nothing here imports JAX. Standard input carries

    {"op": "start", "run", "uri", "experiment", "name", "params", "tags", "parent", "parent_id", "time"}
    {"op": "log", "run", "rows": [[step, {metric: number}], ...], "time"}     {"op": "tags", "run", "tags"}
    {"op": "artifacts", "run", "paths"}     {"op": "finish", "run", "status", "time"}     {"op": "flush", "uri", "token"}

and standard output {"run", "run_id", "experiment_id"}, {"flushed": token, "waiting", "warnings"}. `run` is the
sender's own name of a run; times are milliseconds since 1970. The end of the input ends every open run as KILLED:
so a training process that was shot leaves no run that seems to go on for ever. An argument is the path of a socket, through
which other processes, the jobs of a sweep, say the same, each with runs and an end of its own.
"""

import contextlib
import json
import os
import queue
import signal
import socket
import sys
import threading
import time
from typing import IO

from implicitexp.tracking.store import Message, Say, Store

# Read by MLflow at its import. Its own defaults wait for minutes on a server that does not answer.
ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "GIT_PYTHON_REFRESH": "quiet",
               "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}  # fmt: skip

NICE = 5  # of this process, once MLflow is imported; more, and a sweep on all cores would starve it


class Keeper:
    """Sorts messages by store, and knows which runs are open."""

    def __init__(self, say: Say):
        self.say = say
        self.stores: dict[str, Store] = {}
        self.store_of: dict[str, Store] = {}
        self.open: dict[str, None] = {}  # a set in order

    def take(self, message: Message) -> None:
        if message["op"] == "flush":
            return self.flush(message["uri"], message["token"])
        run = message["run"]
        if message["op"] == "start":
            self.store_of[run] = self.stores.setdefault(message["uri"], Store(message["uri"], self.say))
            self.open[run] = None
        elif message["op"] == "finish":
            self.open.pop(run, None)
        for part in apart(message):
            self.store_of[run].put(part)
        return self.drain()

    def drain(self) -> None:
        now = time.monotonic()
        for store in self.stores.values():
            if store.next_attempt <= now:
                store.drain()

    def pause(self) -> float | None:
        """Seconds until the next attempt to reach a store, None with nothing to do."""
        later = [store.next_attempt for store in self.stores.values() if store.waiting]
        return max(0.0, min(later) - time.monotonic()) if later else None

    def flush(self, uri: str, token: int) -> None:
        """One more attempt on one store, then say how it stands; what was left out is told once."""
        store = self.stores.setdefault(uri, Store(uri, self.say))
        store.drain()
        warnings, store.warnings = store.warnings, []
        if store.trouble is not None:
            warnings = [f"it is out of reach: {store.trouble}", *warnings]
        self.say({"flushed": token, "warnings": warnings})

    def end(self) -> None:
        """The sender is gone: what is still open was killed."""
        reason = "its process ended without a word (killed, or out of memory)"
        for run in list(self.open):
            self.take({"op": "tags", "run": run, "tags": {"ended": reason}})
            self.take({"op": "finish", "run": run, "status": "killed", "time": int(time.time() * 1000)})
        for store in self.stores.values():
            store.drain()


def apart(message: Message) -> list[Message]:
    """A start in pieces that can be repeated one by one, should the connection break between them."""
    if message["op"] != "start":
        return [message]
    run = message["run"]
    return [
        message,
        {"op": "tags", "run": run, "tags": message["tags"]},
        {"op": "params", "run": run, "params": message["params"]},
    ]


def read(lines: IO[str], inbox: "queue.SimpleQueue[Message | None]") -> None:
    """Take messages off the pipe at once, so that the sender never waits; None at its end."""
    for line in lines:
        if line.endswith("\n"):  # else it was cut off by the sender's death
            inbox.put(json.loads(line))
    inbox.put(None)


def serve(lines: IO[str], answers: IO[str]) -> None:
    """Keep MLflow until the sender is gone."""

    def say(message: Message) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more
            answers.write(json.dumps(message) + "\n")
            answers.flush()

    inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
    threading.Thread(target=read, args=(lines, inbox), daemon=True).start()
    import mlflow  # noqa: F401  the 2 to 8 s that this process is for

    if hasattr(os, "nice"):  # where training and a store want the same core, training goes first
        os.nice(NICE - os.nice(0))
    keeper = Keeper(say)
    while True:
        try:
            message = inbox.get(timeout=keeper.pause())
        except queue.Empty:
            keeper.drain()
            continue
        if message is None:
            return keeper.end()
        keeper.take(message)


def listen(path: str, others: list[threading.Thread]) -> None:
    """Serve whoever connects to this socket, each in a thread that is added to `others`."""
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        while True:
            connection, _ = server.accept()
            others.append(threading.Thread(target=serve_connection, args=(connection,)))
            others[-1].start()


def serve_connection(connection: socket.socket) -> None:
    """As standard input and output."""
    with connection, connection.makefile("r", encoding="utf-8") as lines:
        answers = connection.makefile("w", encoding="utf-8")
        serve(lines, answers)
        with contextlib.suppress(OSError):
            answers.close()


def main() -> None:
    # Ctrl-C and a batch system's SIGTERM reach the trainer too, whose last words are to be heard.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever MLflow prints is not an answer
    others: list[threading.Thread] = []
    for path in sys.argv[1:]:
        threading.Thread(target=listen, args=(path, others), daemon=True).start()
    serve(sys.stdin, answers)
    for thread in others:  # MLflow starts threads, which an interpreter that is on its way out refuses
        thread.join()


if __name__ == "__main__":
    main()
