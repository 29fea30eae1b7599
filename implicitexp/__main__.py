"""The command line, and `implicitexp.run` for Python: the only file that knows Hydra.

    argv -> Command -> Composer (every job composed and checked: nothing slow imported, nothing written)
         -> Hydra runs the job(s) -> launch.perform

Exit status 0: done; 1: a run failed; 2: the configuration is wrong; 130, 143: interrupted.
"""

import argparse
import contextlib
import copy
import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2s
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra import main as hydra_main
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import implicitexp
from implicitexp import launch, manual, validation
from implicitexp.errors import ConfigError
from implicitexp.words import suggestion

if TYPE_CHECKING:
    from implicitexp.result import RunResult

CONFIG = "config"  # the primary configuration's name
GROUPS = (*validation.GROUPS, "experiment")
SHOWING = ("cfg", "info", "hydra_help", "shell_completion", "experimental_rerun")  # flags that Hydra answers itself
INTERRUPTED = (130, 143)

version.setbase("1.3")


def unique() -> str:
    """Six digits that tell apart runs started in the same second, on one machine or on many."""
    return blake2s(f"{os.uname().nodename} {os.getpid()} {time.time_ns()}".encode(), digest_size=3).hexdigest()


@dataclass(frozen=True)
class Command:
    """A command line, taken apart. `overrides`: as Hydra wants them, `+problem=x` without its plus."""

    flags: argparse.Namespace
    overrides: list[str]

    @property
    def multirun(self) -> bool:
        return self.flags.multirun or "hydra.mode=MULTIRUN" in self.overrides

    @property
    def showing(self) -> bool:
        """Hydra answers it without running anything."""
        return any(getattr(self.flags, name) for name in SHOWING)


def parse(argv: list[str]) -> Command:
    """**Raises** `ConfigError` for a flag that does not exist, or an override that cannot be read."""
    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        flags, unknown = parser.parse_known_intermixed_args(argv)
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error}; see --help.") from error
    if unknown:
        valid = [name for action in parser._actions for name in action.option_strings]
        raise ConfigError(f"{unknown[0]}: there is no such flag{suggestion(unknown[0], valid, 'flags')}.")
    return Command(flags, [without_plus(text) for text in flags.overrides])


def without_plus(text: str) -> str:
    """`+problem=x` is the user's own phrase, and `problem=x` what Hydra understands."""
    override = parsed(text)
    return text.lstrip("+") if override.key_or_group in GROUPS and text.startswith("+") else text


def plus_of(override: Override) -> str:
    """How it was written: `+`, `++` or without."""
    return "++" if override.is_force_add() else "+" if override.is_add() else ""


def parsed(text: str) -> Override:
    """One override. **Raises** `ConfigError` where Hydra's grammar does not have it."""
    try:
        return OverridesParser.create().parse_override(text)
    except (HydraException, ValueError) as error:
        example = "NAME=VALUE, as steps=100 or problem.P=[2,1]; quote what holds spaces or one of ,=[]{}()"
        raise ConfigError(f"{text}: this cannot be read ({validation.one_line(error)}); write {example}.") from error


