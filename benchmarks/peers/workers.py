"""Processes beside ours, one for each library that is not JAX; they are asked by lines of JSON.

To the worker: {"task", "data": path of an .npz, "calls": how many, "gradient": whether it is wanted}. From it: {"seconds": of
each call, "value", "gradient": flat, or null}, or {"error": text}.
"""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.peers.cases import Foreign

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
TORCH = ROOT / ".venv-peers" / "bin" / "python"  # what `benchmarks/peers/setup` makes
PYTHONS = {"torch_ode": TORCH, "torch_deq": TORCH, "cvodes": Path(sys.executable), "casadi_ode": Path(sys.executable)}


class WorkerError(Exception):
    """A worker cannot be started, or cannot do its task."""


class Worker:
    """One process; it keeps what it has prepared from one request to the next."""

    def __init__(self, name: str):
        python = PYTHONS[name]
        if not python.exists():
            raise WorkerError(f"no {python.relative_to(ROOT)}: benchmarks/peers/setup makes it")
        script = HERE / "foreign" / f"{name}.py"
        self.process = subprocess.Popen(
            [str(python), str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        """**Raises** `WorkerError` with what the worker says."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"the worker ended with status {self.process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def close(self) -> None:
        """The end of its input is the end of the worker."""
        try:
            self.process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()


class Workers:
    """Those that have been started. A context manager: they end with it."""

    def __init__(self):
        self._running: dict[str, Worker] = {}

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: Any) -> None:
        for worker in self._running.values():
            worker.close()
        self._running.clear()

    def get(self, name: str) -> Worker:
        worker = self._running.get(name)
        if worker is None or worker.process.poll() is not None:
            worker = self._running[name] = Worker(name)
        return worker


@dataclasses.dataclass(frozen=True)
class Remote:
    """A task that a worker has done once, to be timed."""

    worker: Worker
    task: str
    data: str
    gradient: list[float]

    @classmethod
    def of(cls, foreign: Foreign, data: Path, workers: Workers) -> "Remote":
        """**Raises** `WorkerError`."""
        worker = workers.get(foreign.worker)
        answer = worker.ask(task=foreign.task, data=str(data), calls=1, gradient=True)
        return cls(worker, foreign.task, str(data), answer["gradient"])

    def seconds(self, calls: int) -> list[float]:
        return self.worker.ask(task=self.task, data=self.data, calls=calls, gradient=False)["seconds"]
