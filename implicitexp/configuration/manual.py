"""The text of `--help`, read off the YAML files and their comments; and the `dashboard` command."""

import argparse
import contextlib
import re
import textwrap
from pathlib import Path

import implicitexp
from implicitexp.configuration import folders
from implicitexp.configuration.words import KIND_WORDS
from implicitexp.errors import ConfigError

WIDTH = 118

USAGE = """\
implicitexp: which gradient of a solver inside a model can be trusted, how far, and at what cost.

  python -m implicitexp problem=NAME [GROUP=NAME ...] [KEY=VALUE ...]     (or: implicitexp problem=NAME ...)

  python -m implicitexp +problem=ode                                      train, and check the gradient on the way
  python -m implicitexp problem=ode_lotka_volterra gradient=adjoint optimizer=lbfgs precision=float64
  python -m implicitexp problem=ode_lotka_volterra task=compare           every strategy on the same problem
  python -m implicitexp -m problem=root_kepler,fixed_point_ridge gradient=unroll,implicit,adjoint
  python -m implicitexp -m experiment=compare_all hydra/launcher=local    every problem x every strategy, on all cores
  python -m implicitexp --config-dir my_conf problem=kepler               a problem of your own, in my_conf/problem/
  implicitexp list [problems|strategies|solvers|optimizers|schedules]     names, kinds of equation, a line each
  implicitexp show problem=NAME [...]                                     the configuration that would run, with comments
  implicitexp check my_module.MyProblem [FIELD=VALUE ...]                 whether a problem of your own keeps its promises
  implicitexp dashboard [tracker.uri=URI] [port=5000] [host=127.0.0.1]    look at the record
"""
TITLES = {
    "problem": "Problems (problem=NAME)",
    "gradient": "Gradient strategies (gradient=NAME)",
    "solver": "Solvers (solver=NAME)",
    "optimizer": "Optimizers (optimizer=NAME; any of Optax by optimizer._target_)",
    "optimizer/schedule": "Schedules of the learning rate (optimizer/schedule=NAME)",
    "device": "Devices (device=NAME)",
    "tracker": "Trackers (tracker=NAME)",
    "experiment": "Presets (experiment=NAME)",
}
FLAGS = """\
Flags
  --config-dir DIR  a folder of your own YAML files: DIR/problem/NAME.yaml and so on
  -m                a sweep: one run for each combination of values that are separated by commas, and one table over them;
                    hydra/launcher=local runs them in processes of their own, on all cores (hydra.launcher.n_jobs=N: on N)
  --cfg job         print the configuration, with every key that can be set, instead of running it
  --info, --hydra-help, -sc install=bash    Hydra's own: where the configuration comes from, more flags, completion

Exit status: 0 done, 1 the run failed, 2 the configuration is wrong, 130 and 143 interrupted.
"""


def answer(argv: list[str]) -> int | None:
    """What needs no configuration: `dashboard`, `--help`, `--version` -> exit status; None: something else."""
    if argv[:1] == ["dashboard"]:
        return dashboard(argv[1:])
    if "--help" in argv or "-h" in argv:
        print(text(folders.shipped(), config_dir(argv)))
        return 0
    if "--version" in argv:
        print(f"implicitexp {implicitexp.__version__}")
        return 0
    return None


def text(shipped: Path, own: Path | None = None) -> str:
    """All of it. `own`: the user's folder of configurations."""
    parts = [USAGE]
    for group, title in TITLES.items():
        parts.append(f"{title}\n{table(options(group, shipped, own))}")
    parts.append(f"Values (KEY=VALUE)\n{table(top_level(shipped / 'config.yaml'))}")
    return "\n".join([*parts, FLAGS]).rstrip()


def options(group: str, *folders: Path | None) -> dict[str, str]:
    """The names of a group's files, each with its first line of comment; a later folder's stand before."""
    files = [path for folder in folders if folder for path in sorted((folder / group).glob("*.yaml"))]
    return {path.stem: first_comment(path) for path in files}


def first_comment(path: Path) -> str:
    """What a file says of itself: its first comment that is no `# @package` line."""
    try:
        found = comments(path)
    except (OSError, UnicodeDecodeError) as error:
        return f"(cannot be read: {error})"
    return next((text for text in found if not text.startswith("@package")), "")


def comments(path: Path) -> list[str]:
    """The comments that are lines of their own. **Raises** `OSError`, `UnicodeDecodeError`."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.lstrip("# ").strip() for line in lines if line.startswith("#")]


def strategy_kinds(*folders: Path | None) -> dict[str, list[str]]:
    """Gradient strategy -> the kinds of equation in the line `# kinds: root, fixed_point` of its file; without one, all."""
    found = {}
    for path in (path for folder in folders if folder for path in sorted((folder / "gradient").glob("*.yaml"))):
        with contextlib.suppress(OSError, UnicodeDecodeError):
            said = [text.removeprefix("kinds:") for text in comments(path) if text.startswith("kinds:")]
            found[path.stem] = [kind.strip() for kind in said[0].split(",")] if said else list(KIND_WORDS)
    return found


def top_level(path: Path) -> dict[str, str]:
    """The keys of config.yaml that hold values, with their comments: `steps=200` -> `updates`."""
    found, parent = {}, ""
    for line in path.read_text(encoding="utf-8").splitlines():
        match = re.fullmatch(r"( *)(\w+):(?: +(\S+))? *(?:# (.*))?", line)
        if not match:
            continue
        indent, key, value, comment = match.groups()
        parent = key if not indent else parent
        if parent in ("defaults", "hints", "hydra") or value is None:
            continue
        found[f"{parent}.{key}={value}" if indent else f"{key}={value}"] = comment or ""
    return found


def table(rows: dict[str, str]) -> str:
    """Two columns."""
    width = max((len(name) for name in rows), default=0) + 4
    wrapped = [
        textwrap.fill(comment, WIDTH, initial_indent=f"  {name:<{width - 2}}", subsequent_indent=" " * width)
        if comment
        else f"  {name}"
        for name, comment in rows.items()
    ]
    return "\n".join(wrapped) + "\n"


def config_dir(argv: list[str]) -> Path | None:
    """The folder that `--config-dir` names. **Raises** `ConfigError` where it is not there."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd", type=Path, nargs="?")
    found = parser.parse_known_args(argv)[0].config_dir
    return None if found is None else folders.existing("--config-dir", found)


def dashboard(arguments: list[str]) -> int:
    """`implicitexp dashboard`: serve MLflow's pages until Ctrl-C -> exit status. **Raises** `ConfigError`."""
    from implicitexp import tracking

    given = {"tracker.uri": None, "port": "5000", "host": "127.0.0.1"}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or key not in given:
            raise ConfigError(f"dashboard {argument}: it takes tracker.uri=URI, port=5000 and host=127.0.0.1.")
        given[key] = value
    port = given["port"] or ""
    if not (port.isdigit() and 0 < int(port) < 65536):
        raise ConfigError(f"dashboard port={port}: must be a whole number from 1 to 65535.")
    return tracking.dashboard(given["tracker.uri"], int(port), given["host"] or "")
