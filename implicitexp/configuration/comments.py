"""A configuration as YAML, each line with the comment that stands beside its key in the file it comes from."""

import re
from pathlib import Path
from typing import Any

import yaml

from implicitexp.configuration import folders

KEY = re.compile(r"^(?P<indent> *)(?P<key>[\w]+):(?P<rest>.*)$")
PACKAGE = re.compile(r"^# @package (\S+)")
COMMENT = re.compile(r"\s#\s(?P<text>.*)$")
WIDEST = 60  # columns: a longer line's comment is not aligned with the others


def commented(config: dict[str, Any], choices: dict[str, Any], own: Path | None = None) -> str:
    """`choices`: the option that was chosen of each group; `own`: the user's folder of configurations."""
    comments = comments_of(folders.shipped() / "config.yaml", "")
    for group, name in choices.items():
        for folder in filter(None, (folders.shipped(), own)):
            path = folder / group / f"{name}.yaml"
            if not group.startswith("hydra") and path.is_file():
                comments |= comments_of(path, group)
    lines, parents = [], []
    for line in yaml.safe_dump(config, sort_keys=False, width=10_000, allow_unicode=True).splitlines():
        found = KEY.match(line)
        if found is None:
            lines.append((line, ""))
            continue
        depth = len(found["indent"]) // 2
        parents[depth:] = [found["key"]]
        lines.append((line, comments.get(".".join(parents), "")))
    column = max((len(line) for line, comment in lines if comment and len(line) <= WIDEST), default=0) + 2
    return "".join(f"{line:{column}}# {comment}\n" if comment else f"{line}\n" for line, comment in lines)


def comments_of(path: Path, group: str) -> dict[str, str]:
    """Dotted key -> comment, of one file."""
    found, parents, package = {}, [], group.replace("/", ".")
    for line in path.read_text(encoding="utf-8").splitlines():
        if at := PACKAGE.match(line):
            package = "" if at[1] == "_global_" else at[1]
        elif (match := KEY.match(line)) and (comment := COMMENT.search(match["rest"])):
            parents[len(match["indent"]) // 2 :] = [match["key"]]
            found[".".join(filter(None, (package, *parents)))] = comment["text"].strip()
        elif match:
            parents[len(match["indent"]) // 2 :] = [match["key"]]
    return found
