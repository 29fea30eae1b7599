"""How wrong a gradient is, and how sure we are of that."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np
from jaxtyping import PyTree

from implicitexp import notebook
from implicitexp.cost import Cost, measure_cost
from implicitexp.notation import format_error as format_error
from implicitexp.reference import FLAT_LIMIT, Referee, Reference, ReferenceSettings
from implicitexp.strategies import FiniteDifference
from implicitexp.truth.doubles import flat
from implicitexp.truth.witnesses import Directional, program_gradient, strategy_gradient
from implicitexp.truth.witnesses import difference_gradient as difference_gradient
from implicitexp.truth.witnesses import dot_product_test as dot_product_test
from implicitexp.truth.witnesses import forward_gradient as forward_gradient

# A component's error is relative to its size, or to this part of its leaf's root mean square if that is larger.
COMPONENT_FLOOR = 1e-3
# Trust is lost by a component's error relative to its size, or to this part of its leaf's root mean square: the rounding
# of a large component must not condemn a tiny one beside it.
TRUST_FLOOR = 0.1
# A component's error below this many units of rounding of the whole gradient's root mean square is rounding.
COMPONENT_ROUNDING = 10.0
# Two ways through one program differ by their rounding: a program error is never stated below this many units of it.
PROGRAM_ROUNDING = 100.0
CHANCE = 3.0  # standard deviations of an error's part along random directions


@dataclasses.dataclass(frozen=True)
class GradientCheck:
    """A gradient against the reference, and against the derivative of its own program. None: not defined (`remark`)."""

    value: PyTree | Directional
    norm: float
    absolute_error: float | None
    relative_error: float | None  # of the norm, against the true gradient
    cosine: float | None
    program_error: float | None  # of the norm, against the derivative of the program; not below its noise
    uncertainty: float | None  # of relative_error
    resolved: bool  # the error is above its uncertainty: it is a number and not a bound
    worst: dict[str, Any]  # leaf, index, relative_error of the component that is the most wrong
    remark: str | None = None
    component_error: float | None = None  # as `worst`, with TRUST_FLOOR in the place of COMPONENT_FLOOR

    def as_dict(self) -> dict[str, Any]:
        """C of result.json: plain numbers, None where one is not defined or not finite."""
        vector = self.value.derivatives if isinstance(self.value, Directional) else flat(self.value)
        listed = [_finite(x) for x in vector.tolist()] if vector.size <= FLAT_LIMIT else None
        numbers = ("norm", "absolute_error", "relative_error", "cosine", "program_error", "uncertainty")
        return {
            "value": listed,
            **{name: _finite(getattr(self, name)) for name in numbers},
            "resolved": self.resolved,
            "worst": {**self.worst, "relative_error": _finite(self.worst["relative_error"])},
            "remark": self.remark,
        }

    def trusted(self, tolerance: float) -> bool:
        """Whether error + uncertainty, and the error of every component, are at most `tolerance`. Where the true
        gradient is zero there is no relative error, and the absolute one counts."""
        if self.relative_error is None or self.uncertainty is None:
            return self.absolute_error is not None and self.uncertainty is not None and self.absolute_error <= tolerance
        component = self.component_error
        return self.relative_error + self.uncertainty <= tolerance and component is not None and component <= tolerance

    def __str__(self) -> str:
        error = format_error(self.relative_error, self.uncertainty)
        excess = self.worst["relative_error"]
        where = f"{format_number(excess)} at {self.worst['leaf']}{self.worst['index']}" if excess else "-"
        lines = [
            f"relative error    {error}",
            f"absolute error    {format_number(self.absolute_error)}",
            f"worst component   {where if excess != 0 else 'none above its uncertainty'}",
            f"program error     {format_number(self.program_error)}",
        ]
        return "\n".join(lines + ([f"remark            {self.remark}"] if self.remark else []))

    def _repr_html_(self) -> str:
        return notebook.facts("gradient", str(self))


def judge(
    value: PyTree | Directional,
    reference: Reference,
    program: Directional | None = None,
    remark: str | None = None,
) -> GradientCheck:
    """Compare a gradient (or its derivatives along directions) with the reference and with its own program's.

    `program`: what `program_gradient` returned; None: the program error is not known. `remark` is added to the check's.
    """
    remarks = [remark] if remark else []
    if isinstance(value, Directional):
        remarks.append(f"directional: {len(value.derivatives)} random directions")
    vector, eps = _vector(value), _eps(value)
    error, truth, uncertain = _difference(value, vector, reference)
    if reference.gradient is None:
        remarks.append(f"no reference: {reference.remark}")
        absolute = relative = uncertainty = cosine = None
    else:
        size, absolute = _norm(truth), _norm(error)
        zero = size <= uncertain
        relative = None if zero else absolute / size
        uncertainty = uncertain if zero else uncertain / size
        cosine = _cosine(vector, truth) if not zero else None
        if zero:
            remarks.append("the true gradient is zero within its uncertainty: the absolute error stands")
        if reference.remark:
            remarks.append(reference.remark)
    if not np.all(np.isfinite(vector)):
        remarks.append("the gradient is not finite")
    off_program, directional = _program_error(value, vector, program, eps)
    if directional:
        remarks.append("program error: directional")
    resolved = absolute is not None and not absolute <= uncertain
    worst = _worst(value, error, reference, eps, COMPONENT_FLOOR)
    component_error = _worst(value, error, reference, eps, TRUST_FLOOR)["relative_error"]
    return GradientCheck(
        value, _norm(vector), absolute, relative, cosine, off_program, uncertainty, resolved, worst,
        "; ".join(remarks) or None, component_error,
    )  # fmt: skip


def _difference(value: Any, vector: np.ndarray, reference: Reference) -> tuple[np.ndarray, np.ndarray, float]:
    """-> error, truth, absolute uncertainty; along the directions where the value is directional."""
    if reference.gradient is None:
        return np.full(vector.shape, np.nan), np.full(vector.shape, np.nan), math.inf
    truth, uncertain = flat(reference.gradient), reference.absolute_uncertainty
    if isinstance(value, Directional):
        k, n = value.directions.shape
        uncertain *= min(1.0, CHANCE * math.sqrt(k / n))
        truth = value.directions @ truth
    return vector - truth, truth, uncertain


def _worst(value: Any, error: np.ndarray, reference: Reference, eps: float, floor: float) -> dict[str, Any]:
    """The component with the largest relative error beyond what the reference's uncertainty and the rounding explain."""
    if reference.gradient is None:
        return {"leaf": None, "index": None, "relative_error": None}
    if isinstance(value, Directional):
        names, shapes = ["direction"], [error.shape]
        truth = value.directions @ flat(reference.gradient)
        uncertain = np.full(error.shape, reference.absolute_uncertainty)
    else:
        names, shapes = zip(*leaves_of(reference.gradient), strict=True)
        truth = flat(reference.gradient)
        uncertain = flat(reference.component_uncertainty)
    allowed = uncertain + COMPONENT_ROUNDING * eps * _rms(truth)
    excess = np.maximum(np.abs(error) - allowed, 0.0)
    excess = np.where(np.isfinite(error), excess, np.inf)
    ends = np.cumsum([math.prod(shape) for shape in shapes])
    starts = ends - [math.prod(shape) for shape in shapes]
    worst = {"leaf": names[0], "index": [], "relative_error": -1.0}
    for name, shape, start, end in zip(names, shapes, starts, ends, strict=True):
        if start == end:
            continue
        part, t = excess[start:end], truth[start:end]
        scale = np.maximum(np.maximum(np.abs(t), floor * _rms(t)), np.finfo(float).tiny)
        with np.errstate(over="ignore"):
            ratio = part / scale
        i = int(np.argmax(ratio))
        if ratio[i] > worst["relative_error"]:
            index = [int(j) for j in np.unravel_index(i, shape)] if shape else []
            worst = {"leaf": name, "index": index, "relative_error": float(ratio[i])}
    return worst


