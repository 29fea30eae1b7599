"""Composing and checking configurations with Hydra, without its global state, and without importing jax.

overrides -> every job's configuration, checked as far as YAML can decide
"""

import argparse
import contextlib
import copy
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import create_config_search_path
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.utils import setup_globals
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from implicitexp.configuration import folders, manual, rules, schedules, validation
from implicitexp.configuration.words import explained, one_line
from implicitexp.errors import ConfigError

CONFIG = "config"  # the primary configuration's name
GROUPS = (*validation.GROUPS, "optimizer/schedule", "experiment")
HYDRA = "1.3"  # whose defaults hold


@dataclass(frozen=True)
class Command:
    """A command line, taken apart. `overrides`: as Hydra wants them, `+problem=x` without its plus."""

    flags: argparse.Namespace
    overrides: list[str]

    @property
    def multirun(self) -> bool:
        return self.flags.multirun or "hydra.mode=MULTIRUN" in self.overrides


def without_plus(text: str) -> str:
    """`+problem=x` is the user's own phrase, and `problem=x` what Hydra understands."""
    override = parsed(text)
    return text.lstrip("+") if override.key_or_group in GROUPS and text.startswith("+") else text


def parsed(text: str, loader: ConfigLoader | None = None) -> Override:
    """One override. `loader`: finds what `glob(*)` stands for. **Raises** `ConfigError` where Hydra's grammar does not
    have it."""
    try:
        override = OverridesParser.create().parse_override(text)
        override.config_loader = loader
        return override
    except (HydraException, ValueError) as error:
        example = "NAME=VALUE, as steps=100 or problem.P=[2,1]; quote what holds spaces or one of ,=[]{}()"
        raise ConfigError(f"{text}: this cannot be read ({one_line(error)}); write {example}.") from error


class Composer:
    """Composes and checks configurations, without Hydra's global state."""

    def __init__(self, own: str | Path | None = None, name: str | None = None, main: str | Path | None = None):
        """`own`: --config-dir; `name`: of the primary configuration; `main`: its folder, in place of ours."""
        version.setbase(HYDRA)
        setup_globals()
        register_resolvers()
        self.config_name = name or CONFIG
        primary = folders.shipped() if main is None else folders.existing("--config-path", main)
        self.search_path: ConfigSearchPath = create_config_search_path(str(primary))
        self.own = None if own is None else folders.existing("--config-dir", own)
        if self.own is not None:
            path = f"file://{self.own}"
            self.search_path.prepend(provider="command-line", path=path, anchor=SearchPathQuery(provider="schema"))
        self.loader = ConfigLoaderImpl(self.search_path)
        self.bases: dict[tuple[str, ...], DictConfig] = {}
        self.names: dict[tuple[str, ...], list[str]] = {}

    def jobs(self, command: Command) -> list[list[str]]:
        """The overrides of every job. A preset may hold a sweep, in `hydra.sweeper.params`."""
        given = [parsed(text, self.loader) for text in command.overrides]
        if not command.multirun:
            for x in given:
                if x.is_sweep_override():
                    raise ConfigError(
                        f"{x.input_line}: several values are a sweep, for which -m is missing; a list is [1,2]."
                    )
            presets = [x for x in given if x.key_or_group == "experiment"]
            if presets and (params := self._sweeper_params(given)):
                keys = ", ".join(text.partition("=")[0] for text in params)
                raise ConfigError(f"{presets[-1].input_line}: this preset is a sweep over {keys}; add -m.")
            return [command.overrides]
        # A sweeper of somebody else's may draw from an interval: the rest of the job can be checked all the same.
        everything = [*(parsed(text, self.loader) for text in self._sweeper_params(given)), *given]
        listed = [x for x in everything if not x.is_sweep_override() or x.is_discrete_sweep()]
        return BasicSweeper.split_arguments(listed, None)[0]

    def _sweeper_params(self, given: list[Override]) -> list[str]:
        """What Hydra's sweeper adds to the command line, from a preset say: `problem=a,b`. The command line wins."""
        selections, _ = self.split([x.input_line or "" for x in given if not x.is_sweep_override()])
        self._check_names(selections)
        with self._naming(selections), strictly():
            composed = self.loader.load_configuration(self.config_name, list(selections), RunMode.MULTIRUN)
            params = composed.hydra.sweeper.get("params") or {}
            return [f"{key}={value}" for key, value in params.items()]

    def checked_jobs(self, command: Command) -> list[tuple[validation.Config, DictConfig]]:
        """Every job of a command, composed. **Raises** `ConfigError` for the first that is wrong."""
        jobs = self.jobs(command)
        for overrides in jobs:  # all names first, which takes no time: composing takes 0.2 s
            self._check_names(self.split(overrides)[0])
        return [self.checked(overrides) for overrides in jobs]

    def checked(self, overrides: list[str]) -> tuple[validation.Config, DictConfig]:
        """One job: its configuration as plain data, and as Hydra composed it. **Raises** `ConfigError`."""
        selections, values = self.split(overrides)
        base = self.base(selections)
        for x in values:
            validation.check_override(x.key_or_group, x.value(), x.input_line or "", base)
        composed = with_values(base, values)
        return self._plain(composed), composed

    def split(self, overrides: list[str]) -> tuple[tuple[str, ...], list[Override]]:
        """What selects an option, deletes, or is Hydra's own; and what changes a value."""
        all_of_them = [parsed(text) for text in overrides]
        values = [x for x in all_of_them if self._is_value(x)]
        return tuple(x.input_line or "" for x in all_of_them if x not in values), values

    def _is_value(self, override: Override) -> bool:
        key = override.key_or_group
        group = key in GROUPS or "/" in key or ("." not in key and bool(self.options(key)))
        return not (group or override.is_hydra_override() or override.is_delete() or override.package is not None)

    def base(self, selections: tuple[str, ...]) -> DictConfig:
        """What stands there before single values are changed."""
        if selections not in self.bases:
            self._check_names(selections)
            with self._naming(selections), strictly():
                self.bases[selections] = self.loader.load_configuration(self.config_name, list(selections), RunMode.RUN)
        return self.bases[selections]

    def options(self, group: str, selections: tuple[str, ...] = ()) -> list[str]:
        """The names of a group's files, those of the user's folders too."""
        asked = (group, *searchpath(selections))
        if asked not in self.names:
            with strictly():
                found = self.loader.get_group_options(group, config_name=self.config_name, overrides=list(asked[1:]))
            self.names[asked] = found
        return self.names[asked]

    def _check_names(self, selections: tuple[str, ...]) -> None:
        """Every group is given the name of one of its files."""
        for override in map(parsed, selections):
            if override.key_or_group in (*GROUPS, "hydra/launcher") and not override.is_delete():
                options = self.options(override.key_or_group, selections)
                validation.check_name(override.key_or_group, override.value(), options)

    @contextlib.contextmanager
    def _naming(self, selections: tuple[str, ...]) -> Iterator[None]:
        """What Hydra's errors leave out: the options of a missing choice, the file that is not text."""
        try:
            yield
        except ConfigError as error:
            for group in GROUPS:
                if f"specify '{group}'" in str(error):
                    names = ", ".join(self.options(group, selections))
                    raise ConfigError(f"{group} is missing; choose one, as {group}=NAME. {group}s: {names}.") from error
            if "override 'hydra.launcher." in str(error):
                raise ConfigError(f"{error} The launcher that has n_jobs is hydra/launcher=local.") from error
            if isinstance(error.__cause__, UnicodeDecodeError):
                bad = folders.not_text(source.path for source in self.loader.get_sources())
                raise ConfigError(f"{', '.join(bad)}: {error}") from error
            raise

    def _plain(self, composed: DictConfig) -> validation.Config:
        choices, hydra_overrides = dict(composed.hydra.runtime.choices), list(composed.hydra.overrides.hydra)
        launcher = plain_launcher(composed)
        for key, rule in rules.of(str(launcher.get("_target_"))).items():
            rule.check(f"hydra.launcher.{key}", launcher.get(key))
        with hydra_config(composed):
            rest = OmegaConf.masked_copy(composed, [str(key) for key in composed if key != "hydra"])
            strategies = manual.strategy_kinds(folders.shipped(), self.own)
            return validation.validated(rest, lambda: solver_kinds(self.loader, hydra_overrides), choices, strategies)


