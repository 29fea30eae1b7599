"""What is judged: the closed-form cases of the tests, and the strategies that are exact.

A name without parentheses is an option of the framework, one with parentheses a class of `implicitexp.adjoints` that the
library which solves is given; both stand where the two are one implementation.
"""

import sys
from pathlib import Path
from typing import Any, ClassVar

sys.path.append(str(Path(__file__).parents[2] / "tests"))  # which is no package
import truth_cases  # pyright: ignore[reportMissingImports]

from implicitexp import adjoints, strategies
from implicitexp.strategies import approximate, over_steps
from implicitexp.strategies.drop_in import AbstractDropIn

BY_KIND: dict[str, list[Any]] = truth_cases.BY_KIND
KINDS = tuple(BY_KIND)
PRECISIONS = ("float64", "float32")


class Given(AbstractDropIn):
    """An adjoint of `implicitexp.adjoints` as it is, where the framework's option is another implementation."""

    given: Any
    name: ClassVar[str] = "given"
    kinds: ClassVar[tuple[str, ...]] = KINDS

    def adjoint(self) -> Any:
        return self.given


MORE_THAN_UNKNOWNS = 8  # steps of a Krylov solve: no case has as many unknowns
ALGEBRAIC = {
    "implicit": strategies.Implicit(),
    "adjoint, iterated": strategies.Adjoint(),
    "forward": strategies.Forward(),
    "Iterated()": Given(adjoints.Iterated()),
    "reuse, Reuse()": approximate.Reuse(),
    "shine, Shine(8)": approximate.Shine(refine=MORE_THAN_UNKNOWNS),
}
EXACT: dict[str, dict[str, Any]] = {
    "root": ALGEBRAIC,
    "fixed_point": ALGEBRAIC,
    "ode": {
        "adjoint, gauss": strategies.Adjoint(),
        "Gauss()": Given(adjoints.Gauss()),
        "interpolating, Interpolating()": over_steps.Interpolating(),
        "backsolve": strategies.Backsolve(),
        "Backsolve()": Given(adjoints.Backsolve()),
        "forward, forward_sensitivity": strategies.Forward(),
        "ForwardSensitivity()": Given(adjoints.ForwardSensitivity()),
        "implicit, replay, Replay()": over_steps.Replay(),
        "reversible, Reversible()": over_steps.Reversible(),
    },
    "integral": {
        "implicit, frozen_mesh, FrozenMesh()": strategies.Implicit(),
        "adjoint, leibniz": strategies.Adjoint(),
        "Leibniz()": Given(adjoints.Leibniz()),
        "forward": strategies.Forward(),
    },
}
UNROLL = "unroll"  # exact for the program only
OF_THE_PROGRAM = {UNROLL, "implicit, replay, Replay()", "implicit, frozen_mesh, FrozenMesh()"}


def strategies_of(kind: str) -> dict[str, Any]:
    """What is judged on a case of this kind, by name."""
    return {**EXACT[kind], UNROLL: strategies.Unroll()}


def kind_of(case: Any) -> str:
    return next(kind for kind, group in BY_KIND.items() if any(case.name == one.name for one in group))
