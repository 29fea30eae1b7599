"""A sweep from before its first job to after its last: MLflow's parent run, the table, `sweep.csv` and `sweep.png`."""

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from implicitexp import tracking
from implicitexp.sweeps import tables
from implicitexp.sweeps.rows import Ended, Job, Row, rows_of, settings_of, swept_keys, write_csv

SECONDS_FOR_TRACKER = 60.0  # for a new store before the first job, and for the record after the last
NOTHING = ("refused", "not started")  # statuses of jobs that there is nothing to say of but what they said themselves

Status = Literal["finished", "failed", "killed"]


@dataclass(frozen=True)
class Plan:
    """What is known of a sweep before it starts. `config`: of the first job; `tracked`: whether all share its tracker."""

    overrides: list[list[str]]
    folder: Path
    folders: list[Path]  # of the jobs
    config: dict[str, Any]
    problems: list[str]  # their names, once each
    tracked: bool

    @property
    def title(self) -> str:
        """`Sweep over problem, seed: 12 jobs`."""
        keys = ", ".join(swept_keys(self.overrides))
        return f"Sweep{f' over {keys}' if keys else ''}: {len(self.overrides)} jobs"

    def jobs(self, ends: Sequence[Ended]) -> list[Job]:
        """The jobs in their order. `ends`: how they ended, as far as they did."""
        keys = swept_keys(self.overrides)
        known = [*ends, *[None] * (len(self.overrides) - len(ends))]
        return [
            Job(i, {key: values[key] for key in keys if key in (values := settings_of(one))}, self.folders[i], known[i])
            for i, one in enumerate(self.overrides)
        ]


class Record:
    """The sweep in MLflow: a run, in which those of the jobs are nested. With tracker=none nothing at all."""

    def __init__(self, plan: Plan):
        self.plan = plan
        node = plan.config["tracker"] if plan.tracked else None
        self.shared = tracking.share() if node else None
        self.tracker = tracking.open_tracker(node)
        experiment = plan.problems[0] if len(plan.problems) == 1 else "sweeps"
        settings = [settings_of(one) for one in plan.overrides]
        names = dict.fromkeys(name for one in settings for name in one)
        params = {name: ", ".join(dict.fromkeys(one[name] for one in settings if name in one)) for name in names}
        tags = {"task": "sweep", "folder": str(plan.folder)}
        self.parent = self.tracker.start(experiment, plan.title, params, tags)

    def environment(self) -> dict[str, str]:
        """What tells the jobs to nest their runs in this one, which exists then, as does its store; nothing without
        MLflow."""
        run_id = self.tracker.close(SECONDS_FOR_TRACKER).runs.get(self.parent.key)
        return tracking.for_children(run_id, self.shared)

    def finish(
        self, note: str, files: list[Path], status: Status, metrics: dict[str, float]
    ) -> tracking.TrackingOutcome:
        """The table as its description, files, its end status."""
        self.parent.log([(0, metrics)])
        self.parent.note(note)
        self.parent.artifacts(files)
        self.parent.finish(status)
        return self.tracker.close(SECONDS_FOR_TRACKER)


def finish(plan: Plan, record: Record, jobs: Sequence[Job], status: Status) -> None:
    """Print the table, write it and draw it, and record it."""
    sort_by = plan.config["sort_by"]
    rows = rows_of(jobs, sort_by)
    said = any(row.status not in NOTHING for row in rows)
    files = _written(plan, rows, sort_by) if said else []
    note = tables.markdown_sweep(plan.title, rows, sort_by)
    failed = sum(row.status not in ("finished", "undefined") for row in rows)
    outcome = record.finish(note, files, status, {"sweep/rows": len(rows), "sweep/failed": failed})
    if said:
        print(f"record     {', '.join(str(file) for file in files if file.stem == 'sweep')}")
        if outcome.hint and not outcome.warning:
            print(f"dashboard  {outcome.hint}")
    if outcome.warning:
        print(f"warning: {outcome.warning}", file=sys.stderr)


def _written(plan: Plan, rows: Sequence[Row], sort_by: str) -> list[Path]:
    """The table on the terminal; -> the files that hold it."""
    plan.folder.mkdir(parents=True, exist_ok=True)
    files = [write_csv(rows, plan.folder / "sweep.csv")]
    tables.print_sweep(plan.title, rows, sort_by)
    try:
        from implicitexp.sweeps.figures import DPI, sweep_figure

        sweep_figure(rows, plan.title).savefig(plan.folder / "sweep.png", dpi=DPI)
        files.append(plan.folder / "sweep.png")
    except Exception as error:  # the numbers are safe by then
        print(f"warning: sweep.png could not be drawn: {type(error).__name__}: {error}", file=sys.stderr)
    with contextlib.suppress(OSError):
        files += [path for path in [plan.folder / "multirun.yaml"] if path.exists()]
    return files
