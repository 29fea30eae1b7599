"""From a checked configuration to a run: JAX set up, objects built, then `training.train` or `compare.compare`."""

import importlib
import inspect
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from implicitexp import tracking
from implicitexp.configuration import folders, hosts, validation
from implicitexp.configuration.words import one_line
from implicitexp.errors import ConfigError

if TYPE_CHECKING:
    from implicitexp.result import RunResult
    from implicitexp.training import Settings

Config = dict[str, Any]
PER_KIND = "per_kind"  # the option of group `gradient` that mixes the others, so it has no row in a comparison
INTERRUPTED = (130, 143)  # exit statuses that end a whole sweep


def complain(error: ConfigError) -> int:
    """The one message -> exit status."""
    print(f"implicitexp: {error}", file=sys.stderr, flush=True)
    return 2


def attempt(start: Callable[[Path], "RunResult"], folder: Path) -> int:
    """Run a job in its folder -> exit status. A job that fails leaves the others of a sweep alone; one that was
    interrupted ends them too."""
    try:
        status = start(folder).exit_status
    except ConfigError as error:
        status = complain(error)
    except KeyboardInterrupt:
        status = 130
    except Exception:  # in somebody's problem, before its record began
        traceback.print_exc()
        status = 1
    finally:
        folders.remove_empty(folder)
    if status in INTERRUPTED:
        sys.exit(status)
    return status


def perform(config: Config, names: dict[str, Any], strategies: dict[str, Config], folder: Path, *,
            progress: bool = True) -> "RunResult":  # fmt: skip
    """Run the task. `names`: the option chosen of each group; `strategies`: for compare, nodes of group `gradient`.

    **Raises** `ConfigError` for what only building and tracing can find out; nothing is written then.
    """
    if hosts.is_secondary(config["device"]["kind"]):  # the first process keeps the record
        with tempfile.TemporaryDirectory() as nowhere:
            return _perform(config, names, strategies, Path(nowhere), tracking.open_tracker(None), progress=False)
    tracker = tracking.open_tracker(config["tracker"])  # first: MLflow's slow import goes on in its own process
    return _perform(config, names, strategies, folder, tracker, progress)


def _perform(
    config: Config, names: dict[str, Any], strategies: dict[str, Config], folder: Path, tracker: Any, progress: bool
) -> "RunResult":
    from implicitexp import device

    kind = config["device"]["kind"]
    with device.configured(kind, config["precision"]) as chosen:
        problem, solver = build("problem", config["problem"]), build("solver", config["solver"])
        settings = _settings(config, names, folder, progress, mesh=chosen if kind == "mesh" else None)
        if config["task"] == "compare":
            from implicitexp.compare import compare

            rows = {name: build(f"gradient={name}", node) for name, node in strategies.items()}
            return compare(problem, solver, rows, settings, tracker)
        from implicitexp.training import train

        gradient = build("gradient", config["gradient"])
        return train(problem, solver, gradient, config["optimizer"], settings, tracker)


def strategies(
    config: Config, names: dict[str, Any], options: Callable[[], dict[str, DictConfig]]
) -> dict[str, Config]:
    """For compare: every option of group `gradient` with its defaults, the configured one as it is configured."""
    if config["task"] != "compare":
        return {}
    found = {}
    for name, node in options().items():
        if name != PER_KIND:
            around = OmegaConf.create({**config, "gradient": node.get("gradient", node)})
            found[name] = validation.resolved(around)["gradient"]
    return found | {names.get("gradient") or "configured": config["gradient"]}


def _settings(config: Config, names: dict[str, Any], folder: Path, progress: bool, mesh: Any) -> "Settings":
    from implicitexp.training import Settings

    return Settings(
        task=config["task"],
        problem=_name(config, names, "problem"),
        gradient=_name(config, names, "gradient"),
        solver=_name(config, names, "solver"),
        seed=config["seed"],
        steps=config["steps"],
        precision=config["precision"],
        device=config["device"]["kind"],
        check_every=config["check_every"],
        log_every=config["log_every"],
        folder=folder,
        config=config,
        target=config["reference"]["target"],
        max_seconds=config["reference"]["max_seconds"],
        progress=progress,
        clip_norm=config["clip_norm"],
        target_loss=config["target_loss"],
        patience=config["patience"],
        mesh=mesh,
    )


def _name(config: Config, names: dict[str, Any], group: str) -> str:
    """The option's name; a configuration without groups (the config.yaml of a run) has the class's name only."""
    return names.get(group) or config[group]["_target_"].rpartition(".")[2].lower()


def shipped_strategies() -> dict[str, Any]:
    """Every option of group `gradient` with its defaults, built, by name; without the one that mixes the others."""
    files = {path.stem: path for path in sorted((folders.shipped() / "gradient").glob("*.yaml"))}
    nodes: dict[str, Any] = {name: OmegaConf.to_container(OmegaConf.load(path)) for name, path in files.items()}
    return {name: build(f"gradient={name}", node) for name, node in nodes.items() if name != PER_KIND}


def build(key: str, node: Config) -> Any:
    """The object that a node describes. **Raises** `ConfigError` naming the key, the class and its arguments."""
    for inner, part in validation.nodes(key, node):
        imported(f"{inner}._target_", part["_target_"])
    from implicitexp import recipe

    built = recipe.from_node(with_floats(node), key)
    try:
        return built.build()
    except ConfigError as error:
        raise type(error)(f"{key}: {error}") from error
    except Exception as error:
        target = node["_target_"]
        raise ConfigError(f"{key}: {target} cannot be built: {one_line(error)}.") from error


def imported(key: str, target: str) -> Any:
    """The object that a `_target_` names; whatever its module raises becomes a `ConfigError` with file and line."""
    module, _, name = target.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except Exception as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = (
            ""
            if "importlib" in last.filename or last.filename == __file__
            else f" ({last.filename}, line {last.lineno})"
        )
        what = f"{type(error).__name__}: {one_line(error)}"
        raise ConfigError(f"{key}={target} cannot be imported: {what}{place}.") from error


def with_floats(node: Any) -> Any:
    """Integers as floats where the class has a float: `problem.target=2` is a number of the experiment, no choice."""
    if isinstance(node, list):
        return [with_floats(x) for x in node]
    if not isinstance(node, dict):
        return node
    node = {name: with_floats(value) for name, value in node.items()}
    if "_target_" not in node:
        return node
    parameters = inspect.signature(imported("_target_", node["_target_"])).parameters
    for name, value in node.items():
        wanted = parameters.get(name)
        if type(value) is int and wanted and (wanted.annotation in (float, "float") or type(wanted.default) is float):
            node[name] = float(value)
    return node
