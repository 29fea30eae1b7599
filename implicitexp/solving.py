"""`solve`: the solution of an equation as a function that knows its own derivative.

The function of the equation is closure converted, so that whatever it holds or closes over is an input. Solution and
statistics come out of a `custom_jvp` whose tangent map carries its own transpose (`linear_map`). An extra input, the
tap, is a dictionary of zeros: its cotangent is the sum of the statistics of all solves, over vmap, scan and calls.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from implicitexp import solvers, strategies
from implicitexp.adjoints.implicit.linear_map import linear_map
from implicitexp.equations import ODE, AbstractEquation, FixedPoint, Integral, Root, Solution, Stats
from implicitexp.errors import Unsupported
from implicitexp.strategies.base import KIND_WORDS, AbstractStrategy, Backward, Call, Split, differentiable
from implicitexp.strategies.implicit import Implicit
from implicitexp.truth import mixed_precision as mixed_precision  # repairs JAX when it is imported

TAP_KEYS = (
    "solves",
    "steps",
    "unconverged",
    "adjoint_solves",
    "adjoint_steps",
    "adjoint_unconverged",
    "adjoint_residual",  # sum of squared relative residuals
)
Tap = dict[str, Array]

_inside_equation: contextvars.ContextVar[bool] = contextvars.ContextVar("inside_equation", default=False)


def zero_tap(dtype: Any = None) -> Tap:
    """The tap's value: zeros. `jax.grad` with respect to it gives the sums of the statistics of all solves."""
    return {key: jnp.zeros((), dtype) for key in TAP_KEYS}


def solve(
    equation: AbstractEquation,
    args: PyTree = None,
    *,
    solver: "solvers.AbstractSolver | solvers.Auto | None" = None,
    gradient: AbstractStrategy | None = None,
    tap: Tap | None = None,
) -> Solution:
    """Solve an equation; the value is differentiable by the given strategy.

    **Arguments:** `equation`: `Root`, `FixedPoint`, `ODE` or `Integral`. `args`: any pytree, handed to the equation's
    function. `solver`: one of `implicitexp.solvers` that solves this kind (default `Auto()`: each kind's default).
    `gradient`: one of `implicitexp.strategies` (default `Implicit()`). `tap`: see `zero_tap`.

    **Returns** `Solution(value, stats)`; `stats` has `converged` (bool) and `steps` (int32). Where a solve did not
    converge, value and gradient are NaN, in that lane of a vmap only.

    **Raises** `Unsupported` if solver or strategy is not defined for this kind, if the function's result does not fit,
    or if something would be differentiated that cannot be.
    """
    if not isinstance(equation, AbstractEquation):
        raise Unsupported(f"solve() takes a Root, FixedPoint, ODE or Integral, not {type(equation).__name__}.")
    gradient = Implicit() if gradient is None else gradient
    if not isinstance(gradient, AbstractStrategy):
        raise no_strategy(gradient)
    if equation.kind not in solvers.kinds_of(solver):
        raise wrong_solver(solver, equation.kind)
    method = solvers.for_kind(solver, equation.kind)
    cell = gradient.cell(equation.kind, method)
    call = Call(*canonical(equation, args), method)
    method.check(call.equation, call.args)
    nested = is_inside_equation()
    value, stats = _differentiate(cell, call, None if nested else tap)
    return Solution(value, {"converged": jnp.asarray(stats.converged), "steps": jnp.asarray(stats.steps)})


class Solve(eqx.Module):
    """`solve` with solver, strategy and tap bound: what a problem's loss is handed."""

    solver: Any = None
    gradient: Any = None
    tap: Any = None

    def __call__(self, equation: AbstractEquation, args: PyTree = None, *, solver: Any = None) -> Solution:
        """Solve; `solver` given here is part of the model and stands before the experiment's, which is for the kinds
        that it solves: others get their default."""
        chosen = solvers.for_kind(self.solver, equation.kind) if solver is None else solver
        return solve(equation, args, solver=chosen, gradient=self.gradient, tap=self.tap)


def wrong_solver(solver: Any, kind: str) -> Unsupported:
    """The error for a solver of another kind of equation."""
    able = ", ".join(c.__name__ for c in solvers.SOLVERS if c.kind == kind)
    name = type(solver).__name__
    return Unsupported(f"{name} solves {KIND_WORDS[solver.kind]}, not {KIND_WORDS[kind]}; use Auto, {able}.")