def shipped() -> Path:
    """Our own conf/: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).parent
    beside = package.parent / "conf"
    return beside if (beside / f"{CONFIG}.yaml").is_file() else package / "conf"


class Composer:
    """Composes and checks configurations, without Hydra's global state."""

    def __init__(
        self, config_dir: str | Path | None = None, config_name: str | None = None, primary: str | None = None
    ):
        setup_globals()
        OmegaConf.register_new_resolver("implicitexp.unique", unique, use_cache=True, replace=True)
        self.config_name = config_name or CONFIG
        self.search_path: ConfigSearchPath = create_config_search_path(primary or str(shipped()))
        if config_dir is not None:
            folder = Path(config_dir).absolute()
            if not folder.is_dir():
                raise ConfigError(f"--config-dir {config_dir}: there is no such folder ({folder}).")
            anchor = SearchPathQuery(provider="schema")
            self.search_path.prepend(provider="command-line", path=f"file://{folder}", anchor=anchor)
        self.loader = ConfigLoaderImpl(self.search_path)
        self.bases: dict[tuple[str, ...], DictConfig] = {}

    def jobs(self, command: Command) -> list[list[str]]:
        """The overrides of every job."""
        if not command.multirun:
            for text in command.overrides:
                if parsed(text).is_sweep_override():
                    raise ConfigError(f"{text}: several values are a sweep, for which -m is missing; a list is [1,2].")
            return [command.overrides]
        overrides = [parsed(text) for text in command.overrides]
        # A sweeper of somebody else's may draw from an interval: the rest of the job can be checked all the same.
        return BasicSweeper.split_arguments(
            [x for x in overrides if not x.is_sweep_override() or x.is_discrete_sweep()], None
        )[0]

    def checked(self, overrides: list[str]) -> tuple[validation.Config, DictConfig]:
        """One job: its configuration as plain data, and as Hydra composed it. **Raises** `ConfigError`."""
        values = [x for x in map(parsed, overrides) if self._is_value(x)]
        selections = tuple(x.input_line or "" for x in map(parsed, overrides) if not self._is_value(x))
        base = self.base(selections)
        for x in values:
            validation.check_override(x.key_or_group, x.value(), plus_of(x), base)
        composed = copy.deepcopy(base)
        with told():
            ConfigLoaderImpl._apply_overrides_to_config(values, composed)
        return self._plain(composed), composed

    def _is_value(self, override: Override) -> bool:
        """Whether it changes a value; else it selects an option, deletes, or is Hydra's own."""
        key = override.key_or_group
        known = key in GROUPS or "/" in key or (("." not in key) and bool(self.options(key)))
        return not (known or override.is_hydra_override() or override.is_delete() or override.package is not None)

    def base(self, selections: tuple[str, ...]) -> DictConfig:
        """What stands there before single values are changed."""
        if selections not in self.bases:
            for text in selections:
                self._check_option(parsed(text), selections)
            with self.naming_options(), told():
                self.bases[selections] = self.loader.load_configuration(self.config_name, list(selections), RunMode.RUN)
        return self.bases[selections]

    def options(self, group: str, selections: tuple[str, ...] = ()) -> list[str]:
        """The names of a group's files, those of the user's folders too."""
        searchpath = [text for text in selections if text.startswith("hydra.searchpath=")]
        with told():
            return self.loader.get_group_options(group, config_name=self.config_name, overrides=searchpath)

    def _check_option(self, override: Override, selections: tuple[str, ...]) -> None:
        group, value = override.key_or_group, override.value()
        if group not in GROUPS or override.is_delete() or value is None and group == "experiment":
            return
        options = self.options(group, selections)
        if not isinstance(value, str | int | float) or "/" not in str(value) and str(value) not in options:
            shown = validation.shown(value)
            raise ConfigError(f"{group}={shown}: there is no such {group}{suggestion(shown, options, f'{group}s')}.")

    @contextlib.contextmanager
    def naming_options(self) -> Iterator[None]:
        """A missing choice, as Hydra reports it, with the options to choose from."""
        try:
            yield
        except ConfigError as error:
            for group in GROUPS:
                if f"specify '{group}'" in str(error):
                    names = ", ".join(self.options(group))
                    raise ConfigError(f"{group} is missing; choose one, as {group}=NAME. {group}s: {names}.") from error
            raise

    def _plain(self, composed: DictConfig) -> validation.Config:
        with hydra_config(composed):
            rest = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
            rest._set_parent(None)
            return validation.validated(rest, self.solver_kinds, dict(composed.hydra.runtime.choices))

    def solver_kinds(self) -> dict[str, str | None]:
        """What kind of equation each solver is for."""
        return {name: OmegaConf.select(option(self.loader, "solver", name), "hints.solver_kind")
                for name in self.options("solver")}  # fmt: skip


def option(loader: ConfigLoader, group: str, name: str) -> DictConfig:
    """The content of one file of a group."""
    loaded = loader.repository.load_config(f"{group}/{name}")  # type: ignore[attr-defined]
    return loaded.config


@contextlib.contextmanager
def hydra_config(composed: DictConfig) -> Iterator[None]:
    """`${hydra:...}` refers to this configuration, as it does in a job."""
    instance = HydraConfig.instance()
    before = instance.cfg
    composed = copy.deepcopy(composed)
    with contextlib.suppress(OmegaConfBaseException):
        composed.hydra.runtime.output_dir = str(Path(str(composed.hydra.run.dir)).absolute())
        composed.hydra.job.num, composed.hydra.job.id = 0, "0"
    instance.set_config(composed)
    try:
        yield
    finally:
        instance.cfg = before


@contextlib.contextmanager
def told() -> Iterator[None]:
    """What Hydra, OmegaConf and YAML raise about a configuration, as a `ConfigError` in one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # a folder of hydra.searchpath that is not there
            yield
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{mark.name}, line {mark.line + 1}" if mark else "a YAML file"
        raise ConfigError(f"{place}: this is not YAML: {error.problem or error.context}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"a YAML file is not text in UTF-8: {error}.") from error
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError, UserWarning, ValueError) as error:
        cause = f": {validation.one_line(error.__cause__)}" if error.__cause__ is not None else ""
        lines = [line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()]
        raise ConfigError(f"{'; '.join(lines)}{cause}.".removeprefix(": ")) from error


def strategies(loader: ConfigLoader, config: validation.Config, names: dict[str, Any]) -> dict[str, validation.Config]:
    """For compare: every option of group `gradient` with its defaults, the configured one as it is configured."""
    if config["task"] != "compare":
        return {}
    found = {}
    for name in loader.get_group_options("gradient"):
        node = option(loader, "gradient", name)
        around = OmegaConf.create({**config, "gradient": node.get("gradient", node)})
        found[name] = validation.resolved(around)["gradient"]
    return found | {names.get("gradient") or "configured": config["gradient"]}


def job(composed: DictConfig) -> int:
    """One job of Hydra's, in its folder -> exit status. It never raises but to end the whole sweep."""
    hydra = HydraConfig.get()
    folder, names = Path(hydra.runtime.output_dir), dict(hydra.runtime.choices)
    if hydra.mode == RunMode.MULTIRUN:
        print(f"\n#{hydra.job.num}: {' '.join(hydra.overrides.task)}", flush=True)
    try:
        config = validation.validated(composed)
        rows = strategies(GlobalHydra.instance().config_loader(), config, names)
        status = launch.perform(config, names, rows, folder).exit_status
    except ConfigError as error:
        status = complain(error)
    except KeyboardInterrupt:
        status = 130
    except Exception:
        traceback.print_exc()
        status = 1
    finally:
        prune(folder)
    if status in INTERRUPTED:
        sys.exit(status)
    return status