def with_values(base: DictConfig, values: list[Override]) -> DictConfig:
    """A copy, in which these overrides change single values."""
    composed = copy.deepcopy(base)
    with told():
        ConfigLoaderImpl._apply_overrides_to_config(values, composed)
    return composed


def register_resolvers() -> None:
    """What our YAML files have in `${...}` besides Hydra's own."""
    OmegaConf.register_new_resolver("implicitexp.unique", folders.unique, use_cache=True, replace=True)
    schedules.register()


def plain_launcher(composed: DictConfig) -> validation.Config:
    """What runs the jobs of a sweep."""
    return validation.plain(composed.hydra.launcher) or {}


def searchpath(overrides: Sequence[str]) -> list[str]:
    """Those that add folders."""
    return [text for text in overrides if text.startswith("hydra.searchpath=")]


def options_of(loader: ConfigLoader, group: str, overrides: Sequence[str] = ()) -> dict[str, DictConfig]:
    """The content of every file of a group."""
    assert isinstance(loader, ConfigLoaderImpl)
    _, repository = loader._parse_overrides_and_create_caching_repo(CONFIG, searchpath(overrides))
    found = {name: repository.load_config(f"{group}/{name}") for name in repository.get_group_options(group)}
    return {name: loaded.config for name, loaded in found.items() if loaded and isinstance(loaded.config, DictConfig)}


def solver_kinds(loader: ConfigLoader, overrides: Sequence[str] = ()) -> dict[str, str | None]:
    """Every solver's name, and the kind of equation that it is for; None: all of them, or not known."""
    nodes = options_of(loader, "solver", overrides)
    return {name: OmegaConf.select(node, "hints.solver_kind") for name, node in nodes.items()}


@contextlib.contextmanager
def hydra_config(composed: DictConfig) -> Iterator[None]:
    """`${hydra:...}` refers to this configuration, as it does in a job."""
    instance = HydraConfig.instance()
    before = instance.cfg
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
        yield
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, OSError, UserWarning, ValueError) as error:
        raise ConfigError(explained(error)) from error


@contextlib.contextmanager
def strictly() -> Iterator[None]:
    """As `told`, and what Hydra only warns of, a folder of hydra.searchpath that is not there, is an error, too."""
    with told(), warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        yield
