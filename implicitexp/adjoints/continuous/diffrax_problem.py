"""All that a call of `diffrax.diffeqsolve` can be differentiated by, as one pytree.

Diffrax hands an adjoint its arguments in a time s = direction t that runs forward, with terms and functions wrapped
accordingly. Here they are closure converted, so that whatever they hold or close over is a leaf and is differentiated.
"""

from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from implicitexp.adjoints.continuous.trajectory import Flow
from implicitexp.adjoints.diffrax_private import Solve, WrapTerm, is_sde, outputs, save_y
from implicitexp.adjoints.discrete.setup import closed
from implicitexp.errors import Unsupported


class Problem(eqx.Module):
    """An initial value problem and what is saved of it. The leaves of `args` and `fields` come first."""

    args: PyTree
    fields: tuple[Callable, ...]  # (s, y, args) -> a part of dy/ds
    y0: PyTree
    fns: list[Callable | None]  # of each SubSaveAt (s, y, args) -> what is saved; None: y
    conditions: PyTree  # of an event, each (s, y, args) -> a number or a boolean; None: no event
    t0: Array
    t1: Array
    ts: list[Array | None]  # of each SubSaveAt

    @classmethod
    def of(cls, name: str, solve: Solve) -> "Problem":
        """**Raises** `Unsupported` where there is no continuous adjoint."""
        fields = [_field(term) for term in _ode_terms(name, solve)]
        y0, subs = solve.init_state.y, outputs(solve.saveat)
        example = (solve.t0, y0, solve.args)
        event = None if solve.event is None else closed(solve).event
        return cls(
            args=solve.args,
            fields=tuple(eqx.filter_closure_convert(field, *example) for field in fields),
            y0=y0,
            fns=[None if sub.fn is save_y else eqx.filter_closure_convert(_Hidden(sub.fn), *example) for sub in subs],
            conditions=None if event is None else event.cond_fn,
            t0=solve.t0,
            t1=solve.t1,
            ts=[sub.ts for sub in subs],
        )

    def slope(self, s: Any, y: PyTree) -> PyTree:
        """dy/ds."""
        slopes = [field(s, y, self.args) for field in self.fields]
        return jax.tree.map(lambda *xs: sum(xs[1:], xs[0]), *slopes)

    def terms(self) -> Any:
        """As Diffrax's solvers take them, `args` being theirs."""
        terms = [dfx.ODETerm(field) for field in self.fields]
        return terms[0] if len(terms) == 1 else dfx.MultiTerm(*terms)


class Chosen(eqx.Module):
    """A problem, cut into the leaves that are being differentiated (`theta`) and the rest."""

    theta: list[Array]
    rest: list[Any]
    treedef: Any = eqx.field(static=True)
    where: tuple[int, ...] = eqx.field(static=True)
    own: int = eqx.field(static=True)  # how many of theta, the first ones, are the field's

    @classmethod
    def of(cls, problem: Problem | None, where: tuple[int, ...]) -> "Chosen":
        """`where`: indices into the flattened problem. None: of no problem."""
        leaves, treedef = jax.tree.flatten(problem)
        rest = [None if i in where else x for i, x in enumerate(leaves)]
        field_leaves = 0 if problem is None else len(jax.tree.leaves((problem.args, problem.fields)))
        return cls([leaves[i] for i in where], rest, treedef, where, sum(i < field_leaves for i in where))

    def problem(self, theta: list[Array] | None = None) -> Problem:
        """The problem, with other values of theta if given."""
        leaves = list(self.rest)
        for i, value in zip(self.where, self.theta if theta is None else theta, strict=True):
            leaves[i] = value
        return self.treedef.unflatten(leaves)

    def flow(self) -> Flow:
        """The ODE, differentiable by the field's own part of theta."""
        parts = range(len(self.problem().fields))
        return Flow(tuple(_Part(self, i) for i in parts), self.theta[: self.own])


class _Part(eqx.Module):
    """One part of the field as a function of theta."""

    chosen: Chosen
    index: int = eqx.field(static=True)

    def __call__(self, theta: list[Array], s: Any, y: PyTree) -> PyTree:
        problem = self.chosen.problem([*theta, *self.chosen.theta[self.chosen.own :]])
        return problem.fields[self.index](s, y, problem.args)


class _Hidden(eqx.Module):
    """A function that is traced with all it holds: closure conversion leaves a plain one as it is."""

    fn: Callable

    def __call__(self, s: Any, y: PyTree, args: PyTree) -> PyTree:
        return jax.tree.map(jnp.asarray, self.fn(s, y, args))


def _field(term: Any) -> Callable:
    """dy/ds of a term in Diffrax's wrapping, which turns the sign of its control and not of its field."""

    def field(s: Any, y: PyTree, args: PyTree) -> PyTree:
        return jax.tree.map(lambda f: term.direction.astype(f.dtype) * f, term.vf(s, y, args))

    return field


def _ode_terms(name: str, solve: Solve) -> list[Any]:
    terms = solve.terms
    if is_sde(terms):
        raise Unsupported(
            f"{name} is a continuous adjoint of an ODE, and these terms hold a Brownian path; use "
            "diffrax.RecursiveCheckpointAdjoint, or diffrax.BacksolveAdjoint for a Stratonovich equation."
        )
    if not isinstance(terms, dfx.AbstractTerm):
        raise Unsupported(
            f"{name} needs one ODETerm or a MultiTerm of them, and {type(solve.solver).__name__} takes "
            "another structure; use Replay() or diffrax.RecursiveCheckpointAdjoint."
        )
    parts = list(terms.terms) if isinstance(terms, dfx.MultiTerm) else [terms]
    for part in parts:
        inner = part.term if isinstance(part, WrapTerm) else part
        if not isinstance(inner, dfx.ODETerm):
            raise Unsupported(
                f"{name} needs terms of the class ODETerm, not {type(inner).__name__}; a ControlTerm whose control is "
                "differentiable becomes one by its method `to_ode`."
            )
    return parts


def is_moving(tangents: Problem, problem: Problem) -> tuple[int, ...]:
    """Indices of the leaves of the problem that have a tangent."""
    flat = jax.tree.structure(problem).flatten_up_to(tangents)
    return tuple(i for i, tangent in enumerate(flat) if tangent is not None)