def complain(error: ConfigError) -> int:
    """The one message -> exit status."""
    print(f"implicitexp: {error}", file=sys.stderr, flush=True)
    return 2


def prune(folder: Path, present: frozenset[Path] = frozenset()) -> None:
    """Remove folders that stayed empty, up to those that were `present` before."""
    for path in (folder, *folder.parents) if present else (folder,):
        with contextlib.suppress(OSError):
            if [entry.name for entry in path.iterdir()] == ["multirun.yaml"]:  # a sweep without a single run
                (path / "multirun.yaml").unlink()
            if path not in present:
                path.rmdir()


@contextlib.contextmanager
def leaving_nothing_empty(folder: Path) -> Iterator[None]:
    """A run that could not start leaves no folder behind, and none of those around it."""
    present = frozenset(path for path in folder.absolute().parents if path.exists())
    try:
        yield
    finally:
        prune(folder.absolute(), present)


def execute(command: Command, composer: Composer, composed: DictConfig) -> int:
    """Hydra runs the job, or the sweep -> the worst exit status."""
    where = composed.hydra.sweep.dir if command.multirun else composed.hydra.run.dir
    hydra = Hydra.create_main_hydra2("implicitexp", composer.search_path)
    try:
        with leaving_nothing_empty(Path(str(where))):
            if not command.multirun:
                return hydra.run(composer.config_name, job, [*command.overrides, "hydra.mode=RUN"]).return_value
            batches = hydra.multirun(composer.config_name, job, [*command.overrides, "hydra.mode=MULTIRUN"])
            return max(done.return_value for batch in batches for done in batch)
    finally:
        GlobalHydra.instance().clear()


def show(command: Command, argv: list[str]) -> int:
    """`--cfg`, `--info` and the like: Hydra's own main, on the cleaned command line."""
    clean = dict(zip(command.flags.overrides, command.overrides, strict=True))
    before, sys.argv = sys.argv, [sys.argv[0], *(clean.get(text, text) for text in argv)]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # its errors reach us instead of being printed with a traceback
    try:
        with told():
            hydra_main(config_path=str(shipped()), config_name=CONFIG, version_base="1.3")(job)()
    finally:
        sys.argv = before
        del os.environ["HYDRA_FULL_ERROR"]
    return 0


def dispatch(argv: list[str]) -> int:
    """What the command line asks for -> exit status. **Raises** `ConfigError`."""
    if argv[:1] == ["dashboard"]:
        return manual.dashboard(argv[1:])
    if "--help" in argv or "-h" in argv:
        print(manual.text(shipped(), manual.config_dir(argv)))
        return 0
    if "--version" in argv:
        print(f"implicitexp {implicitexp.__version__}")
        return 0
    command = parse(argv)
    flags = command.flags
    composer = Composer(flags.config_dir, flags.config_name, flags.config_path)
    if command.showing:
        return show(command, argv)
    composed = [composer.checked(overrides)[1] for overrides in composer.jobs(command)]
    return execute(command, composer, composed[0])


def main() -> int:
    """The console script; `python -m implicitexp` is the same. Returns the exit status."""
    if os.getcwd() not in sys.path:  # as `python -m` does: a module of the user's own beside their configuration
        sys.path.insert(0, os.getcwd())
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # before and between runs; a run has its own handler
    try:
        return dispatch(sys.argv[1:])
    except ConfigError as error:
        return complain(error)
    except KeyboardInterrupt:
        return 130


def run(overrides: list[str], config_dir: str | Path | None = None, *, progress: bool = False) -> "RunResult":
    """What the command line does with these overrides, in this process: `run(["problem=ode", "steps=100"])`.

    `config_dir`: a folder of your own YAML files. `progress`: show it while it runs. Returns the content of
    `result.json`, with the parameters as a pytree, the history of the run and its folder.

    **Raises** `ConfigError` where the configuration is wrong.
    """
    composer = Composer(config_dir)
    config, composed = composer.checked(composer.jobs(Command(argparse.Namespace(multirun=False), [
        without_plus(text) for text in overrides]))[0])  # fmt: skip
    names, folder = dict(composed.hydra.runtime.choices), Path(str(composed.hydra.run.dir)).absolute()
    with leaving_nothing_empty(folder):
        rows = strategies(composer.loader, config, names)
        return launch.perform(config, names, rows, folder, progress=progress)


if __name__ == "__main__":
    from implicitexp.__main__ import main as main_of_the_module  # so that other processes can import what a job needs

    sys.exit(main_of_the_module())
