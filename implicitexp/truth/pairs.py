"""The two computations of a gradient that are compared for the ground truth, and which pair fits a problem."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from implicitexp import solvers, solving
from implicitexp.equations import AbstractEquation, Solution
from implicitexp.truth.doubles import flat, scalar
from implicitexp.truth.host_algebraic import LARGEST_ROOT
from implicitexp.truth.host_base import HostLimits, OnHost
from implicitexp.truth.host_ode import largest_system
from implicitexp.truth.host_solves import host_solver
from implicitexp.truth.tight_solves import AbstractPlan, Continuous, Discrete, TightSolve, is_model, is_stiff

SMALL_TOLERANCES = (1e-10, 1e-11, 1e-12, 1e-13)
LARGE_TOLERANCES = (1e-7, 1e-8, 1e-9, 1e-10, 1e-11, 1e-12)
NESTED_TOLERANCE = 1e-13  # of an equation inside another one's function, which the host leaves to JAX

CONTINUOUS_NAMES = {
    "ode": "the continuous adjoint of {method} in JAX",
    "root": "the implicit function theorem in JAX",
    "fixed_point": "the implicit function theorem in JAX",
    "integral": "the Leibniz rule in JAX",
}
DISCRETE_NAMES = {
    "ode": "backpropagation through {method} in JAX",
    "root": "the iterated adjoint in JAX",
    "fixed_point": "the iterated adjoint in JAX",
    "integral": "the derivative of the rule in JAX",
}
HOST_NAMES = {
    "ode": "forward sensitivities by SciPy's {method}",
    "root": "Newton's method with LAPACK on the host",
    "fixed_point": "Newton's method with LAPACK on the host",
    "integral": "SciPy's quad_vec",
}


class Value(NamedTuple):
    """A loss and its gradient, as numbers on the host."""

    loss: float
    gradient: np.ndarray
    condition: float = 1.0  # of the worst Jacobian on the way
    noise: float = 0.0  # relative rounding of the worst root on the way


class Computation(NamedTuple):
    """One way to a gradient: (problem, params, batch, tolerance, nudge, deadline) -> Value."""

    name: str
    run: Callable[..., Value]

    def __call__(self, problem, params, batch, tolerance, nudge, deadline) -> Value:
        return self.run(problem, params, batch, tolerance, nudge, deadline)


@dataclasses.dataclass
class Pair:
    """Two computations, the second being the more accurate one; `tolerances` from loose to tight."""

    first: Computation
    second: Computation
    tolerances: tuple[float, ...]
    has_roots: bool
    expensive: bool
    sensitivity: float | None = None  # measured once, where an evaluation is expensive


def pairs_for(uses: list[Any], solver: Any) -> list[Pair]:
    """In the order in which they are tried. With SciPy where every equation is small and stands for its exact
    solution; then two computations within JAX, with an explicit method, and with an implicit one."""
    outer = [use for use in uses if not use.nested]
    kinds = tuple(dict.fromkeys(use.kind for use in outer))
    pinned = any(is_model(use.pinned) for use in uses)
    configured_stiff = any(u.kind == "ode" and not is_model(u.pinned) and is_stiff(_method(u, solver)) for u in outer)
    has_roots = any(use.kind in ("root", "fixed_point") for use in uses)
    # Without an ODE there is nothing stiff; with one, what fails explicitly is tried implicitly.
    stiffness = [s for s in (False, True) if s or not configured_stiff] if "ode" in kinds else [False]
    pairs = []
    for stiff in stiffness:
        if not pinned and _fits(outer, stiff):
            first = Computation(_name(CONTINUOUS_NAMES, kinds, "Kvaerno5" if stiff else "Dopri8"),
                                _in_jax(Continuous(stiff=stiff), solver))  # fmt: skip
            second = Computation(_name(HOST_NAMES, kinds, "Radau" if stiff else "DOP853"), _on_host(solver, stiff))
            pairs.append(Pair(first, second, SMALL_TOLERANCES, has_roots, expensive=False))
    if "integral" in kinds and pairs:  # the derivative of an integrand may be harder to integrate than the integrand
        first = Computation(_name(DISCRETE_NAMES, kinds, "Dopri8"), _in_jax(Discrete(), solver))
        pairs.append(dataclasses.replace(pairs[0], first=first))
    for stiff in stiffness:
        first = Computation(_name(DISCRETE_NAMES, kinds, "Kvaerno5" if stiff else "Dopri8"),
                            _in_jax(Discrete(stiff=stiff), solver))  # fmt: skip
        second = Computation(_name(CONTINUOUS_NAMES, kinds, "Kvaerno5" if stiff else "Tsit5"),
                             _in_jax(Continuous(solvers.Tsit5, stiff), solver))  # fmt: skip
        pairs.append(Pair(first, second, LARGE_TOLERANCES, has_roots, expensive=True))
    return pairs


NO_SOLVE = "JAX's own derivative, for no equation is solved"


def _name(names: dict[str, str], kinds: tuple[str, ...], method: str) -> str:
    return ", ".join(dict.fromkeys(names[kind].format(method=method) for kind in kinds)) or NO_SOLVE


def _method(use: Any, solver: Any) -> Any:
    return solvers.for_kind(solver if use.pinned is None else use.pinned, use.kind)


def _fits(outer: list[Any], stiff: bool) -> bool:
    """Whether the host can take every equation."""

    def one(use):
        if use.kind == "ode":
            return use.unknowns <= largest_system(stiff)  # how many of its inputs move is known when it is solved
        return use.kind == "integral" or use.unknowns <= LARGEST_ROOT

    return all(one(use) for use in outer)


def _in_jax(plan: AbstractPlan, solver: Any) -> Callable[..., Value]:
    """Compiled once: tolerance and nudge are data."""

    @eqx.filter_jit
    def evaluate(problem, params, batch, tolerance, nudge):
        solve = TightSolve(plan, solver, tolerance, nudge)
        return jax.value_and_grad(lambda p: scalar(problem.loss(p, batch, solve)))(params)

    def run(problem, params, batch, tolerance, nudge, deadline):
        del deadline
        loss, gradient = evaluate(problem, params, batch, jnp.asarray(tolerance), jnp.asarray(nudge))
        return Value(float(loss), flat(gradient))

    return run


def _on_host(solver: Any, stiff: bool) -> Callable[..., Value]:
    """The loss runs eagerly, so that the host's solves are plain function calls; user code that is compiled inside
    (`scan`, `jit`) is unrolled by `disable_jit`."""

    def run(problem, params, batch, tolerance, nudge, deadline):
        del nudge
        limits = HostLimits(tolerance, deadline, stiff)
        solve = HostSolve(solver, limits)
        with jax.disable_jit():
            loss, gradient = jax.value_and_grad(lambda p: scalar(problem.loss(p, batch, solve)))(params)
        return Value(float(loss), flat(gradient), limits.notes.condition, limits.notes.noise)

    return run


class HostSolve:
    """The `solve` that solves on the host; what is nested in another equation's function is left to JAX, with the
    strategy that the first computation does not use."""

    def __init__(self, configured: Any, limits: HostLimits):
        self.configured, self.limits = configured, limits
        self.nested = TightSolve(Discrete(stiff=limits.stiff), configured, jnp.asarray(NESTED_TOLERANCE))

    def __call__(self, equation: AbstractEquation, args: PyTree = None, *, solver: Any = None) -> Solution:
        if solving.is_inside_equation():
            return self.nested(equation, args, solver=solver)
        method = solvers.for_kind(self.configured if solver is None else solver, equation.kind)
        chosen = host_solver(equation.kind, method, self.limits)
        with jax.disable_jit(False):
            return solving.solve(equation, args, solver=chosen, gradient=OnHost())
