"""The ground truth of a gradient, with an uncertainty of its own: relative to its norm, and never zero.

A closed form where the problem has one. Otherwise two computations in float64 that share as little code as possible,
their difference being what is known of the error of either. A reference that cannot be had is one without a gradient,
and its remark says why.
"""

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from implicitexp import tracing
from implicitexp.solving import Solve
from implicitexp.truth.differences import Contradiction, contradiction, noise_of
from implicitexp.truth.doubles import NoReference, assert_float64, flat, in_float64, scalar, unflat
from implicitexp.truth.pairs import Computation, Pair, Value, pairs_for

EPS = float(np.finfo(np.float64).eps)
ROUNDING = 100.0  # units of rounding that an uncertainty is never below, times the condition
SAFETY = 3.0  # the difference of two computations, and the change on tightening, times this is the uncertainty
JIGGLE = 1e-6  # relative movement of the inputs by which the condition is measured
GROSS = 1e-3  # relative difference of exact_loss and loss that cannot be the solver's error
FLAT_LIMIT = 1000  # entries that go into a JSON record


@dataclasses.dataclass(frozen=True)
class ReferenceSettings:
    """When a reference is good enough."""

    target: float = 1e-9  # relative uncertainty that need not be improved
    max_seconds: float = 20.0  # after which nothing is tightened any more (the first pair takes what it needs)


@dataclasses.dataclass(frozen=True)
class Reference:
    """The true gradient as far as it is known. Without one, `gradient` is None and the uncertainties are infinite."""

    gradient: PyTree  # float64 numpy leaves, of the structure of the parameters; None: there is no reference
    uncertainty: float  # relative to the gradient's norm; infinite where that is zero
    absolute_uncertainty: float
    how: str  # "closed form", "two computations: A and B", or "none"
    loss: float
    seconds: float
    remark: str | None = None
    component_uncertainty: PyTree = None  # of the structure of the gradient, absolute

    def as_dict(self) -> dict[str, Any]:
        """`reference` of result.json: numbers that are not finite are None."""
        vector = None if self.gradient is None else flat(self.gradient)
        return {
            "how": self.how,
            "uncertainty": self.uncertainty if math.isfinite(self.uncertainty) else None,
            "gradient": vector.tolist() if vector is not None and vector.size <= FLAT_LIMIT else None,
            "remark": self.remark,
        }


