"""What is computed of one strategy on one case: errors against the closed form, and against the derivative of the program."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.accuracy.subjects import kind_of
from implicitexp import solvers
from implicitexp.errors import Unsupported
from implicitexp.solving import Solve
from implicitexp.truth.doubles import flat
from implicitexp.truth.witnesses import program_gradient


@dataclasses.dataclass(frozen=True)
class Measured:
    """Errors, relative; NaN where there is no number. `failure`: in place of them, why there are none."""

    primal: float = math.nan  # of the loss
    tolerances: float = math.nan  # the loss's absolute error over rtol |loss| + atol, which its solve was asked for
    gradient: float = math.nan  # in the 2-norm
    program: float | None = None  # distance of the gradient to the program's; None: not asked for
    failure: str = ""
    refused: bool = False  # whether the failure is a refusal in words


@dataclasses.dataclass(frozen=True)
class Truth:
    """The closed form at the parameters as the precision rounds them, and the program's gradient there where it is wanted."""

    loss: float
    gradient: np.ndarray
    program: np.ndarray | None = None


def truth_of(case: Any, precision: str, of_program: bool = False) -> Truth:
    """`of_program`: with the derivative of the configured solver's own program, by forward mode through its loop."""
    with jax.enable_x64(True):
        start = {name: jnp.asarray(np.asarray(x, precision).astype(np.float64)) for name, x in case.start}
        loss, gradient = jax.value_and_grad(case.exact)(start)
        loss, gradient = float(loss), flat(gradient)
    if not of_program:
        return Truth(loss, gradient)
    found = program_gradient(case, case.init(None), None, case.solver)
    return Truth(loss, gradient, np.full(gradient.shape, np.nan) if found is None else found.derivatives)


def measured(case: Any, strategy: Any, truth: Truth, of_program: bool = False) -> Measured:
    """In the precision of the process. `of_program`: whether the gradient is to be that of the program."""
    loss = jax.value_and_grad(lambda p: case.loss(p, None, Solve(case.solver, strategy)))
    try:
        value, gradient = jax.jit(loss)(case.init(None))
    except Unsupported as refusal:
        return Measured(failure=str(refusal), refused=True)
    except Exception as error:  # whatever a program that does not work raises stands in its row
        return Measured(failure=f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
    off, found = abs(float(value) - truth.loss), flat(gradient)
    asked = tolerance(case) * (1 + abs(truth.loss))
    program = _distance(found, truth.program) if of_program and truth.program is not None else None
    return Measured(off / abs(truth.loss), off / asked, _distance(found, truth.gradient), program)


def tolerance(case: Any) -> float:
    """Relative and absolute, of the case's solve in the precision of the process."""
    solver: Any = solvers.for_kind(case.solver, kind_of(case))
    return float(solver.noise(jnp.zeros(())))


def _distance(found: np.ndarray, true: np.ndarray) -> float:
    return float(np.linalg.norm(found - true) / np.linalg.norm(true))
