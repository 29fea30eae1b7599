"""What a configuration alone can tell to be wrong: checked before JAX is imported and before anything is written.

Every message names the key, the bad value, the valid ones and the nearest match.
"""

from collections.abc import Callable, Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from implicitexp.configuration import pairs, rules, targets
from implicitexp.configuration.words import KIND_WORDS, kind, one_line, shown, suggestion
from implicitexp.errors import ConfigError

GROUPS = ("problem", "solver", "gradient", "optimizer", "device", "tracker")  # nodes of the configuration

Config = dict[str, Any]
Kinds = Callable[[], dict[str, str | None]]


def validated(
    composed: DictConfig,
    solver_kinds: Kinds = dict,
    names: dict[str, Any] | None = None,
    strategy_kinds: dict[str, list[str]] | None = None,
) -> Config:
    """The configuration as plain data, interpolations resolved, without `hints`.

    `solver_kinds`: finds the solvers' options and the kind that each is for, to name those that would work.
    `names`: the option that was chosen of each group. `strategy_kinds`: of the strategies that are not for every kind.

    **Raises** `ConfigError` for whatever is wrong with it.
    """
    _check_top(composed, names or {})
    _check_choices(composed)
    config = resolved(composed)
    hints = _check_hints(config.pop("hints", None))
    for key, rule in rules.TOP.items():
        _apply(config, key, rule)
    _check_problem(config["problem"], hints)
    for name in GROUPS:
        _check_node(config, name)
    pairs.check(config, hints, solver_kinds, strategy_kinds or {}, names or {})
    if config["task"] == "compare" and config["device"]["kind"] == "mesh":
        raise ConfigError("task=compare device=mesh: costs are compared on one device; use device=auto, cpu or gpu.")
    return config


def resolved(composed: DictConfig) -> Config:
    """As plain data. **Raises** `ConfigError` where a value is missing or refers to nothing."""
    for key in missing_keys(composed):
        raise ConfigError(f"{key}=???: a value is missing; give it as {key}=VALUE.")
    try:
        return OmegaConf.to_container(composed, resolve=True)  # type: ignore[return-value]
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'configuration'}: {one_line(error)}.") from error


def missing_keys(composed: DictConfig) -> list[str]:
    """Keys whose value is `???`."""
    try:
        return sorted(OmegaConf.missing_keys(composed))
    except OmegaConfBaseException:  # an interpolation that cannot be resolved, which is told later with its key
        return []


def _check_top(composed: DictConfig, names: dict[str, Any]) -> None:
    """The keys at the top are ours, no group is missing, and what must be a node is one."""
    valid = [*{key.partition(".")[0] for key in rules.TOP}, *GROUPS, "hints"]
    for key in composed:
        if key not in valid:
            raise ConfigError(f"{key}: there is no such key{suggestion(str(key), valid)}.")
    for name in (*GROUPS, "reference"):
        node = composed[name] if name in composed and not OmegaConf.is_missing(composed, name) else None
        if name not in composed:
            raise ConfigError(f"{name} is missing; give {name}=NAME (see --help).")
        if not isinstance(node, DictConfig):
            which = f"{name}={names[name]}" if names.get(name) else name
            raise ConfigError(f"{which}: its YAML must hold keys and values, as `_target_: module.Name`.")
    for key in rules.TOP:
        parent, _, name = key.rpartition(".")
        if parent != "tracker" and name not in (composed[parent] if parent else composed):
            raise ConfigError(f"{key} is missing; leave the ~ away, or give {key}=VALUE.")
    for name in ("problem", "solver", "gradient", "optimizer"):
        if "_target_" not in composed[name]:
            raise ConfigError(f"{name} has no _target_: its YAML must name a class, `_target_: module.Name`.")


