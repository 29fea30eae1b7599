"""Whether a problem of somebody's own keeps its promises: `implicitexp check my_module.MyProblem`.

Each check is a function of a `Subject` that returns what it found, or raises; a problem that fails one is still put to
the others. What is said of a failure is advice.
"""

import dataclasses
from collections.abc import Callable, Collection
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from implicitexp import prepare, solvers, strategies, tracing
from implicitexp.accuracy import format_error, judge
from implicitexp.errors import ConfigError, Unsupported
from implicitexp.launch import shipped_strategies
from implicitexp.problems.base import AbstractProblem
from implicitexp.reference import Referee
from implicitexp.solving import Solve
from implicitexp.strategies.base import KIND_WORDS, MAX_PARAMETERS
from implicitexp.truth.doubles import assert_float64, flat, in_float64, scalar
from implicitexp.truth.witnesses import difference_gradient

SAME = 1e-4  # relative difference of the same loss by two ways, in float32 with default tolerances
EXACT = 1e-6  # relative difference of a closed form and the solvers, in float64
TRUSTED = 1e-3  # error + uncertainty of a gradient, in float64
MISSED = 0.1  # relative difference of a gradient and differences of the loss that no step explains
STEP = 1e-3  # relative distance of another point: under `vmap`, and of differences (the cube root of 1e-8 is 2e-3)


@dataclasses.dataclass(frozen=True)
class Finding:
    """What one check found: `advice` says what to do about a failure."""

    check: str
    status: Literal["ok", "failed", "note"]
    what: str
    advice: str = ""


class Failure(Exception):
    """A check that failed: what was found, and what to do about it."""

    def __init__(self, what: str, advice: str):
        super().__init__(what)
        self.what, self.advice = what, advice


class Subject:
    """The problem at its first parameters, in the process's precision."""

    def __init__(self, problem: AbstractProblem, seed: int = 0):
        self.problem, self.solver, self.seed = problem, solvers.Auto(), seed
        self.first, self.draws = jax.random.split(jax.random.key(seed))
        self.params = prepare.first_params(problem, self.first)
        self.batch = problem.batch(self.draws)

    def name(self, method: str) -> str:
        return prepare.name_of(self.problem, method)

    def loss(self, params: PyTree, batch: PyTree, strategy: Any = None) -> jax.Array:
        """The loss alone."""
        return scalar(self.problem.loss(params, batch, Solve(self.solver, strategy or strategies.Implicit())))

    def kinds(self) -> list[str]:
        return sorted({use.kind for use in tracing.uses(self.problem, self.params, self.batch)})


def check_shapes(s: Subject) -> str:
    """`init` and `loss` return what they must."""
    prepare.check_loss(s.problem, s.params, s.batch)
    return f"{ravel_pytree(s.params)[0].size} parameters, a scalar loss"


def check_equations(s: Subject) -> str:
    """Which kinds of equation the loss solves."""
    if not (kinds := s.kinds()):
        raise Failure("the loss calls no solver", f"call solve(equation, args) in {s.name('loss')}.")
    return "solves " + " and ".join(KIND_WORDS[k] for k in kinds)


def check_batch(s: Subject) -> str:
    """A minibatch is a function of its key."""
    if s.batch is None:
        return "the whole problem at every update"
    again, other = jax.jit(s.problem.batch)(s.draws), s.problem.batch(s.first)
    if not _equal(s.batch, again):
        raise Failure("two calls with the same key give different data",
                      f"draw with jax.random and the key in {s.name('batch')}, not with numpy's or Python's random.")  # fmt: skip
    if _equal(s.batch, other):
        return "the same data for every key"
    return "a function of its key"


def check_purity(s: Subject) -> str:
    """The loss depends on nothing but its arguments."""
    programs = [str(jax.make_jaxpr(s.loss)(s.params, s.batch)) for _ in range(2)]
    if programs[0] != programs[1] or not _equal(s.loss(s.params, s.batch), s.loss(s.params, s.batch)):
        raise Failure("two calls with the same arguments give different results",
                      f"draw nothing and count nothing in {s.name('loss')}: randomness comes through `batch`.")  # fmt: skip
    return "two calls, the same bits"


