"""The command line, and `implicitexp.run` for Python; with `composing` and the launcher all that knows Hydra.

    argv -> Command -> Composer (every job composed and checked: nothing slow imported, nothing written)
         -> Hydra runs the job(s) -> launch.perform

Exit status 0: done; 1: a run failed; 2: the configuration is wrong; 130, 143: interrupted.
"""

import argparse
import dataclasses
import os
import signal
import sys
import time
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra import main as hydra_main
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn
from hydra.types import RunMode
from omegaconf import DictConfig, read_write

from implicitexp import commands, completing, launch
from implicitexp.composing import (
    CONFIG,
    HYDRA,
    Command,
    Composer,
    options_of,
    plain_launcher,
    told,
    without_plus,
)
from implicitexp.configuration import folders, manual, validation
from implicitexp.configuration.words import suggestion
from implicitexp.errors import ConfigError
from implicitexp.sweeps.rows import Ended

if TYPE_CHECKING:
    from implicitexp.result import RunResult
    from implicitexp.sweeps.sweep import Plan, Status

LOCAL = "hydra_plugins.implicitexp_local.LocalLauncher"
SHOWING = ("cfg", "info", "hydra_help", "shell_completion")  # flags that Hydra answers itself


def parse(argv: list[str]) -> Command:
    """**Raises** `ConfigError` for a flag that does not exist, or an override that cannot be read."""
    parser = get_args_parser()
    parser.exit_on_error, parser.allow_abbrev = False, False
    try:
        flags, unknown = parser.parse_known_intermixed_args(argv)
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error}; see --help.") from error
    if unknown:
        valid = [name for action in parser._actions for name in action.option_strings]
        raise ConfigError(f"{unknown[0]}: there is no such flag{suggestion(unknown[0], valid, 'flags')}.")
    if flags.experimental_rerun:
        raise ConfigError("--experimental-rerun: not here; a run is repeated by the values in its config.yaml.")
    if (flags.resolve or flags.package) and not flags.cfg:
        raise ConfigError("--resolve and --package say how --cfg shows a configuration; add --cfg job.")
    return Command(flags, [without_plus(text) for text in flags.overrides])


def job(composed: DictConfig) -> Ended:
    """One job of Hydra's, in its folder -> exit status, and the seconds that it took."""
    began = time.perf_counter()
    hydra = HydraConfig.get()
    names, overrides = dict(hydra.runtime.choices), list(hydra.overrides.hydra)
    if hydra.mode == RunMode.MULTIRUN:
        print(f"\n#{hydra.job.num}: {' '.join(hydra.overrides.task)}", flush=True)

    def start(folder: Path) -> "RunResult":
        config = validation.validated(composed, names=names)
        loader = GlobalHydra.instance().config_loader()
        rows = launch.strategies(config, names, lambda: options_of(loader, "gradient", overrides))
        return launch.perform(config, names, rows, folder)

    status = launch.attempt(start, Path(hydra.runtime.output_dir))
    return Ended(status, time.perf_counter() - began)


def execute_run(command: Command, composer: Composer, composed: DictConfig) -> int:
    """Hydra runs the one job -> its exit status."""
    hydra = Hydra.create_main_hydra2("implicitexp", composer.search_path)
    try:
        with told(), folders.none_left_empty(Path(str(composed.hydra.run.dir))):
            done = hydra.run(composer.config_name, job, [*command.overrides, "hydra.mode=RUN"])
            return done.return_value.status
    finally:
        GlobalHydra.instance().clear()


def execute_sweep(command: Command, composer: Composer, checked: list[tuple[dict[str, Any], DictConfig]]) -> int:
    """Hydra runs the jobs of a sweep -> the worst exit status. Interrupted or not, it ends with a table."""
    from implicitexp.sweeps import processes, sweep

    plan = planned(composer.jobs(command), checked)
    if plain_launcher(checked[0][1]).get("_target_") == LOCAL:
        processes.server()  # its imports and MLflow's go on side by side
    record = sweep.Record(plan)
    # One folder for all; the configuration's own has the time in its name, and would be another at each composing.
    fixed = [*command.overrides, "hydra.mode=MULTIRUN", f"hydra.sweep.dir={quoted(str(plan.folder))}"]
    fixed += [f"++hydra.job.env_set.{name}={quoted(value)}" for name, value in record.environment().items()]
    done: list[JobReturn] = []
    status: Status = "failed"
    hydra = Hydra.create_main_hydra2("implicitexp", composer.search_path)
    try:
        with told(), folders.none_left_empty(plan.folder) as used:
            done += [one for batch in hydra.multirun(composer.config_name, job, fixed) for one in batch]
            used += [Path(one.hydra_cfg.hydra.runtime.output_dir) for one in done if one.hydra_cfg]
        worst = max(one.return_value.status for one in done)
        status = "failed" if worst else "finished"
        return worst
    except (KeyboardInterrupt, SystemExit):
        status = "killed"
        raise
    finally:
        GlobalHydra.instance().clear()
        plan = as_done(plan, done)
        sweep.finish(plan, record, plan.jobs([one.return_value for one in done]), status)