def _check_choices(composed: DictConfig) -> None:
    """Choices that other keys depend on, so before interpolations are resolved."""
    for key in ("task", "precision"):
        if not (OmegaConf.is_interpolation(composed, key) or OmegaConf.is_missing(composed, key)):
            rules.TOP[key].check(key, composed[key])
    if "hints" in composed and not isinstance(composed.hints, DictConfig):
        raise ConfigError("hints: must be a node, as config.yaml explains.")
    choices = OmegaConf.select(composed, "hints.choices", default={})
    if not isinstance(choices, dict | DictConfig):
        raise ConfigError("hints.choices: must be a node of keys and lists, as config.yaml explains.")
    for key, valid in choices.items():
        value = OmegaConf.select(composed.problem, str(key), throw_on_missing=False)
        valid = plain(valid) if isinstance(valid, ListConfig) else []
        if value is not None and value not in valid:
            text = shown(plain(value))
            raise ConfigError(f"problem.{key}={text}: there is no such choice{suggestion(text, valid)}.")


HINTS = {"kinds": list, "positive": list, "range": dict, "choices": dict, "length": dict}


def _check_hints(hints: Any) -> Config:
    """What a YAML says of itself, in the shape that config.yaml explains."""
    hints = hints or {}
    for name, shape in HINTS.items():
        if not isinstance(hints.get(name), shape | None):
            raise ConfigError(
                f"hints.{name}={shown(hints[name])}: must be a {shape.__name__}, as config.yaml explains."
            )
    for name in [*(hints.get("kinds") or []), *filter(None, [hints.get("solver_kind")])]:
        if name not in KIND_WORDS:
            raise ConfigError(f"hints: {shown(name)} is no kind of equation{suggestion(shown(name), KIND_WORDS)}.")
    for key, limits in (hints.get("range") or {}).items():
        if not (isinstance(limits, list) and len(limits) == 2 and numbers(f"hints.range.{key}", limits)):
            raise ConfigError(f"hints.range.{key}={shown(limits)}: must be [least, largest].")
    return hints


def plain(value: Any) -> Any:
    """A node of OmegaConf as Python's own data."""
    return OmegaConf.to_container(value, resolve=False) if isinstance(value, DictConfig | ListConfig) else value


def _apply(config: Config, dotted: str, rule: rules.Rule) -> None:
    *parents, name = dotted.split(".")
    node: Any = config
    for parent in parents:
        node = node.get(parent)
        if not isinstance(node, dict):
            return
    if name in node:
        node[name] = rule.check(dotted, node[name])


def _check_problem(problem: Config, hints: Config) -> None:
    """What the problem's YAML says of its own keys."""
    for key in hints.get("positive") or []:
        for number in numbers(f"problem.{key}", problem.get(key)):
            if not number > 0:
                raise ConfigError(f"problem.{key}={shown(problem[key])}: must be above 0, which {number:g} is not.")
    for key, (least, largest) in (hints.get("range") or {}).items():
        for number in numbers(f"problem.{key}", problem.get(key)):
            if not least <= number <= largest:
                raise ConfigError(f"problem.{key}={shown(problem[key])}: must be from {least:g} to {largest:g}.")
    for key, length in (hints.get("length") or {}).items():
        if key in problem and not (isinstance(problem[key], list) and len(problem[key]) == length):
            raise ConfigError(f"problem.{key}={shown(problem[key])}: must be a list of {length} numbers.")


def numbers(key: str, value: Any) -> list[int | float]:
    """One number or a list of them; nothing where the key is absent."""
    values = value if isinstance(value, list) else [] if value is None else [value]
    for x in values:
        if isinstance(x, bool) or not isinstance(x, int | float):
            raise ConfigError(f"{key}={shown(value)}: must be a number, or a list of numbers where the default is one.")
    return values


def _check_node(config: Config, name: str) -> None:
    """Every `_target_` below this key exists, and the keys beside it follow its class's rules."""
    for key, node in nodes(name, config[name]):
        target = node["_target_"]
        reason = targets.why_not(target) if isinstance(target, str) else "it must be written module.Name"
        if reason is not None:
            raise ConfigError(f"{key}._target_={shown(target)} cannot be imported: {reason}.")
        for field, rule in rules.of(target).items():
            if field in node:
                node[field] = rule.check(f"{key}.{field}", node[field])