def check_jit(s: Subject) -> str:
    """Compiled and not, the same number."""
    eager, jitted = s.loss(s.params, s.batch), jax.jit(s.loss)(s.params, s.batch)
    if not np.isfinite(jitted):
        raise Failure(f"the loss is {float(jitted)} at the first parameters",
                      f"start elsewhere in {s.name('init')}, or look for a log, a square root, a solve that fails.")  # fmt: skip
    if not _close(eager, jitted, SAME):
        raise Failure(
            f"{float(eager):.6g} without jit, {float(jitted):.6g} with it", "keep Python's state out of the loss."
        )
    return f"loss {float(jitted):.6g}, with jit and without"


def check_vmap(s: Subject) -> str:
    """Two parameters at once, and one after the other."""
    points = jax.tree.map(lambda x: jnp.stack([x, x * (1 + STEP)]), s.params)
    one = jax.jit(s.loss)
    loop = jnp.stack([one(jax.tree.map(lambda x, i=i: x[i], points), s.batch) for i in range(2)])
    together = jax.jit(jax.vmap(s.loss, (0, None)))(points, s.batch)
    if not _close(loop, together, SAME):
        raise Failure(
            f"{together} under vmap, {loop} in a loop", "use jax.numpy on whole arrays, and axis=-1 rather than 0."
        )
    return "two parameters together, as one after the other"


def check_precisions(s: Subject) -> str:
    """In float64 nothing stays float32, and the loss is the same number."""
    single = float(jax.jit(s.loss)(s.params, s.batch))
    with jax.enable_x64(True):
        problem, params, batch = in_float64(s.problem), in_float64(s.params), in_float64(s.batch)
        assert_float64(problem, params, batch)
        solve = Solve(in_float64(s.solver), strategies.Implicit())
        double = float(eqx.filter_jit(lambda p, b: scalar(problem.loss(p, b, solve)))(params, batch))
    if not _close(single, double, 100 * SAME):
        raise Failure(f"{single:.6g} in float32, {double:.6g} in float64",
                      "rescale what is subtracted, or say that precision=float64 is needed.")  # fmt: skip
    return f"float32 and float64 agree to {abs(single - double) / max(abs(double), 1e-300):.0e}"


def check_closures(s: Subject) -> str:
    """The gradient is that of the loss's own differences: nothing was dropped on the way to a solver."""
    with jax.enable_x64(True):
        problem, params, batch = in_float64(s.problem), in_float64(s.params), in_float64(s.batch)
        solver = in_float64(s.solver)
        solve = Solve(solver, strategies.Implicit())
        gradient = eqx.filter_jit(jax.grad(lambda p: scalar(problem.loss(p, batch, solve))))(params)
        dead = [jax.tree_util.keystr(path) or "the only parameter"
                for path, leaf in jax.tree_util.tree_leaves_with_path(gradient) if not np.any(np.asarray(leaf))]  # fmt: skip
        rows = difference_gradient(problem, params, batch, solver, STEP)
        along = rows.directions @ flat(gradient)
    scale = np.linalg.norm(rows.derivatives)
    if np.linalg.norm(along - rows.derivatives) > MISSED * scale + EXACT:
        raise Failure(f"differences of the loss give {_short(rows.derivatives)}, the gradient {_short(along)}",
                      "look for stop_gradient, int(), round, argmax, or numpy where jax.numpy belongs.")  # fmt: skip
    if dead:
        raise Failure(f"the gradient of {', '.join(dead)} is zero",
                      "leave out what the loss does not depend on, or start where its derivative is not zero.")  # fmt: skip
    return "the gradient is that of differences of the loss"


def check_exact_loss(s: Subject) -> str:
    """The closed form is the loss."""
    with jax.enable_x64(True):
        problem, params, batch = in_float64(s.problem), in_float64(s.params), in_float64(s.batch)
        exact = problem.exact_loss(params, batch)
        if exact is None:
            return "none: the truth is two computations"
        loss = eqx.filter_jit(lambda p, b: scalar(problem.loss(p, b, Solve(in_float64(s.solver)))))(params, batch)
    if not abs(float(exact) - float(loss)) <= EXACT * max(abs(float(loss)), 1e-3):
        raise Failure(
            f"exact_loss is {float(exact):.8g}, loss {float(loss):.8g}", f"mend {s.name('exact_loss')}, or the loss."
        )
    return "agrees with the loss"