def planned(overrides: list[list[str]], checked: list[tuple[dict[str, Any], DictConfig]]) -> "Plan":
    """What is known of a sweep before it starts."""
    from implicitexp.sweeps.sweep import Plan

    config, first = checked[0]
    folder = Path(str(first.hydra.sweep.dir)).absolute()
    jobs = []
    for number, (_, composed) in enumerate(checked):
        with read_write(composed.hydra):
            composed.hydra.job.num, composed.hydra.job.id = number, str(number)
        jobs.append(folder / str(composed.hydra.sweep.subdir))
    problems = list(dict.fromkeys(str(composed.hydra.runtime.choices.get("problem")) for _, composed in checked))
    tracked = all(one["tracker"] == config["tracker"] for one, _ in checked)
    return Plan(overrides, folder, jobs, config, problems, tracked)


def as_done(plan: "Plan", done: list[JobReturn]) -> "Plan":
    """The folders that Hydra gave the jobs, and the jobs that a sweeper of somebody else's made up."""
    folders = [Path(str(one.hydra_cfg.hydra.runtime.output_dir)) if one.hydra_cfg else None for one in done]
    known = [found or planned for found, planned in zip_longest(folders, plan.folders) if found or planned]
    overrides = plan.overrides
    if len(done) > len(overrides):
        overrides = [list(one.overrides or []) for one in done]
    return dataclasses.replace(plan, folders=known, overrides=overrides)


def quoted(text: str) -> str:
    """A text as Hydra's grammar has it, whatever is in it."""
    escaped = text.replace("'", "\\'")
    return f"'{escaped}'"


def show(command: Command, argv: list[str]) -> int:
    """`--cfg`, `--info` and the like: Hydra's own main, overrides first, as its parser wants them."""
    raw = list(command.flags.overrides)
    flags = [text for text in argv if text not in raw or raw.remove(text)]
    before, sys.argv = sys.argv, [sys.argv[0], *([] if command.flags.hydra_help else command.overrides), *flags]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # its errors reach us instead of being printed with a traceback
    try:
        with told():
            hydra_main(config_path=str(folders.shipped()), config_name=CONFIG, version_base=HYDRA)(job)()
    finally:
        sys.argv = before
        del os.environ["HYDRA_FULL_ERROR"]
    return 0


def dispatch(argv: list[str]) -> int:
    """What the command line asks for -> exit status. **Raises** `ConfigError`."""
    if (answered := manual.answer(argv)) is not None:
        return answered
    if argv[:1] in (["list"], ["check"]):
        return (commands.listing if argv[0] == "list" else commands.check)(argv[1:])
    if argv[:1] == ["show"]:
        command, composer = prepared(argv[1:])
        return commands.show(composer, composer.jobs(command)[0], manual.config_dir(argv))
    if completing.asked(argv):
        return completing.answer(os.environ, prepared)
    command, composer = prepared(argv)
    if command.flags.shell_completion and sys.argv[0].endswith(".py"):
        raise ConfigError(
            "-sc: a shell completes the console script, not python -m; use: implicitexp -sc install=bash."
        )
    if command.flags.cfg:
        composer.checked_jobs(command)
    if any(getattr(command.flags, name) for name in SHOWING):
        return show(command, argv)
    checked = composer.checked_jobs(command)
    if command.multirun:
        return execute_sweep(command, composer, checked)
    return execute_run(command, composer, checked[0][1])


def prepared(argv: list[str]) -> tuple[Command, Composer]:
    """A command line of Hydra's, and what composes its jobs. **Raises** `ConfigError`."""
    command = parse(argv)
    return command, Composer(command.flags.config_dir, command.flags.config_name, command.flags.config_path)


def main() -> int:
    """The console script; `python -m implicitexp` is the same. Returns the exit status."""
    if os.getcwd() not in sys.path:  # as `python -m` does: a module of the user's own beside their configuration
        sys.path.insert(0, os.getcwd())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # before and between runs; a run has its own handler
    try:
        return dispatch(sys.argv[1:])
    except ConfigError as error:
        return launch.complain(error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # of `implicitexp --help | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def run(overrides: list[str], config_dir: str | Path | None = None, *, progress: bool = False) -> "RunResult":
    """What the command line does with these overrides, in this process: `run(["problem=ode", "steps=100"])`.

    `config_dir`: a folder of your own YAML files. `progress`: print what the command line prints. Returns the content of
    `result.json`, with the parameters as a pytree, the history of the run and its folder.

    **Raises** `ConfigError` where the configuration is wrong.
    """
    composer = Composer(config_dir)
    command = Command(argparse.Namespace(multirun=False), [without_plus(text) for text in overrides])
    config, composed = composer.checked(composer.jobs(command)[0])
    names, folder = dict(composed.hydra.runtime.choices), Path(str(composed.hydra.run.dir)).absolute()
    with folders.none_left_empty(folder):
        rows = launch.strategies(config, names, lambda: options_of(composer.loader, "gradient", overrides))
        return launch.perform(config, names, rows, folder, progress=progress)


if __name__ == "__main__":
    from implicitexp.__main__ import main as main_of_the_module  # so that other processes can import what a job needs

    sys.exit(main_of_the_module())