class Referee:
    """Finds references for one problem; what was compiled for one check serves the next.

    `solver` is the configured one: its kind decides which method is made tight, and which branch of a root is meant.
    """

    def __init__(self, problem: Any, solver: Any = None, settings: ReferenceSettings | None = None):
        self.settings = ReferenceSettings() if settings is None else settings
        with jax.enable_x64(True):
            self.problem, self.solver = in_float64(problem), in_float64(solver)
        self._pairs: list[Pair] | None = None
        self._inspected = False
        self._was_compared = False
        self._closed_form_remark: str | None = None

    def __call__(self, params: PyTree, batch: PyTree = None, judged: PyTree = None) -> Reference:
        """The reference at `params` on `batch`. `judged`: a gradient, whose error decides how far to tighten."""
        start = time.perf_counter()
        with jax.enable_x64(True):
            try:
                found = self._find(in_float64(params), in_float64(batch), judged, start)
            except NoReference as reason:
                found = Reference(None, math.inf, math.inf, "none", math.nan, 0.0, str(reason))
        return dataclasses.replace(found, seconds=time.perf_counter() - start)

    def _find(self, params: PyTree, batch: PyTree, judged: PyTree, start: float) -> Reference:
        exact = _exact_gradient(self.problem, params, batch)
        if exact is not None:
            return self._closed_form(exact, params, batch)
        if not self._inspected:
            assert_float64(self.problem, params, batch)
            self._inspected = True
        return self._two_computations(params, batch, judged, start)

    # -- closed form --------------------------------------------------------------------------------------------------

    def _closed_form(self, exact: Value, params: PyTree, batch: PyTree) -> Reference:
        """100 eps times the condition, which is how a relative movement of parameters and problem moves the gradient."""
        gradient = exact.gradient
        moved = _exact_gradient(jiggled(self.problem), jiggled(params), batch)
        if moved is None:  # it holds at these parameters only
            moved = _exact_gradient(jiggled(self.problem), params, batch)
        sensitivity = _norm(gradient)
        if moved is not None:
            sensitivity = max(sensitivity, _norm(moved.gradient - gradient) / JIGGLE)
        if not np.all(np.isfinite(gradient)):
            raise NoReference("The closed form of the gradient is not finite at these parameters.")
        component = np.full(gradient.shape, ROUNDING * EPS * sensitivity / math.sqrt(max(gradient.size, 1)))
        remark = self._compared(exact.loss, params, batch)
        return _reference(exact, params, ROUNDING * EPS * sensitivity, component, "closed form", remark)

    def _compared(self, exact: float, params: PyTree, batch: PyTree) -> str | None:
        """Once: whether `exact_loss` is the loss at all."""
        if self._was_compared or not math.isfinite(exact):
            return self._closed_form_remark
        self._was_compared = True
        solve = Solve(self.solver)
        loss = eqx.filter_jit(lambda problem, p, b: scalar(problem.loss(p, b, solve)))(self.problem, params, batch)
        if not abs(float(loss) - exact) <= GROSS * max(abs(exact), abs(float(loss))) + GROSS**2:
            self._closed_form_remark = (
                f"exact_loss is {exact:.6g}, but loss is {float(loss):.6g}: the closed form may not be of this problem"
            )
        return self._closed_form_remark

    # -- two computations ---------------------------------------------------------------------------------------------

    def _two_computations(self, params: PyTree, batch: PyTree, judged: PyTree, start: float) -> Reference:
        """The first pair that works: SciPy's where the problem is small, and one within JAX."""
        if self._pairs is None:
            uses = tracing.uses(self.problem, params, batch)
            self._pairs = pairs_for(uses, self.solver)
        reasons = []
        while self._pairs:
            pair = self._pairs[0]
            deadline = time.perf_counter() + self.settings.max_seconds
            try:
                return self._compare(pair, params, batch, judged, start, deadline)
            except NoReference as reason:
                reasons.append(str(reason))
                if len(self._pairs) == 1:
                    break
                del self._pairs[0]
        raise NoReference(" ".join(dict.fromkeys(reasons)))

    def _compare(
        self, pair: Pair, params: PyTree, batch: PyTree, judged: PyTree, start: float, deadline: float
    ) -> Reference:
        """Tighten tenfold until the uncertainty is good enough, or time is over."""

        def at(computation: Computation, tolerance: float, nudge: float = 0.0, params: PyTree = params) -> Value:
            return computation(self.problem, params, batch, tolerance, nudge, deadline)

        looser, tolerance = pair.tolerances[0], pair.tolerances[1]
        before, second = at(pair.second, looser), at(pair.second, tolerance)
        # A backward solve may call rounding what SciPy still resolves: then the first computation may be looser.
        for loose in (tolerance, looser, 10 * looser, 100 * looser):
            first = at(pair.first, loose)
            if np.all(np.isfinite(first.gradient)):
                break
        for value, name in ((first, pair.first.name), (second, pair.second.name), (before, pair.second.name)):
            if not np.all(np.isfinite(value.gradient)):
                raise NoReference(f"The gradient by {name} is not finite.")
        sensitivity, against = self._moved(pair, at, params, (first, second, before), loose)
        found = _two(first, second, before, sensitivity, params, pair)
        if against is not None:  # tighter solves differentiate the same
            return _contradicted(found, against)
        for tolerance in pair.tolerances[2:]:
            if (
                found.uncertainty <= self._wanted(found, judged)
                or time.perf_counter() - start > self.settings.max_seconds
            ):
                break
            before = second
            try:
                first, second = at(pair.first, tolerance), at(pair.second, tolerance)
            except NoReference:
                break
            if not (np.all(np.isfinite(first.gradient)) and np.all(np.isfinite(second.gradient))):
                break  # tighter than rounding allows: what was found stands
            better = _two(first, second, before, sensitivity, params, pair)
            found = better if better.uncertainty < found.uncertainty else found
        return found

    def _wanted(self, found: Reference, judged: PyTree) -> float:
        """A tenth of the error that is to be judged, or the target."""
        if judged is None:
            return self.settings.target
        truth = flat(found.gradient)
        error = _norm(flat(judged) - truth) / max(_norm(truth), np.finfo(float).tiny)
        return max(error / 10, self.settings.target) if math.isfinite(error) else self.settings.target

    def _moved(
        self, pair: Pair, at: Callable, params: PyTree, values: tuple[Value, Value, Value], tolerance: float
    ) -> tuple[float, Contradiction | None]:
        """What a movement of the parameters tells. -> |d gradient| over a relative movement of them, and of the solutions of
        roots and fixed points as far as their rounding moves them, or the Jacobian's condition; and whether the loss changes
        by what its gradient says. Measured once where an evaluation is expensive. `values`: first, second, and second before
        that with a looser tolerance."""
        first, second, _ = values
        size = _norm(first.gradient)
        if pair.sensitivity is not None:
            return max(pair.sensitivity, size), None
        moved = at(pair.first, tolerance, 0.0, jiggled(params))
        found = [size, second.condition * size, _norm(moved.gradient - first.gradient) / JIGGLE]
        nudged = at(pair.first, tolerance, JIGGLE) if pair.has_roots else None
        if nudged is not None:
            found.append(_norm(nudged.gradient - first.gradient) / JIGGLE * max(1.0, second.noise / EPS))
        sensitivity = max(s for s in found if math.isfinite(s))
        noise = noise_of(values, tolerance, 0.0 if nudged is None else abs(nudged.loss - first.loss) / JIGGLE)
        against = contradiction(first, moved, flat(jiggled(params)) - flat(params), noise)
        if against is not None:  # a loss that jumps at these very parameters does so on one side
            back = jiggled(params, -JIGGLE)
            against = contradiction(first, at(pair.first, tolerance, 0.0, back), flat(back) - flat(params), noise)
        if pair.expensive and against is None:
            pair.sensitivity = sensitivity
        return sensitivity, against


