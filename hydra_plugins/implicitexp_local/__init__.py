"""`hydra/launcher=local`: the jobs of a sweep in processes of their own, on all cores of this machine.

Hydra imports this module at every start: so nothing slow stands at its top.
"""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, filter_overrides, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

if TYPE_CHECKING:
    from implicitexp.sweeps.processes import Outcome


class Answer(NamedTuple):
    """What a job's process says at its end: what the task returned, the job's folder, its configuration."""

    value: Any
    folder: str
    config: Any


class LocalLauncher(Launcher):
    """A process for each job, forked from a server that has JAX imported. A job whose process dies is tried again once,
    and does not disturb the others. `n_jobs`: processes at once; None: as many as cores."""

    def __init__(self, n_jobs: int | None = None):
        self.n_jobs = n_jobs
        self.context: HydraContext | None = None
        self.task: TaskFunction | None = None
        self.config: DictConfig | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what `launch` needs."""
        self.context, self.task, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Run all jobs -> what `implicitexp.__main__.job` returned for each, in their order."""
        from implicitexp.sweeps import processes

        assert self.config is not None
        Path(str(self.config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
        common = (self.context, self.task, self.config)
        instances = Singleton.get_state()["instances"]  # resolvers are closures, which cannot be sent
        calls = [functools.partial(_job, *common, list(overrides), initial_job_idx + i, instances)
                 for i, overrides in enumerate(job_overrides)]  # fmt: skip
        names = [" ".join(filter_overrides(overrides)) for overrides in job_overrides]

        def told(i: int, outcome: "Outcome") -> None:
            _tell(f"#{initial_job_idx + i} {names[i]}", outcome, _returned(outcome, job_overrides[i]))

        n_jobs = min(self.n_jobs or processes.cores(), len(calls))
        print(f"{len(calls)} jobs, {n_jobs} at once", flush=True)
        outcomes = processes.run(calls, n_jobs, told)
        return [_returned(outcome, overrides) for outcome, overrides in zip(outcomes, job_overrides, strict=True)]


def _job(
    context: HydraContext, task: TaskFunction, config: DictConfig, overrides: list[str], number: int, instances: Any
) -> Answer:
    """One job, in its own process: composed there, since composing takes a fifth of a second."""
    from implicitexp import composing

    setup_globals()
    composing.register_resolvers()
    Singleton.set_state(Singleton.get_state() | {"instances": instances})
    composed = context.config_loader.load_sweep_config(config, overrides)
    with open_dict(composed):
        composed.hydra.job.id, composed.hydra.job.num = number, number
    done = run_job(
        hydra_context=context,
        task_function=task,
        config=composed,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    # Plain data: the classes of Hydra's own nodes are others in another process, and cannot be sent.
    return Answer(done.return_value, str(composed.hydra.runtime.output_dir), OmegaConf.to_container(done.cfg))


def _returned(outcome: "Outcome", overrides: Sequence[str]) -> JobReturn:
    """What Hydra gets: the job's own answer, or one in its place where it has none."""
    from implicitexp.sweeps.rows import Ended

    done = JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED)
    if outcome.value is not None:
        answer: Answer = outcome.value
        done.return_value, done.cfg = answer.value, _node(answer.config)
        done.hydra_cfg = _node({"hydra": {"runtime": {"output_dir": answer.folder}}})
        return done
    died = f"{outcome.died}, {outcome.attempt} times" if outcome.died else None
    done.return_value = Ended(1 if outcome.status is None else outcome.status, outcome.seconds, died)
    return done


def _node(content: dict[str, Any]) -> DictConfig:
    return OmegaConf.create(content)


def _tell(name: str, outcome: "Outcome", returned: JobReturn) -> None:
    """One line for a job that ended; below it all that it printed, if it did not finish. `output.txt` has that as well."""
    from implicitexp.sweeps.processes import ATTEMPTS
    from implicitexp.sweeps.rows import WORDS

    status = returned.return_value.status
    again = "; it is tried again" if outcome.died and outcome.attempt < ATTEMPTS else ""
    print(f"{name}: {outcome.died or WORDS.get(status, 'failed')} after {outcome.seconds:.1f} s{again}", flush=True)
    if status != 0 and outcome.output:
        print(outcome.output.rstrip(), file=sys.stderr, flush=True)
    if returned.hydra_cfg is not None:
        folder = Path(str(returned.hydra_cfg.hydra.runtime.output_dir))
        if folder.exists():  # a job that was refused has left none
            (folder / "output.txt").write_text(outcome.output, encoding="utf-8")
