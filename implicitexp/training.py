"""The loop of a run, top to bottom: update, log, check the gradient, stop, record."""

import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np

from implicitexp import figures, prepare, report, result
from implicitexp.checking import Checked, Checker
from implicitexp.cost import Cost
from implicitexp.device import current, describe, local
from implicitexp.experiment import ENDS, FAULTS, Experiment, Rows, State, Stopping, advance, answers, most
from implicitexp.journal import Entry, Journal
from implicitexp.record import Folder
from implicitexp.reference import Referee, ReferenceSettings
from implicitexp.result import RunResult
from implicitexp.solving import Solve

AHEAD = 2  # chunks on their way while a line is logged: the device never waits for the host
SECONDS_A_CHUNK = 0.5  # between two looks at the clock, the keyboard and the progress bar
QUICK = 1e-3  # s, of updates whose speed is measured before the first chunk
SOME = 64  # of them
SECONDS_FOR_TRACKER = 60.0  # to wait at the end for what is still on its way into MLflow
CHECKS = 10  # in a run, when `check_every` is not given
LINES = 200  # in a run, when `log_every` is not given: what a figure and MLflow's charts can show


@dataclass(frozen=True)
class Settings:
    """What the command line decides besides the objects: plain data."""

    problem: str  # its option's name
    gradient: str
    solver: str
    steps: int
    seed: int = 0
    precision: str = "float32"
    device: str = "auto"
    check_every: int | None = None  # updates; None: about ten checks in a run
    log_every: int | None = None  # updates; None: about two hundred lines in a run
    folder: Path = Path("runs")
    config: dict[str, Any] = field(default_factory=dict)  # resolved
    target: float = 1e-9  # relative uncertainty of the ground truth that is good enough
    max_seconds: float = 20.0  # for one ground truth
    progress: bool = True
    clip_norm: float | None = None
    target_loss: float | None = None  # training ends when the loss of an update is not above it
    patience: int | None = None  # updates without a new smallest loss after which training ends
    mesh: Any = None  # of devices that share each minibatch
    task: str = "train"

    def device_name(self) -> str:
        """The device that computes."""
        return describe(self.mesh or current())

    def reference(self) -> ReferenceSettings:
        return ReferenceSettings(target=self.target, max_seconds=self.max_seconds)


class Terminated(BaseException):
    """SIGTERM arrived."""


class Chunk(NamedTuple):
    """Updates on their way: how many, when they were sent, and what `advance` returns."""

    count: int
    began: float  # s
    state: State
    rows: Rows
    done: Any


