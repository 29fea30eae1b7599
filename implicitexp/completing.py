"""Shell completion: what may stand at the cursor of a command line. Hydra's scripts for bash, zsh and fish ask for it by
`implicitexp -sc query=SHELL`, with the line in COMP_LINE.

    line -> words before the cursor, the beginning of a word -> its continuations
"""

import glob
import re
from collections.abc import Callable, Iterable, Mapping

from omegaconf import DictConfig, ListConfig, OmegaConf

from implicitexp.commands import GROUPS as LISTS
from implicitexp.composing import GROUPS, Command, Composer, solver_kinds, told, with_values
from implicitexp.configuration import folders, manual, rules
from implicitexp.configuration.validation import plain
from implicitexp.configuration.words import shown
from implicitexp.errors import ConfigError

COMMANDS = ("list", "show", "check", "dashboard")
FLAGS = ("--cfg", "--config-dir", "--help", "--hydra-help", "--info", "--multirun", "--shell-completion", "--version")
OF_HYDRA = ("hydra/launcher=", "hydra.run.dir=", "hydra.sweep.dir=")
HARMLESS = re.compile(r"[\w.,+\-/=:@~\[\]]+")  # bash expands what it is given: `${...}` and spaces stay at home

Prepared = Callable[[list[str]], tuple[Command, Composer]]


def asked(argv: list[str]) -> bool:
    """Whether this is a shell's question."""
    return bool({"-sc", "--shell-completion"} & set(argv)) and any(text.startswith("query=") for text in argv)


def answer(environ: Mapping[str, str], prepared: Prepared) -> int:
    """Print the continuations, a line each. A line that is wrong has none: no message in the midst of typing."""
    line = environ.get("COMP_LINE", "")
    point = environ.get("COMP_POINT", "")
    line = line[: int(point)] if point.isdigit() else line
    words = line.split()[1:]
    word = words.pop() if words and not line[-1:].isspace() else ""
    try:
        with told():
            found = [text for text in continuations(words, word, prepared) if text.startswith(word)]
    except ConfigError:
        found = []
    print("\n".join(sorted(text for text in set(found) if HARMLESS.fullmatch(text))))
    return 0


def continuations(words: list[str], word: str, prepared: Prepared) -> Iterable[str]:
    """Of `word`, after the `words`."""
    if words and words[-1] in ("--config-dir", "-cd"):
        return glob.glob(f"{word}*/")
    if words and words[-1] in ("--cfg", "-c"):
        return ["job", "hydra", "all"]
    if word.startswith("-"):
        return FLAGS
    if words and words[0] in COMMANDS and words[0] != "show":
        return {"list": [*LISTS], "dashboard": ["tracker.uri=", "port=", "host="]}.get(words[0], [])
    command, composer = prepared([text for text in words if text != "show"])
    if "=" in word:
        return values(command, composer, word)
    return [*keys(command, composer, word), *([] if words else COMMANDS)]


def keys(command: Command, composer: Composer, word: str) -> Iterable[str]:
    """Groups, and keys with their dots: `solver=`, `solver.`, `solver.rtol=`."""
    if word.startswith("+"):
        return [f"+{group}=" for group in GROUPS]
    parents = word.rpartition(".")[0]
    base = configuration(command, composer)
    node = OmegaConf.select(base, parents) if parents else base
    if not isinstance(node, DictConfig) or parents.startswith("hints"):
        return []
    prefix = f"{parents}." if parents else ""
    names = [str(name) for name in node if str(name) not in ("hydra", "hints", "_target_")]
    found = [f"{prefix}{name}{'.' if isinstance(node._get_node(name), DictConfig) else '='}" for name in names]
    return found if parents else [*found, *(f"{group}=" for group in GROUPS), *OF_HYDRA]


def values(command: Command, composer: Composer, word: str) -> Iterable[str]:
    """Of `key=`: the names of a group, the choices of a key, or what it is now. After a comma, one value more."""
    written, _, value = word.partition("=")
    key = written.lstrip("+")
    before = value.rpartition(",")[0] + "," if "," in value else ""
    return [f"{written}={before}{one}" for one in _values(command, composer, key)]


def _values(command: Command, composer: Composer, key: str) -> list[str]:
    selections = composer.split(command.overrides)[0]
    if key in (*GROUPS, "hydra/launcher"):
        names = composer.options(key, selections)
        return fitting(command, composer, key, names) if key in ("solver", "gradient") else names
    base = configuration(command, composer)
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(base, parent) if parent else base
    if not isinstance(node, DictConfig) or name not in node or parent.startswith(("hints", "hydra")):
        return []
    rule = rules.TOP.get(key) or rules.of(str(node.get("_target_"))).get(name) or rules.Rule()
    choices = [*rule.choices, *([True, False] if rules.FLAG in rule.types else [])]
    if parent == "problem":
        choices += plain(OmegaConf.select(base, f"hints.choices.{name}")) or []
    present = node._get_node(name)
    if not choices and isinstance(present, ListConfig):
        return [shown(plain(present))]
    return [shown(one) for one in [*(choices or [node[name]]), *([None] if rule.null else [])]]


def fitting(command: Command, composer: Composer, group: str, names: list[str]) -> list[str]:
    """The solvers or strategies for the kinds of equation that the chosen problem has, as far as its YAML says which."""
    base = configuration(command, composer)
    kinds = plain(OmegaConf.select(base, "hints.kinds")) if "problem" in base else None
    if not kinds:
        return names
    if group == "gradient":
        of = manual.strategy_kinds(folders.shipped(), composer.own)
        return [name for name in names if name not in of or set(kinds) <= set(of[name])]
    kind = solver_kinds(composer.loader, command.overrides)
    return [name for name in names if kind.get(name) is None or kind[name] in kinds]


def configuration(command: Command, composer: Composer) -> DictConfig:
    """What stands there so far (the first job of a sweep). Without a problem: that of another one, less the problem."""
    try:
        selections, values = composer.split(composer.jobs(command)[0])
        return with_values(composer.base(selections), values)
    except ConfigError:
        base = composer.base((f"problem={composer.options('problem')[0]}",)).copy()
        OmegaConf.set_struct(base, False)
        del base["problem"]
        return base
