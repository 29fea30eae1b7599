"""The commands beside running: `implicitexp list`, `show` and `check`. JAX is imported by `check` alone."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from implicitexp.configuration import folders, manual
from implicitexp.configuration.words import KIND_WORDS, suggestion
from implicitexp.errors import ConfigError

if TYPE_CHECKING:
    from implicitexp.composing import Composer
    from implicitexp.conformance import Finding

GROUPS = {"problems": "problem", "strategies": "gradient", "solvers": "solver", "optimizers": "optimizer",
          "schedules": "optimizer/schedule", "devices": "device", "presets": "experiment"}  # fmt: skip
ALL = "every kind"


def listing(argv: list[str]) -> int:
    """`list [problems|strategies|solvers|...]`: the names, the kinds of equation that each is for, a line each."""
    words = [text for text in argv if not text.startswith("-")]
    own = manual.config_dir(argv)
    words = [text for text in words if own is None or Path(text) != Path(own)]
    for word in words:
        if word not in GROUPS:
            raise ConfigError(f"list {word}: there is no such list{suggestion(word, list(GROUPS), 'lists')}.")
    for word in words or ("problems", "strategies", "solvers", "optimizers"):
        print(f"{word}\n{manual.table(rows(GROUPS[word], own))}\n")
    return 0


def rows(group: str, own: Path | None) -> dict[str, str]:
    """Name -> its kinds of equation, where it has any, and its line."""
    found = {}
    for folder in filter(None, (folders.shipped(), own)):
        for path in sorted((folder / group).glob("*.yaml")):
            kinds = kinds_of(path, group, own)
            found[path.stem] = manual.first_comment(path) + (f"  [{kinds}]" if kinds else "")
    return found


def kinds_of(path: Path, group: str, own: Path | None = None) -> str:
    """What the file says of itself."""
    if group not in ("problem", "solver", "gradient"):
        return ""
    if group == "gradient":
        kinds = manual.strategy_kinds(folders.shipped(), own).get(path.stem, list(KIND_WORDS))
        return ALL if kinds == list(KIND_WORDS) else ", ".join(kinds)
    content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    hints = content.get("hints") or {}
    if group == "problem":
        table = next((x for name, x in hints.items() if name.startswith("kinds_of")), None)
        kinds = hints.get("kinds") if table is None else sorted({k for some in table.values() for k in some})
        return ", ".join(kinds) if isinstance(kinds, list) else ""
    return hints.get("solver_kind") or ALL


def check(argv: list[str]) -> int:
    """`check my_module.MyProblem [field=value ...]`: put a problem to the conformance test -> 0, or 1 for a failure."""
    if not argv:
        raise ConfigError("check what? Give a class, as: implicitexp check my_module.MyProblem [field=value ...].")
    from implicitexp import launch
    from implicitexp.configuration import targets

    if (reason := targets.why_not(argv[0])) is not None:
        raise ConfigError(f"check {argv[0]}: it cannot be imported: {reason}.")
    problem = launch.build("problem", {"_target_": argv[0], **fields(argv[1:])})
    from implicitexp import device
    from implicitexp.conformance import conformance

    with device.configured():
        findings = conformance(problem)
    print_findings(argv[0], findings)
    return int(any(finding.status == "failed" for finding in findings))


def fields(arguments: list[str]) -> dict[str, Any]:
    """`name=value` as YAML reads the value."""
    found = {}
    for text in arguments:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"check: {text}: write a field of the class as name=value.")
        found[name] = yaml.safe_load(value)
    return found


def print_findings(name: str, findings: "list[Finding]") -> None:
    """A table, and what to do about each failure."""
    from rich.table import Table

    from implicitexp.report import console

    table = Table(title=name, title_justify="left")
    for heading in ("check", "", "found"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        table.add_row(
            finding.check,
            finding.status,
            "\n".join(filter(None, (finding.what, finding.advice and f"→ {finding.advice}"))),
        )
    console().print(table)
    failed = sum(finding.status == "failed" for finding in findings)
    console().print(f"{failed} of {len(findings)} checks failed." if failed else "All checks passed.")


def show(composer: "Composer", overrides: list[str], own: Path | None) -> int:
    """`show problem=ode`: the configuration that would run, resolved, with the comments of its files."""
    from implicitexp.configuration.comments import commented

    config, composed = composer.checked(overrides)
    sys.stdout.write(commented(config, dict(composed.hydra.runtime.choices), own))
    return 0