def no_strategy(gradient: Any) -> Unsupported:
    """The error for what is no strategy: a name, a class, or an adjoint that a library takes."""
    cls = gradient if isinstance(gradient, type) else type(gradient)
    known = cls.__name__ if hasattr(strategies, cls.__name__) else "Adjoint"
    return Unsupported(
        f"gradient={gradient if isinstance(gradient, str) else cls.__name__} is no gradient strategy but "
        f"{'a class' if isinstance(gradient, type) else f'of type {cls.__module__}.{cls.__name__}'}; "
        f"give an object, such as implicitexp.{known}()."
    )


# -- the derivative rule ----------------------------------------------------------------------------------------------


def _differentiate(cell: Any, call: Call, tap: Tap | None) -> tuple[PyTree, Stats]:
    """Run the call; attach the cell's linear maps as its derivative."""
    arrays, static = eqx.partition((call, cell), eqx.is_array)
    leaves, treedef = jax.tree.flatten(arrays)
    positions = [i for i, x in enumerate(jax.tree.leaves(call)) if eqx.is_array(x)]  # of the call's arrays, which lead
    allowed = differentiable(call)
    tap_leaves = jax.tree.leaves(tap)

    def rebuild(flat):
        return eqx.combine(treedef.unflatten(flat), static)

    @jax.custom_jvp
    def run(flat, tap_flat):
        del tap_flat
        call, _ = rebuild(flat)
        value, stats = call.run()
        return _poisoned(value, stats.converged), stats

    def rule(primals, tangents):
        flat = [jnp.asarray(x) for x in primals[0]]  # eager jax.grad(f)(0.1) hands over the number itself
        moving = [i for i, p in enumerate(positions) if allowed[p] and not _is_zero(tangents[0][i])]
        call, cell = rebuild(flat)
        value, stats, residuals = cell.linearize(Split.of(call, tuple(positions[i] for i in moving)))
        value = _poisoned(value, stats.converged)
        moved = [tangents[0][i] for i in moving], _instantiated(tangents[1], tap_leaves)
        pushed = _tangent_map(cell, residuals, value, stats, *moved)
        return (value, stats), (pushed, jax.tree.map(_no_tangent, stats))

    run.defjvp(rule, symbolic_zeros=True)
    return run(leaves, tap_leaves)


def _tangent_map(cell, residuals, value, stats: Stats, tangents: list, tap_tangents: list) -> PyTree:
    arrays, static = eqx.partition((cell, residuals), eqx.is_array)

    def push(operands, tangents):
        (arrays, stats), (moving, _) = operands, tangents
        cell, residuals = eqx.combine(arrays, static)
        return _poisoned(cell.push(residuals, moving), stats.converged)

    def pull(operands, cotangent):
        arrays, stats = operands
        cell, residuals = eqx.combine(arrays, static)
        moved, backward = cell.pull(residuals, cotangent)
        moved = _poisoned(moved, stats.converged & backward.converged)
        counts = _statistics(stats, backward) if tap_tangents else {}
        kinds = [jnp.asarray(t).dtype for t in tap_tangents]
        return moved, [c.astype(k) for c, k in zip(jax.tree.leaves(counts), kinds, strict=True)]

    def check():
        cell.check_reverse(sum(t.size for t in tangents))

    return linear_map(push, pull, (arrays, stats), (tangents, tap_tangents), like=value, check=check)


def _statistics(stats: Stats, backward: Backward) -> Tap:
    """In the order of the tap's leaves, which is alphabetical, as for every dictionary."""
    return {
        "solves": jnp.ones(()),
        "steps": stats.steps,
        "unconverged": ~stats.converged,
        "adjoint_solves": jnp.ones(()),
        "adjoint_steps": backward.steps,
        "adjoint_unconverged": ~backward.converged,
        "adjoint_residual": jnp.where(stats.converged, backward.residual, 0) ** 2,
    }


def _poisoned(tree: PyTree, converged: Array) -> PyTree:
    """NaN where it did not converge. A factor, not `where(converged, value, nan)`, whose gradient would be zero."""
    return jax.tree.map(lambda x: x * jnp.where(converged, 1, jnp.nan).astype(x.dtype), tree)


def _is_zero(tangent: Any) -> bool:
    return isinstance(tangent, jax.custom_derivatives.SymbolicZero)