def nodes(key: str, node: Any) -> Iterator[tuple[str, Config]]:
    """Every dictionary with a `_target_`, and its key."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield key, node
        for name, inner in node.items():
            yield from nodes(f"{key}.{name}", inner)
    elif isinstance(node, list):
        for i, inner in enumerate(node):
            yield from nodes(f"{key}[{i}]", inner)


def check_name(group: str, value: Any, options: list[str]) -> None:
    """A group is given the name of one of its files (or of one in a folder below)."""
    if value is None and group in ("experiment", "optimizer/schedule"):
        return
    if not isinstance(value, str | int | float) or "/" not in str(value) and str(value) not in options:
        name = shown(value)
        raise ConfigError(f"{group}={name}: there is no such {group}{suggestion(name, options, f'{group}s')}.")


def check_override(key: str, value: Any, written: str, base: DictConfig) -> None:
    """A `key=value` of the command line, against what stands there without it.

    `written`: as the user wrote it, `+key=value` perhaps. **Raises** `ConfigError` for a key that is not there, or another type.
    """
    parts, node, plus = key.split("."), base, written[: len(written) - len(written.lstrip("+"))]
    if parts[0] == "hints" and parts[-1] not in ("learning_rate", "sgd_learning_rate"):
        raise ConfigError(f"{written}: hints are what a YAML says of itself, and not for the command line.")
    for i, part in enumerate(parts):
        if not isinstance(node, DictConfig):
            if isinstance(node, ListConfig) and part.isdigit() and int(part) < len(node):
                return
            raise ConfigError(f"{written}: {'.'.join(parts[:i])} is {kind(plain(node))}, it has no keys.")
        if part not in node:
            if plus and i > 0 and _open(node):
                return
            raise _no_key(written, part, parts[:i], node, base)
        if i == len(parts) - 1 and rules.of(str(node.get("_target_"))).get(part, rules.Rule()).mixed:
            return  # a word or a number: the rule tells
        try:
            node = node[part] if not OmegaConf.is_missing(node, part) else None
        except OmegaConfBaseException:
            return
    if plus == "+" and node is not None and not isinstance(value, dict | list):
        raise ConfigError(f"{written}: the key is there already; leave the + away.")
    _check_type(written, value, plain(node))


def _open(node: DictConfig) -> bool:
    """Whether `+` can add a key: to somebody else's class, or to tags. Of our own, every field stands in the YAML."""
    return not str(node.get("_target_", "")).startswith("implicitexp.")


def _no_key(written: str, wrong: str, parents: list[str], node: DictConfig, base: DictConfig) -> ConfigError:
    prefix = ".".join(parents)
    what = f"{prefix} has" if prefix else "top-level keys"
    valid = sorted(str(name) for name in node if name not in ("hints", "hydra"))
    elsewhere = [] if prefix else [full for full in leaves(base) if full.rpartition(".")[2] == wrong]
    near = suggestion(wrong, valid, what)
    if elsewhere:
        near = f"; did you mean {elsewhere[0]}? {what}: {', '.join(valid)}"
    return ConfigError(f"{written}: there is no key {wrong!r}{f' in {prefix}' if prefix else ''}{near}.")


def leaves(base: DictConfig) -> Iterator[str]:
    """The dotted keys of the groups' nodes and of `reference`."""
    for name in (*GROUPS, "reference"):
        if isinstance(base.get(name), DictConfig):
            yield from (f"{name}.{key}" for key in base[name])


def _check_type(written: str, value: Any, default: Any) -> None:
    """The same type as the default, in which an integer is a number and null and nodes are anything."""
    if value is None or default is None or isinstance(value, str) and "${" in value:
        return
    if isinstance(default, dict) and isinstance(value, dict) or isinstance(value, dict) and "_target_" in value:
        return
    if isinstance(default, dict) and "_target_" in default:  # a schedule, in whose place a number may stand
        return
    if isinstance(default, list) and isinstance(value, list):
        for x in value if default else []:
            _check_type(written, x, default[0])
        return
    if not (type(value) is type(default) or isinstance(default, float) and type(value) is int):
        raise ConfigError(f"{written}: must be {kind(default)} (as {shown(default)}), not {kind(value)}.")
