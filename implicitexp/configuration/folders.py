"""Folders of the command line: where the configuration lies, what a run's is called, and that none stays empty."""

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from hashlib import blake2s
from pathlib import Path

from implicitexp.errors import ConfigError


def shipped() -> Path:
    """Our own conf/: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).parents[1]
    beside = package.parent / "conf"
    return beside if (beside / "config.yaml").is_file() else package / "conf"


def existing(flag: str, folder: str | Path) -> Path:
    """The folder's absolute path. **Raises** `ConfigError` where it is not there."""
    path = Path(folder).absolute()
    if not path.is_dir():
        raise ConfigError(f"{flag} {folder}: there is no such folder ({path}).")
    return path


def not_text(folders: Iterable[str]) -> list[str]:
    """The YAML files in these folders that are not UTF-8."""
    files = {path.resolve() for folder in folders for path in Path(folder).rglob("*.yaml") if path.is_file()}
    return sorted(str(path) for path in files if not _is_text(path))


def _is_text(path: Path) -> bool:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True


def unique() -> str:
    """Six digits that tell apart runs started in the same second, on one machine or on many."""
    return blake2s(f"{os.uname().nodename} {os.getpid()} {time.time_ns()}".encode(), digest_size=3).hexdigest()


@contextlib.contextmanager
def none_left_empty(folder: Path) -> Iterator[list[Path]]:
    """A run that could not start leaves no folder behind, and none of those around it. Yields a list for further
    folders, whose names are known later."""
    present = {path for path in folder.absolute().parents if path.exists()}
    used = [folder]
    try:
        yield used
    finally:
        for path in (path for one in used for path in (one.absolute(), *one.absolute().parents)):
            if path not in present:
                remove_empty(path)


def remove_empty(folder: Path) -> None:
    """Remove a folder that holds nothing (or what a sweep without a single run leaves, `multirun.yaml`)."""
    with contextlib.suppress(OSError):
        if [entry.name for entry in folder.iterdir()] == ["multirun.yaml"]:
            (folder / "multirun.yaml").unlink()
        folder.rmdir()
