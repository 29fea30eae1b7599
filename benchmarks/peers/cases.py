"""What a case is: one problem, the programs that compute its gradient, and the gradient that they are judged by."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Float, PyTree

ROUNDING = 100 * float(np.finfo(np.float64).eps)  # no gradient is known better than this

Role = Literal["ours", "jax", "torch", "native", "floor"]


@dataclasses.dataclass(frozen=True)
class Program:
    """A function of the case's `args`, to be compiled: its gradient, flattened, is held against the reference.

    A floor is what no program for this gradient can do without, written by hand; what it returns is not judged.
    """

    role: Role
    library: str
    name: str
    gradient: Callable[..., PyTree]


@dataclasses.dataclass(frozen=True)
class Foreign:
    """A task of a worker in `foreign/`, which gets the case's `data`."""

    role: Role
    library: str
    name: str
    worker: str  # file in foreign/, without .py
    task: str


@dataclasses.dataclass(frozen=True)
class Reference:
    """The gradient in float64, and how far it is from a second computation, relative to its norm."""

    gradient: Float[np.ndarray, " numbers"]
    uncertainty: float

    @classmethod
    def of_two(cls, better: PyTree, other: PyTree) -> "Reference":
        a, b = flat(better), flat(other)
        return cls(a, max(float(np.linalg.norm(a - b) / np.linalg.norm(a)), ROUNDING))


@dataclasses.dataclass(frozen=True)
class Case:
    """`tolerance`: what all are asked for. `remarks`: what is to be said of it, such as a peer that cannot do it, and why.
    `reference` is called in float64."""

    number: int
    title: str
    tolerance: float
    args: tuple
    programs: list[Program]
    reference: Callable[[], Reference]
    foreign: list[Foreign] = dataclasses.field(default_factory=list)
    data: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    memory: dict[tuple[str, str], Callable[[int], Callable]] = dataclasses.field(default_factory=dict)
    """(library, name) -> from a number of steps to a program of `args`: its memory is measured, it does not run."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line of the list of cases: `build(small)` makes the case, in this precision; a small one is for tests."""

    number: int
    precision: Literal["float32", "float64"]
    build: Callable[[bool], Case]


def flat(tree: PyTree) -> Float[np.ndarray, " numbers"]:
    """All numbers of a gradient in the order of its leaves, in float64."""
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


def relative_error(gradient: Any, reference: Reference) -> float:
    """|g - g_reference| / |g_reference|."""
    found = np.asarray(gradient, np.float64)
    return float(np.linalg.norm(found - reference.gradient) / np.linalg.norm(reference.gradient))