def jiggled(tree: PyTree, part: float = JIGGLE) -> PyTree:
    """Every float64 leaf moved by `part` of its size, up or down by a fixed choice."""
    rng = np.random.default_rng(0)

    def one(x):
        if not eqx.is_inexact_array(x):
            return x
        return x * (1 + part * jnp.asarray(rng.choice([-1.0, 1.0], np.shape(x))))

    return jax.tree.map(one, tree)


def _exact_gradient(problem: Any, params: PyTree, batch: PyTree) -> Value | None:
    """The problem's closed form: `exact_gradient`, else the derivative of `exact_loss`; None where it has neither."""
    gradient = problem.exact_gradient(params, batch)  # eagerly: it may ask where it holds
    loss, derivative = _exact_loss(problem, params, batch)
    gradient = derivative if gradient is None else gradient
    if gradient is None:
        return None
    if jax.tree.structure(gradient) != jax.tree.structure(params):
        raise NoReference("exact_gradient must have the structure of the parameters.")
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        if jnp.asarray(leaf).dtype != jnp.float64:
            name = jax.tree_util.keystr(path)
            raise NoReference(f"The closed form's gradient{name} is {jnp.asarray(leaf).dtype.name}, not float64.")
    return Value(math.nan if loss is None else float(loss), flat(gradient))


@eqx.filter_jit
def _exact_loss(problem: Any, params: PyTree, batch: PyTree) -> tuple[Any, PyTree | None]:
    """-> `exact_loss` and its derivative, None where there is none; compiled once for all checks of a problem."""

    def loss(p):
        value = problem.exact_loss(p, batch)
        return (jnp.zeros(()), None) if value is None else (value, value)

    (_, value), gradient = jax.value_and_grad(loss, has_aux=True)(params)
    return value, (None if value is None else gradient)


def _two(first: Value, second: Value, before: Value, sensitivity: float, params: PyTree, pair: Pair) -> Reference:
    """The second is the more accurate one: SciPy's, or the continuous adjoint, by the choice of the pairs."""
    difference, change = np.abs(first.gradient - second.gradient), np.abs(second.gradient - before.gradient)
    rounding = ROUNDING * EPS * max(sensitivity, _norm(second.gradient))
    absolute = max(SAFETY * _norm(difference), SAFETY * _norm(change), rounding)
    spread = rounding / math.sqrt(max(difference.size, 1))
    component = np.maximum(SAFETY * np.maximum(difference, change), spread)
    how = f"two computations: {pair.first.name} and {pair.second.name}"
    return _reference(second, params, absolute, component, how, None)


def _contradicted(found: Reference, against: Contradiction) -> Reference:
    """With the uncertainty that a change of the loss leaves, as if one component were to blame for all of it."""
    absolute = max(found.absolute_uncertainty, float(np.max(against.errors)))
    size = _norm(flat(found.gradient))
    components = unflat(np.maximum(flat(found.component_uncertainty), against.errors), found.gradient)
    return dataclasses.replace(
        found,
        uncertainty=absolute / size if size > 0 else math.inf,
        absolute_uncertainty=absolute,
        component_uncertainty=components,
        remark=against.remark,
    )


def _reference(
    value: Value, params: PyTree, absolute: float, component: np.ndarray, how: str, remark: str | None
) -> Reference:
    absolute = max(absolute, float(np.finfo(float).tiny))
    size = _norm(value.gradient)
    uncertainty = absolute / size if size > 0 else math.inf
    gradient, components = unflat(value.gradient, params), unflat(component, params)
    return Reference(gradient, uncertainty, absolute, how, value.loss, 0.0, remark, components)


def _norm(x: np.ndarray) -> float:
    return float(np.linalg.norm(x))