def leaves_of(tree: PyTree) -> list[tuple[str, tuple[int, ...]]]:
    """(path name such as "field.w1", shape) of every leaf, in `ravel_pytree`'s order."""
    return [
        (jax.tree_util.keystr(path, simple=True, separator=".") or "params", np.shape(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _program_error(
    value: Any, vector: np.ndarray, program: Directional | None, eps: float
) -> tuple[float | None, bool]:
    """-> the distance from the program's derivative, and whether it is along random directions only."""
    if program is None or not np.all(np.isfinite(vector)):
        return None, False
    if isinstance(value, Directional):
        along = value.derivatives if value.directions.shape == program.directions.shape else None
    else:
        along = program.directions @ vector
    size = _norm(program.derivatives)
    if along is None or size == 0:
        return None, False
    directional = program.directions.shape[0] < program.directions.shape[1]
    return max(_norm(along - program.derivatives) / size, PROGRAM_ROUNDING * max(eps, program.eps)), directional


# -- in words ---------------------------------------------------------------------------------------------------------


def format_number(x: float | None) -> str:
    return "-" if x is None else f"{x:.2g}"


@dataclasses.dataclass(frozen=True)
class CheckReport:
    """What `check_gradient` found; `str()` of it is for reading."""

    check: GradientCheck
    reference: Reference
    cost: Cost

    def __str__(self) -> str:
        return f"{self.check}\nreference         {self.reference.how} ({self.reference.seconds:.1f} s)\n{self.cost}"

    def _repr_html_(self) -> str:
        return notebook.facts("gradient", str(self))


def check_gradient(
    problem: Any,
    params: PyTree,
    batch: PyTree = None,
    *,
    solver: Any = None,
    gradient: Any = None,
    settings: ReferenceSettings | None = None,
    seed: int = 0,
) -> CheckReport:
    """How accurate a strategy's gradient of this problem's loss is, how sure that is, and what it costs.

    `batch`: the data of one update (None: `problem.batch(key)` with this seed). `solver`, `gradient`: as for `solve`.
    Raises `Unsupported` where the strategy is not defined for an equation of the loss.
    """
    batch = problem.batch(jax.random.key(seed)) if batch is None else batch
    value = strategy_gradient(problem, params, batch, solver, gradient)
    judged = None if isinstance(value, Directional) else value
    reference = Referee(problem, solver, settings)(params, batch, judged)
    program = program_gradient(problem, params, batch, solver)
    remark = step_remark(problem, params, batch, solver, gradient, reference)
    check = judge(value, reference, program, remark)
    return CheckReport(check, reference, measure_cost(problem, params, batch, solver, gradient))


def step_remark(
    problem: Any, params: PyTree, batch: PyTree, solver: Any, gradient: Any, reference: Reference
) -> str | None:
    """For finite differences: the error beside half and twice the step, which tells how much the choice matters."""
    if not isinstance(gradient, FiniteDifference) or reference.gradient is None:
        return None
    errors = []
    for factor in (0.5, 2.0):
        other = FiniteDifference(gradient.step, gradient.factor * factor, gradient.directions)
        check = judge(strategy_gradient(problem, params, batch, solver, other), reference)
        errors.append(format_number(check.relative_error))
    return f"relative error {errors[0]} at half the step, {errors[1]} at twice"


# -- small helpers ----------------------------------------------------------------------------------------------------


def _vector(value: Any) -> np.ndarray:
    return value.derivatives if isinstance(value, Directional) else flat(value)


def _eps(value: Any) -> float:
    """The rounding unit of the least precise leaf."""
    if isinstance(value, Directional):
        return value.eps
    leaves = [np.asarray(x).dtype for x in jax.tree.leaves(value)]
    return max((float(np.finfo(d).eps) for d in leaves if np.issubdtype(d, np.floating)), default=np.finfo(float).eps)


def _cosine(a: np.ndarray, b: np.ndarray) -> float | None:
    product = _norm(a) * _norm(b)
    return float(a @ b / product) if product > 0 and math.isfinite(product) else None


def _norm(x: np.ndarray) -> float:
    return float(np.linalg.norm(x))


def _rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x**2))) if x.size else 0.0


def _finite(x: float | None) -> float | None:
    return x if x is not None and math.isfinite(x) else None