def _instantiated(tangents: list, like: list) -> list:
    return [jnp.zeros_like(x) if _is_zero(t) else t for t, x in zip(tangents, like, strict=True)]


def _no_tangent(x: Array) -> np.ndarray:
    return np.zeros(x.shape, jax.dtypes.float0)


# -- from what the user wrote to a closed call ------------------------------------------------------------------------


@contextlib.contextmanager
def inside_equation() -> Iterator[None]:
    """A solve in here is nested in another one's function: its statistics are not summed (an adjoint would integrate
    them), but its failure is a NaN that the outer solve sees."""
    token = _inside_equation.set(True)
    try:
        yield
    finally:
        _inside_equation.reset(token)


def is_inside_equation() -> bool:
    """Whether the function of another equation is being traced."""
    return _inside_equation.get()


def canonical(equation: AbstractEquation, args: PyTree) -> tuple[AbstractEquation, PyTree]:
    """Numbers become arrays, and the function is closure converted."""
    args = jax.tree.map(
        lambda x: jnp.asarray(x) if isinstance(x, bool | int | float | complex | np.generic) else x, args
    )
    if isinstance(equation, Root | FixedPoint):
        y0 = _floating(equation.y0, "y0")
        fn = _converted(equation.fn, "fn", y0, y0, args)
        if isinstance(equation, FixedPoint):
            return FixedPoint(fn, y0), args
        bounds = None if equation.bounds is None else _floating(equation.bounds, "bounds")
        return Root(fn, y0, bounds), args
    if isinstance(equation, ODE):
        y0 = _floating(equation.y0, "y0")
        time = _time_dtype(equation, y0)
        t0, t1 = jnp.asarray(equation.t0, time), jnp.asarray(equation.t1, time)
        ts = None if equation.ts is None else jnp.asarray(equation.ts, time)
        return ODE(_converted(equation.field, "field", y0, t0, y0, args), y0, t0, t1, ts), args
    assert isinstance(equation, Integral)
    limits = _floating((equation.lower, equation.upper), "limits")
    dtype = jnp.result_type(*limits)
    lower, upper = (jnp.asarray(x, dtype) for x in limits)
    breaks = None if equation.breaks is None else _places(equation.breaks, args)
    return Integral(_converted(equation.integrand, "integrand", None, lower, args), lower, upper, breaks), args


def _floating(tree: PyTree, name: str) -> PyTree:
    """Every leaf as a floating point array."""

    def one(x):
        x = jnp.asarray(x)
        return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(jnp.result_type(float))

    try:
        return jax.tree.map(one, tree)
    except TypeError as error:
        raise Unsupported(f"{name} must be a pytree of numbers or arrays: {error}") from error


def _places(breaks: Callable, args: PyTree) -> Callable:
    """An integral's breaks, checked to be an array of one axis."""
    if not callable(breaks):
        raise Unsupported(f"breaks must be a function of args that returns an array of places, not {breaks!r}.")
    converted = _converted(breaks, "breaks", None, args)
    shapes = [x.shape for x in jax.tree.leaves(converted.out_struct)]
    if [len(shape) for shape in shapes] != [1]:
        raise Unsupported(f"breaks must return one array of one axis, the places; its shape is {shapes}.")
    return converted


def _time_dtype(equation: ODE, y0: PyTree) -> Any:
    """Time is as precise as what is integrated, unless t0, t1 or ts are arrays of another precision."""
    given = [x.dtype for x in (equation.t0, equation.t1, equation.ts) if eqx.is_inexact_array(x)]
    return jnp.result_type(*given) if given else solvers.base.dtype_of(y0)


def _converted(fn: Callable, name: str, fits: PyTree, *example: PyTree) -> Callable:
    """`fn` with everything that it closes over as leaves, checked to return what the equation needs."""
    with inside_equation():
        converted = eqx.filter_closure_convert(fn, *example)
    out = converted.out_struct
    if not all(
        isinstance(x, jax.ShapeDtypeStruct) and jnp.issubdtype(x.dtype, jnp.inexact) for x in jax.tree.leaves(out)
    ):
        raise Unsupported(f"{name} must return floating point arrays, not {out}.")
    if fits is not None:
        want = jax.tree.map(lambda x: (x.shape, x.dtype.name), fits)
        have = jax.tree.map(lambda x: (x.shape, x.dtype.name), out)
        if want != have:
            raise Unsupported(f"{name} must return what y is, in structure, shape and dtype: {want}, but got {have}.")
    return converted