class Training:
    """The state of a run in progress, and what has been seen of it."""

    def __init__(self, experiment: Experiment, state: State, key: Any, settings: Settings):
        self.experiment, self.state, self.key, self.settings = experiment, state, key, settings
        referee = Referee(experiment.problem, experiment.solver, settings.reference())
        self.checker = Checker(experiment, key, referee)
        self.cost: Cost | None = None
        self.loss: float | None = None  # of the last update
        self.checks: list[Checked] = []
        self.evaluation: dict[str, float] = {}
        self.fault: dict[str, Any] | None = None
        self.train_seconds = self.check_seconds = self.compile_seconds = 0.0
        self._advance: Any = None  # compiled
        self._sent: deque[Chunk] = deque()  # whose results have not been looked at
        self._heard = 0.0  # s, when the last result was
        self.pending: dict[str, Any] = {}  # metrics of a check, which go into the line of the update at the same step
        self.speed = 1.0  # updates a second
        self._look()

    @property
    def params(self) -> Any:
        """As they are now, on this process's own device."""
        return local(self.state.params, self.experiment.mesh)

    def check(self) -> None:
        """Judge the gradient at the current parameters, and ask the problem for its own numbers."""
        began = time.perf_counter()
        self.checker.memory = self.state.memory
        checked = self.checker(self.state.params, self.step)
        self.checks.append(checked)
        found = answers(self.checker.alone, self.params)
        self.evaluation = {name: float(value) for name, value in found.items()}
        self.pending = checked.metrics() | {f"evaluate/{name}": x for name, x in self.evaluation.items()}
        self.check_seconds += time.perf_counter() - began

    @contextmanager
    def timed(self) -> Iterator[None]:
        """`train_seconds`: of all updates, and of the lines that are written meanwhile; without compilation and checks."""
        began, checks = time.perf_counter(), self.check_seconds
        try:
            yield
        finally:
            whole = time.perf_counter() - began
            self.train_seconds = whole - (self.check_seconds - checks) - self.compile_seconds

    @property
    def every(self) -> int:
        """Updates between two checks."""
        return self.settings.check_every or max(1, -(-self.settings.steps // CHECKS))

    @property
    def stride(self) -> int:
        """Updates between two lines."""
        return self.settings.log_every or max(1, self.settings.steps // LINES)

    def _look(self) -> None:
        """What the state says: the step, a fault, why training ended early (target_loss or patience; None: it did not)."""
        self._seen(self.state.step, self.state.fault, self.state.end)

    def _seen(self, step: Any, fault: Any, end: Any) -> None:
        self.step, self.ended = int(step), ENDS[int(end)] if end else None
        if fault:
            self.fault = {"step": self.step, "reason": FAULTS[int(fault)]}

    def due(self) -> bool:
        """Whether the gradient is to be checked at this step."""
        if self.checks and self.checks[-1].step == self.step:
            return False
        return self.step % self.every == 0 or self.step == self.settings.steps or self.ended is not None

    def advance(self) -> Entry:
        """Wait for the updates that were sent first -> what came back. Others are on their way by then."""
        self._send_ahead()
        chunk = self._sent.popleft()
        state = chunk.state
        done, rows, seen = jax.tree.map(np.asarray, (chunk.done, chunk.rows, (state.step, state.fault, state.end)))
        now = time.perf_counter()
        self.state, self.speed, self._heard = state, int(done) / (now - max(chunk.began, self._heard)), now
        self._seen(*seen)
        if self.fault or self.ended:
            self._sent.clear()  # they changed nothing
        else:
            self._send_ahead()
        self.loss = float(rows.metrics["loss"][rows.count - 1])
        checked, self.pending = self.pending, {}
        return Entry(rows, self.stride, checked, self.fault is not None)

    def _send_ahead(self) -> None:
        """Keep AHEAD chunks on their way, of as many updates as take about SECONDS_A_CHUNK, and none beyond the next check."""
        end = min(self.step - self.step % self.every + self.every, self.settings.steps)
        first = self.step + sum(chunk.count for chunk in self._sent)
        while first < end and not self.due() and len(self._sent) < AHEAD:
            largest = min(end - first, most(self.stride))
            count = max(1, min(largest, int(self.speed * SECONDS_A_CHUNK)))
            if jax.process_count() > 1:  # all processes have to make the same calls, whatever their clocks say
                count = largest
            self._sent.append(self._send(self._sent[-1].state if self._sent else self.state, count))
            first += count

    def _send(self, state: State, count: int) -> "Chunk":
        began = time.perf_counter()
        return Chunk(count, began, *self._call(state, count))

    def _call(self, state: State, count: int) -> Any:
        return self._advance(self._numbers, state, self.key, np.int32(count), np.int32(self.stride))

    def compile(self) -> None:
        """Make the program of all updates, and call it for the first time."""
        began = time.perf_counter()
        self._numbers, self._advance = _compiled(self.experiment, self.state, self.key)
        self._warm_up()
        self.compile_seconds = time.perf_counter() - began

    def _warm_up(self) -> None:
        """A program's first call is slow. And the first guess of the speed is that of a gradient, which for quick updates was
        the time of a call: some are done to measure it, and thrown away."""

        def seconds(count: int) -> float:
            began = time.perf_counter()
            jax.block_until_ready(self._call(self.state, count))
            return time.perf_counter() - began

        seconds(0)
        if jax.process_count() == 1 and 1 / self.speed < QUICK:
            call, count = min(seconds(0), seconds(0)), SOME
            while (taken := seconds(count)) < 4 * call and 4 * count <= most(self.stride):
                count *= 4
            self.speed = count / max(taken - call, taken / 10)

    def last_line(self) -> dict[str, Any]:
        """After the last update: loss and check at the last parameters, and where the time went."""
        times = {f"time/{what}_s": getattr(self, f"{what}_seconds") for what in ("train", "check", "compile")}
        return {"step": self.step, **self.pending, **times}


def _compiled(experiment: Experiment, state: State, key: Any) -> tuple[list, Any]:
    """The experiment's numbers, and `advance` with them as its first argument: Python walks through no modules at each call."""
    arrays, static = eqx.partition(experiment, eqx.is_array)
    numbers, structure = jax.tree.flatten(arrays)

    def call(numbers: list, *rest: Any) -> Any:
        return advance(eqx.combine(jax.tree.unflatten(structure, numbers), static), *rest)

    return numbers, jax.jit(call).lower(numbers, state, key, np.int32(0), np.int32(1)).compile()


def train(problem: Any, solver: Any, gradient: Any, optimizer: Any, settings: Settings, tracker: Any) -> RunResult:
    """Train, check the gradient on the way, and record everything.

    **Raises** `ConfigError` before anything is written; whatever goes wrong later is in the result: `status` is
    finished, failed or killed, and `exit_status` what the shell gets.
    """
    experiment, state, key = prepare.prepare(
        problem,
        solver,
        gradient,
        optimizer,
        settings.seed,
        clip_norm=settings.clip_norm,
        stopping=Stopping(settings.target_loss, settings.patience),
        mesh=settings.mesh,
    )
    training = Training(experiment, state, key, settings)
    prepare.refuse_bad_start(experiment, training.checker.evaluation(state.params, 0))
    threading.Thread(target=figures.warm_up, daemon=True).start()

    folder = Folder(settings.folder, settings.config)
    tracked = result.begin(settings, tracker)
    with report.progress(settings) as bar, terminable():
        journal = Journal(folder, tracked)
        status, exit_status = _loop(training, journal, bar)
    return _close(training, journal, tracker, status, exit_status)


def _loop(training: Training, journal: Journal, bar: Any) -> tuple[str, int]:
    """-> status, exit status."""
    steps = training.settings.steps
    try:
        training.check()
        training.cost = training.checker.cost(training.state.params, 0)
        training.speed = 1e3 / training.cost.gradient_ms
        with training.timed():
            training.compile()
            while training.step < steps and training.fault is None and training.ended is None:
                journal.add(training.advance())
                bar.update(training)
                if training.fault is None and training.due():
                    training.check()
        journal.write(training.last_line())
    except KeyboardInterrupt:
        return _stopped(training, journal, "interrupted from the keyboard"), 130
    except Terminated:
        return _stopped(training, journal, "terminated by SIGTERM"), 143
    except Exception as error:
        training.fault = {"step": training.step, "reason": f"{type(error).__name__}: {error}".strip()}
        (journal.folder.path / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
        journal.write()
    return ("failed", 1) if training.fault else ("finished", 0)


def _stopped(training: Training, journal: Journal, reason: str) -> str:
    journal.write()
    training.fault = {"step": training.step, "reason": reason}
    return "killed"


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends the run as Ctrl-C does, with a complete record."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _close(training: Training, journal: Journal, tracker: Any, status: str, exit_status: int) -> RunResult:
    """Figures, parameters, result, tracking; the table on the terminal."""
    settings, params, folder, tracked = training.settings, training.params, journal.folder, journal.tracked
    folder.save_params(params)
    warnings = [figures.drawn(folder, "run", lambda: figures.run_figure(journal.history, title_of(settings)))]
    if status != "killed":
        solve = Solve(training.experiment.solver, training.experiment.gradient)
        warnings.append(figures.drawn(folder, "answer", lambda: training.experiment.problem.figure(params, solve)))
    content = result.of_training(training, status)
    folder.finish(content)
    facts = report.training_facts(training, content)
    note = report.markdown_facts(title_of(settings), facts)
    result.finish(tracked, folder, note, result.last_metrics(content), training.step, status)
    outcome = tracker.close(SECONDS_FOR_TRACKER if status == "finished" else SECONDS_FOR_TRACKER / 4)
    if settings.progress:
        report.print_training(title_of(settings), facts, folder.path, outcome)
    report.print_warnings(outcome, warnings)
    return RunResult(content, params, journal.history, folder.path, exit_status)


def title_of(settings: Settings) -> str:
    """What a run is called in its table, figures and record."""
    return f"{settings.problem}, gradient={settings.gradient}, {settings.precision}"
