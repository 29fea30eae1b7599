"""The shipped data sets (see SOURCES.md), as NumPy arrays in float64 or as they were measured."""

from importlib import resources

import numpy as np


def path(name: str) -> str:
    """The absolute path of a shipped file."""
    return str(resources.files(__name__).joinpath(name))


def digits() -> tuple[np.ndarray, np.ndarray]:
    """Images (1797, 8, 8) with grey values in 0..16, and labels (1797,) in 0..9."""
    with np.load(path("digits.npz")) as file:
        return file["images"].reshape(-1, 8, 8), file["labels"]


def diabetes() -> tuple[np.ndarray, np.ndarray]:
    """Ten raw baseline variables (442, 10), and the disease's progression after a year (442,)."""
    table = np.loadtxt(path("diabetes.csv"), delimiter=",", skiprows=1)
    return table[:, :-1], table[:, -1]


def hare_lynx() -> tuple[np.ndarray, np.ndarray]:
    """Years (21,), 1900 to 1920, and the pelts of hare and lynx in thousands (21, 2)."""
    table = np.loadtxt(path("hare_lynx.csv"), delimiter=",", skiprows=1)
    return table[:, 0], table[:, 1:]


def ieee14() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The IEEE 14-bus network: columns of its buses (14,) and of its branches (20,), by the names in the files' first
    lines; `type` is text (slack, pv, pq), a missing set point is NaN."""
    return columns("ieee14_bus.csv"), columns("ieee14_branch.csv")


def columns(name: str) -> dict[str, np.ndarray]:
    """The columns of a shipped table by their names."""
    table = np.genfromtxt(path(name), delimiter=",", names=True, dtype=None, encoding="utf-8")
    return {column: table[column] for column in table.dtype.names or ()}


def robertson() -> tuple[np.ndarray, np.ndarray]:
    """Times (40,) in s, and measured concentrations of A, B and C (40, 3) as fractions of the total."""
    table = np.loadtxt(path("robertson.csv"), delimiter=",", skiprows=1)
    return table[:, 0], table[:, 1:]


def old_faithful() -> tuple[np.ndarray, np.ndarray]:
    """Durations of 272 eruptions (272,), and the waiting times until the next ones (272,), both in minutes."""
    table = np.loadtxt(path("faithful.csv"), delimiter=",", skiprows=1)
    return table[:, 0], table[:, 1]
