"""What a configuration alone can tell to be wrong: checked before JAX is imported and before anything is written.

Every message names the key, the bad value, the valid ones and the nearest match.
"""

from collections.abc import Callable, Iterator
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from implicitexp import rules, targets
from implicitexp.errors import ConfigError
from implicitexp.words import kind, shown, suggestion

GROUPS = ("problem", "solver", "gradient", "optimizer", "device", "tracker")  # nodes of the configuration
KIND_WORDS = {"root": "a root", "fixed_point": "a fixed point", "ode": "an ODE", "integral": "an integral"}
ITERATED = ("root", "fixed_point")  # the kinds for which `unroll` knows a last iteration

Config = dict[str, Any]
Kinds = Callable[[], dict[str, str | None]]


def validated(composed: DictConfig, solver_kinds: Kinds = dict, names: dict[str, str] | None = None) -> Config:
    """The configuration as plain data, interpolations resolved, without `hints`.

    `solver_kinds`: finds the solvers' options and the kind that each is for, to name those that would work.
    `names`: the option that was chosen of each group.

    **Raises** `ConfigError` for whatever is wrong with it.
    """
    _check_top(composed)
    _check_choices(composed)
    config = resolved(composed)
    hints = config.pop("hints", None) or {}
    for key, rule in rules.TOP.items():
        _apply(config, key, rule)
    _check_problem(config["problem"], hints)
    for name in GROUPS:
        _check_node(config, name)
    _check_pairs(config, hints, solver_kinds, names or {})
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


def one_line(error: BaseException) -> str:
    """What an exception says, its first line, without a full stop."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")


def _check_top(composed: DictConfig) -> None:
    """The keys at the top are ours, and no group is missing."""
    valid = [*{key.partition(".")[0] for key in rules.TOP}, *GROUPS, "hints"]
    for key in composed:
        if key not in valid:
            raise ConfigError(f"{key}: there is no such key{suggestion(str(key), valid)}.")
    for name in GROUPS:
        if not OmegaConf.is_missing(composed, name) and not isinstance(OmegaConf.select(composed, name), DictConfig):
            raise ConfigError(f"{name} is missing; choose one by its name, {name}=NAME (see --help).")
    for name in ("problem", "solver", "gradient", "optimizer"):
        if "_target_" not in composed[name]:
            raise ConfigError(f"{name} has no _target_: its YAML must name a class, `_target_: module.Name`.")


def _check_choices(composed: DictConfig) -> None:
    """Choices that other keys depend on, so before interpolations are resolved."""
    choices = OmegaConf.select(composed, "hints.choices") or {}
    for key, valid in choices.items():
        value = OmegaConf.select(composed.problem, str(key), throw_on_missing=False)
        if value is not None and value not in list(valid):
            raise ConfigError(
                f"problem.{key}={shown(plain(value))}: there is no such choice{suggestion(value, valid)}."
            )


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


def numbers(key: str, value: Any) -> list[float]:
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


def _check_pairs(config: Config, hints: Config, solver_kinds: Kinds, names: dict[str, str]) -> None:
    """Solver and strategy fit the kinds of equation, where the YAML says which these are."""
    kinds, wanted = hints.get("kinds"), hints.get("solver_kind")
    if not kinds:
        return
    solved = " and ".join(KIND_WORDS[k] for k in kinds)
    if wanted is not None and wanted not in kinds:
        fit = [name for name, of in solver_kinds().items() if of is None or of in kinds]
        solver, problem = (names.get(x) or config[x]["_target_"].rpartition(".")[2] for x in ("solver", "problem"))
        raise ConfigError(f"solver={solver} is for {KIND_WORDS[wanted]}, but problem={problem} solves {solved}; use "
                          f"one of the solvers for that: {', '.join(sorted(fit)) or 'auto'}.")  # fmt: skip
    last = config["gradient"].get("last")
    if config["gradient"]["_target_"] == "implicitexp.strategies.Unroll" and last is not None:
        wrong = [k for k in kinds if k not in ITERATED]
        if wrong:
            raise ConfigError(
                f"gradient.last={last}: unroll knows a last iteration of a root and of a fixed point, not of "
                f"{KIND_WORDS[wrong[0]]}; use gradient.last=null, or gradient=adjoint."
            )


def check_override(key: str, value: Any, plus: str, base: DictConfig) -> None:
    """A `key=value` of the command line, against what stands there without it.

    `plus`: "", "+" or "++", as it was written. **Raises** `ConfigError` for a key that is not there, or another type.
    """
    parts, node = key.split("."), base
    for i, part in enumerate(parts):
        if not isinstance(node, DictConfig):
            if isinstance(node, ListConfig) and part.isdigit() and int(part) < len(node):
                return
            raise ConfigError(f"{key}={shown(value)}: {'.'.join(parts[:i])} is {kind(plain(node))}, it has no keys.")
        if part not in node:
            if plus and i > 0 and _open(node):
                return
            raise _no_key(key, value, parts[:i], node, base)
        try:
            node = node[part] if not OmegaConf.is_missing(node, part) else None
        except OmegaConfBaseException:
            return
    if plus == "+" and node is not None and not isinstance(value, dict | list):
        raise ConfigError(f"+{key}={shown(value)}: the key is there already; leave the + away.")
    _check_type(key, value, plain(node))


def _open(node: DictConfig) -> bool:
    """Whether `+` can add a key: to somebody else's class, or to tags. Of our own, every field stands in the YAML."""
    return not str(node.get("_target_", "")).startswith("implicitexp.")


def _no_key(key: str, value: Any, parents: list[str], node: DictConfig, base: DictConfig) -> ConfigError:
    wrong, prefix = key.split(".")[len(parents)], ".".join(parents)
    same = [full for full in leaves(base) if full.rpartition(".")[2] == wrong and not full.startswith("hints.")]
    valid = [str(name) for name in node if name != "hints"]
    if same:
        near = f"; did you mean {same[0]}? {prefix or 'top-level keys'}: {', '.join(sorted(valid))}"
    else:
        near = suggestion(wrong, valid, f"{prefix} has" if prefix else "top-level keys")
    return ConfigError(f"{key}={shown(value)}: there is no key {wrong!r}{f' in {prefix}' if prefix else ''}{near}.")


def leaves(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """The dotted keys of everything that is no dictionary."""
    for name, value in plain(node).items() if isinstance(node, DictConfig) else node.items():
        full = f"{prefix}.{name}" if prefix else str(name)
        if isinstance(value, dict) and value:
            yield from leaves(value, full)  # type: ignore[arg-type]
        else:
            yield full


def _check_type(key: str, value: Any, default: Any) -> None:
    """The same type as the default, in which an integer is a number and null and nodes are anything."""
    if value is None or default is None or isinstance(value, str) and "${" in value:
        return
    if isinstance(default, dict) or isinstance(value, dict) and "_target_" in value:
        return
    if isinstance(default, list) and isinstance(value, list):
        for x in value if default else []:
            _check_type(key, x, default[0])
        return
    same = type(value) is type(default) or (isinstance(default, float) and type(value) is int)
    if not same:
        raise ConfigError(f"{key}={shown(value)}: must be {kind(default)} (as {shown(default)}), not {kind(value)}.")