def check_strategies(s: Subject) -> str:
    """All strategies that are defined for it agree with the ground truth, in float64."""
    with jax.enable_x64(True):
        problem, params, batch = in_float64(s.problem), in_float64(s.params), in_float64(s.batch)
        solver, errors, reference = in_float64(s.solver), {}, None
        for name, strategy in shipped_strategies().items():
            if not strategy.exact or strategy.plain() is not strategy:
                continue  # no fault of the problem, or seen already
            if strategy.per_parameter and ravel_pytree(params)[0].size > MAX_PARAMETERS:
                continue
            try:
                solve = Solve(solver, strategy)
                gradient = eqx.filter_jit(jax.grad(lambda p, solve=solve: scalar(problem.loss(p, batch, solve))))(
                    params
                )
            except Unsupported:
                continue
            reference = reference or Referee(problem, solver)(params, batch, gradient)
            if reference.gradient is None:
                raise Failure(f"there is no ground truth: {reference.remark}", "see docs/truth.md for what gives one.")
            errors[name] = judge(gradient, reference)
    wrong = [
        f"{name} {format_error(c.relative_error, c.uncertainty)}"
        for name, c in errors.items()
        if not c.trusted(TRUSTED)
    ]
    if wrong:
        raise Failure(
            "error of " + ", ".join(wrong), "tighten solver.rtol; an equation at a singular point has no gradient."
        )
    worst = max((c.relative_error or 0.0) for c in errors.values())
    return f"{', '.join(errors)} within {worst:.0e} of the truth"


def check_answers(s: Subject) -> str:
    """`evaluate` returns numbers."""
    found = s.problem.evaluate(s.params, Solve(s.solver))
    bad = [name for name, x in found.items() if np.shape(x) != () or not np.isfinite(x)]
    if bad:
        raise Failure(
            f"{', '.join(bad)} is not a finite number", f"return a dictionary of scalars from {s.name('evaluate')}."
        )
    return ", ".join(found) or "none"


CHECKS: dict[str, Callable[[Subject], str]] = {
    "shapes": check_shapes, "equations": check_equations, "batch": check_batch, "purity": check_purity, "jit": check_jit,
    "vmap": check_vmap, "both precisions": check_precisions, "nothing dropped": check_closures,
    "exact_loss": check_exact_loss, "strategies agree": check_strategies, "evaluate": check_answers,
}  # fmt: skip
ADVICE = "a traced value has no number yet: use jax.numpy and jnp.where where Python's if, float() or numpy stands."


def conformance(problem: Any, seed: int = 0, only: Collection[str] = CHECKS) -> list[Finding]:
    """Put a problem to all checks, or `only` some, at the first parameters of this seed -> a finding for each.

    **Raises** `ConfigError` where there is nothing to check: no problem, or an `init` that fails.
    """
    if not isinstance(problem, AbstractProblem):
        raise ConfigError(f"{type(problem).__name__} is no implicitexp.AbstractProblem; derive it from that class.")
    subject = Subject(problem, seed)
    return [_found(name, check, subject) for name, check in CHECKS.items() if name in only]


def _found(name: str, check: Callable[[Subject], str], subject: Subject) -> Finding:
    try:
        return Finding(name, "ok", check(subject))
    except Failure as failure:
        return Finding(name, "failed", failure.what, failure.advice)
    except ConfigError as error:
        return Finding(name, "failed", str(error))
    except (*prepare.CONCRETE, jax.errors.UnexpectedTracerError) as error:
        return Finding(name, "failed", str(error).split("\n")[0], ADVICE)
    except Exception as error:
        return Finding(
            name, "failed", f"{type(error).__name__}: {str(error).split(chr(10))[0]}", f"mend {subject.name('loss')}."
        )


def _equal(a: PyTree, b: PyTree) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def _close(a: Any, b: Any, tolerance: float) -> bool:
    return bool(np.allclose(np.asarray(a, float), np.asarray(b, float), rtol=tolerance, atol=tolerance * 1e-3))


def _short(values: np.ndarray) -> str:
    return np.array2string(np.asarray(values)[:3], precision=3)
