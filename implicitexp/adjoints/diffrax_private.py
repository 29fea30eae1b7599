"""Every private name of Diffrax that the adjoints use; written for 0.7.2.

Diffrax has no public way to add an adjoint: `diffeqsolve` calls `AbstractAdjoint.loop` with the arguments below, and the
loop itself, its state and the two small functions here are what an adjoint is made of.
"""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax as dfx
import equinox as eqx
import jax
from diffrax import _heuristics, _integrate, _saveat, _term
from jaxtyping import PyTree

State = _integrate.State
SaveState = _integrate.SaveState
save_y = _saveat.save_y  # what `SaveAt` saves unless it is told otherwise
WrapTerm = _term.WrapTerm  # a term in the time that runs forward
is_sde = _heuristics.is_sde  # whether there is a Brownian motion among the terms
clip_to_end = (
    _integrate._clip_to_end
)  # (start, end, t1, floor of t1, accepted) -> the end of the next step, t1 if it is near

WhileLoop = Callable[..., Any]  # as `equinox.internal.while_loop`


class Solve(eqx.Module):
    """What `diffeqsolve` hands to the loop of an adjoint, and the loop itself.

    `init_state` is a `State`. Times run forward in all of it: for t1 < t0 Diffrax has turned their sign, wrapped the terms
    and the functions in `saveat` accordingly, and turns the results back afterwards.
    """

    args: PyTree
    terms: PyTree
    solver: Any
    stepsize_controller: Any
    event: dfx.Event | None
    saveat: dfx.SaveAt
    t0: Any
    t1: Any
    dt0: Any
    init_state: Any
    progress_meter: Any
    max_steps: int | None = eqx.field(static=True)

    def run(self, inner: WhileLoop, outer: WhileLoop) -> tuple[Any, dict]:
        """The loop with these two while-loops -> the final `State`, statistics."""
        names = ("args", "terms", "solver", "stepsize_controller", "event", "saveat", "t0", "t1", "dt0", "init_state")
        given = {name: getattr(self, name) for name in names}
        return _integrate.loop(
            **given,
            progress_meter=self.progress_meter,
            max_steps=self.max_steps,
            inner_while_loop=inner,
            outer_while_loop=outer,
        )


class Passed(NamedTuple):
    """Whether the user handed a state over, of a solve that ended where this one starts."""

    solver_state: bool
    controller_state: bool


class AbstractPlugin(dfx.AbstractAdjoint):
    """An adjoint for `diffrax.diffeqsolve(..., adjoint=...)`: what Diffrax asks of it, in one value."""

    @abc.abstractmethod
    def solve(self, given: Solve, passed: Passed, throw: bool) -> tuple[Any, dict]:
        """-> the final `State`, further statistics."""

    def loop(
        self, *, args, terms, solver, stepsize_controller, event, saveat, t0, t1, dt0, max_steps, throw, init_state,
        passed_solver_state, passed_controller_state, progress_meter,
    ):  # fmt: skip
        given = Solve(
            args, terms, solver, stepsize_controller, event, saveat, t0, t1, dt0, init_state, progress_meter, max_steps
        )
        return self.solve(given, Passed(passed_solver_state, passed_controller_state), throw)


class AbstractAround(eqx.Module):
    """A solver of the user's in another of ours, which changes `step` and is the same otherwise."""

    solver: eqx.AbstractVar[Any]

    @property
    def interpolation_cls(self) -> Any:
        return self.solver.interpolation_cls

    def error_order(self, terms: PyTree) -> Any:
        return self.solver.error_order(terms)

    def func(self, terms: PyTree, t0: Any, y0: PyTree, args: PyTree) -> PyTree:
        return self.solver.func(terms, t0, y0, args)


def is_none(x: Any) -> bool:
    return x is None


def is_output(x: Any) -> bool:
    return isinstance(x, dfx.SubSaveAt)


def outputs(saveat: dfx.SaveAt) -> list[Any]:
    """The `SubSaveAt`s, in order."""
    return jax.tree.leaves(saveat.subs, is_leaf=is_output)


def save_states(state: Any) -> list[Any]:
    """The `SaveState`s that belong to them: `ts` and `ys` of the whole solve, filled up to `save_index`."""
    return jax.tree.leaves(state.save_state, is_leaf=lambda x: isinstance(x, SaveState))
