"""A run's folder: configuration, metrics, result, parameters and figures, in formats that anything can read.

    config.yaml  metrics.jsonl  result.json  params.npz  *.png

`result.json` is DESIGN's schema 1. Numbers that are undefined or not finite are null, there and in `metrics.jsonl`.
"""

import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import math
import os
import platform
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCHEMA = 1
LONGEST_LIST = 1000  # entries of parameters and gradients that stand in result.json itself
PACKAGES = ("implicitexp", "jax", "jaxlib", "optax", "equinox", "optimistix", "diffrax", "lineax", "quadax", "scipy",
            "numpy", "mlflow")  # fmt: skip
DPI = 120  # of figures


class Folder:
    """The folder of one run. Made when it is opened; everything in it is complete at any moment."""

    def __init__(self, path: Path, config: dict[str, Any]):
        self.path = Path(path)
        self.path.mkdir(parents=True, exist_ok=True)
        self.figures: list[Path] = []
        write_atomically(self.path / "config.yaml", as_yaml(config))
        self.metrics = (self.path / "metrics.jsonl").open("w", encoding="utf-8")

    def log(self, rows: Iterable[dict[str, Any]]) -> None:
        """Append lines to metrics.jsonl."""
        self.metrics.writelines(as_line(row) + "\n" for row in rows)
        self.metrics.flush()

    def save_params(self, params: PyTree) -> Path:
        """The parameters as NumPy arrays, named by their paths."""
        path = self.path / "params.npz"
        temporary = path.with_suffix(".tmp.npz")
        arrays: dict[str, Any] = {name: np.asarray(leaf) for name, leaf in named_leaves(params).items()}
        np.savez(temporary, **arrays)
        os.replace(temporary, path)
        return path

    def save_figure(self, name: str, figure: "Figure") -> Path:
        path = self.path / f"{name}.png"
        figure.savefig(path, dpi=DPI)
        self.figures.append(path)
        return path

    def finish(self, result: dict[str, Any]) -> Path:
        """Write result.json, last of all: who finds it finds the folder complete."""
        self.metrics.close()
        path = self.path / "result.json"
        write_atomically(path, json.dumps(finite(result), indent=2) + "\n")
        return path


def write_atomically(path: Path, text: str) -> None:
    """A reader sees the old file or the new one, never half of it."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def as_line(row: dict[str, Any]) -> str:
    """One line of JSON. To look for numbers that are not finite takes ten times as long, and most rows have none."""
    try:
        return json.dumps(row, allow_nan=False)
    except (ValueError, TypeError):
        return json.dumps(finite(row))


def finite(tree: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for them. Arrays become lists, NumPy's numbers Python's."""
    if isinstance(tree, dict):
        return {str(key): finite(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [finite(value) for value in tree]
    if isinstance(tree, bool | np.bool_):
        return bool(tree)
    if isinstance(tree, np.ndarray | np.generic | jax.Array):
        return finite(np.asarray(tree).tolist())
    if isinstance(tree, float):
        return tree if math.isfinite(tree) else None
    return tree if tree is None or isinstance(tree, int) else str(tree)


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """Leaves by their paths: `field.w1`; a tree that is one leaf is called `params`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {leaf_name(path): leaf for path, leaf in leaves}


def leaf_name(path: Any) -> str:
    """A path of jax.tree_util in words."""
    parts = (getattr(key, "name", getattr(key, "key", getattr(key, "idx", key))) for key in path)
    return ".".join(str(part) for part in parts) or "params"


def flat_or_file(params: PyTree, file: str) -> Any:
    """The parameters in `ravel_pytree`'s order, or where they are, above LONGEST_LIST entries."""
    flat = np.asarray(ravel_pytree(params)[0])
    return flat.tolist() if flat.size <= LONGEST_LIST else {"file": file, "size": int(flat.size)}


def described(module: Any) -> dict[str, Any]:
    """A solver or strategy as `{name, options}`: its option's name, and its fields that are numbers or words."""
    options = {}
    for field in dataclasses.fields(module):
        value = getattr(module, field.name)
        options[field.name] = value.item() if isinstance(value, jax.Array | np.ndarray) and value.size == 1 else value
    plain = {name: x for name, x in options.items() if x is None or isinstance(x, bool | int | float | str)}
    return {"name": option_name(type(module)), "options": plain}


def option_name(cls: type) -> str:
    """What a class is called on the command line: GaussKronrod is gauss_kronrod."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()


def as_yaml(config: dict[str, Any]) -> str:
    """Plain data as YAML, in the order of its keys."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(config))


def config_hash(config: dict[str, Any]) -> str:
    """Twelve hexadecimal digits that are equal for configurations that give the same numbers."""
    beside = ("tracker", "hints", "log_every", "check_every", "sort_by")
    numeric = {key: value for key, value in config.items() if key not in beside}
    return hashlib.sha256(json.dumps(numeric, sort_keys=True, default=str).encode()).hexdigest()[:12]


def versions() -> dict[str, str]:
    """Of Python and the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


@functools.cache
def git_commit() -> str | None:
    """The commit of the working directory, else of the package's own checkout; `-dirty` with uncommitted changes."""
    for folder in (Path.cwd(), Path(__file__).parent):
        try:
            text = subprocess.run(
                ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
                cwd=folder, capture_output=True, text=True, timeout=10, check=True,
            ).stdout.strip()  # fmt: skip
        except (OSError, subprocess.SubprocessError):
            continue
        return text
    return None
