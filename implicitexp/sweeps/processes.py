"""Jobs in processes of their own, several at once.

They are forked from a server that has imported everything slow and computed nothing: so a job starts within a second, and
what it does, to its memory or by its death, is no other job's business.
"""

import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

PRELOADED = ["implicitexp.sweeps.preloaded"]
ATTEMPTS = 2  # at a job whose process dies
SECONDS_TO_END = 60.0  # for jobs that were told to end, to write their records; then they are killed
TERMINATED = 143  # exit status

Call = Callable[[], Any]  # of a job: something that can be pickled


@dataclass(frozen=True)
class Outcome:
    """What became of a job. `value`: what it returned; `status`: its exit status, where it ended itself without."""

    value: Any
    status: int | None
    died: str | None  # by which signal, if its process ended without a word
    output: str  # all that it printed
    seconds: float  # of the last attempt
    attempt: int


Told = Callable[[int, Outcome], None]


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def server() -> ForkServerContext:
    """The fork server, which is started if it is not there; returns at once, its imports go on."""
    from multiprocessing import forkserver

    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for us; the server inherits what we do with it
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)
    return context


def run(calls: Sequence[Call], n_jobs: int, told: Told) -> list[Outcome]:
    """Run all jobs, at most `n_jobs` at once -> what became of them, in their order.

    `told` hears of each as it ends, and of a process that died and is tried again. An exception, as of Ctrl-C or SIGTERM,
    ends all jobs, each of which has SECONDS_TO_END for its record.
    """
    context = server()
    waiting = deque((number, 1) for number in range(len(calls)))
    running: dict[Connection, Worker] = {}
    outcomes: dict[int, Outcome] = {}
    try:
        while waiting or running:
            while waiting and len(running) < n_jobs:
                number, attempt = waiting.popleft()
                worker = Worker(context, calls[number], number, attempt)
                running[worker.connection] = worker
            for connection in multiprocessing.connection.wait(list(running)):
                worker = running.pop(connection)  # pyright: ignore[reportArgumentType]
                outcome = worker.outcome()
                told(worker.number, outcome)
                if outcome.died is not None and worker.attempt < ATTEMPTS:
                    waiting.appendleft((worker.number, worker.attempt + 1))
                else:
                    outcomes[worker.number] = outcome
    finally:
        end(running.values())
    return [outcomes[number] for number in range(len(calls))]


class Worker:
    """One process with one job."""

    def __init__(self, context: ForkServerContext, call: Call, number: int, attempt: int):
        self.number, self.attempt, self.began = number, attempt, time.monotonic()
        descriptor, path = tempfile.mkstemp(prefix="implicitexp-", suffix=".txt")
        os.close(descriptor)
        self.output = Path(path)
        self.connection, theirs = context.Pipe(duplex=False)
        self.process: BaseProcess = context.Process(target=work, args=(call, theirs, path), name=f"job {number}")
        self.process.start()
        theirs.close()  # so that the pipe ends with the process

    def outcome(self) -> Outcome:
        """Once it has answered or died."""
        try:
            value, status = self.connection.recv()
            died = None
        except (EOFError, OSError):
            value = status = None
            self.process.join()
            died = _how(self.process.exitcode)
        seconds = time.monotonic() - self.began
        self.process.join()
        self.connection.close()
        text = self.output.read_text(encoding="utf-8", errors="replace")
        self.output.unlink()
        return Outcome(value, status, died, text, seconds, self.attempt)


def _how(code: int | None) -> str:
    """A process's end in words."""
    if code is not None and code < 0:
        return f"its process was killed by {signal.Signals(-code).name}"
    return f"its process ended without a word, with exit status {code}"


def end(workers: Iterable[Worker]) -> None:
    """Tell all jobs to end, and see to it that they do; a second Ctrl-C does not wait for their records."""
    left = list(workers)
    try:
        for worker in left:
            worker.process.terminate()
        deadline = time.monotonic() + SECONDS_TO_END
        for worker in left:
            worker.process.join(max(0.0, deadline - time.monotonic()))
    finally:
        for worker in left:
            worker.process.kill()
            worker.output.unlink(missing_ok=True)


def work(call: Call, connection: Connection, output: str) -> None:
    """What a process does: its job, then the answer (what the job returned, its exit status)."""
    os.setsid()  # Ctrl-C in a terminal reaches the parent only, who tells each job once
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _terminated)
    with open(output, "w", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        answer = (call(), None)
    except SystemExit as stop:
        answer = (None, stop.code if isinstance(stop.code, int) else 1)
    except KeyboardInterrupt:
        answer = (None, 130)
    except Exception:
        traceback.print_exc()
        answer = (None, 1)
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        connection.send(answer)
    except Exception:  # an answer that cannot be pickled
        traceback.print_exc()
        sys.stderr.flush()
        connection.send((None, 1))


def _terminated(number: int, frame: FrameType | None) -> None:
    sys.exit(TERMINATED)


def _end_with_parent() -> None:
    """A job does not outlive the sweep, even one that was shot."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
