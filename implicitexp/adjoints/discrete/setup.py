"""What `Replay` does to a solve before its loop runs: checks, closures made explicit, solvers that take part in the record."""

from collections.abc import Callable
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from implicitexp.adjoints.diffrax_private import Solve, is_none, is_output, is_sde, save_y
from implicitexp.adjoints.discrete.record import WithStages, plain_loop
from implicitexp.adjoints.discrete.tableau import Scheme, scheme_of
from implicitexp.errors import Unsupported


def checked(solver: Any, terms: PyTree, y0: PyTree, name: str) -> Scheme:
    """The solver's tableau, if the adjoint `name` can do with these."""
    if is_sde(terms):
        raise Unsupported(
            f"{name} is for ordinary differential equations; for a stochastic one use diffrax.RecursiveCheckpointAdjoint"
        )
    scheme = scheme_of(solver)
    if scheme.implicit and any(jnp.iscomplexobj(x) for x in jax.tree.leaves(y0)):
        raise Unsupported(
            f"{name} of {type(solver).__name__} needs a real state: split it into real and imaginary parts, or use an "
            "explicit solver"
        )
    return scheme


def is_field(x: Any) -> bool:
    """Whether it is a term that holds a vector field."""
    return isinstance(x, dfx.ODETerm | dfx.ControlTerm)


def closed(solve: Solve) -> Solve:
    """The same solve with all that its functions close over as leaves of them, so that it can be differentiated."""
    t, y, args, terms = solve.t0, solve.init_state.y, solve.args, solve.terms

    def field(term):
        if not is_field(term):
            return term
        closed = eqx.filter_closure_convert(term.vector_field, t, y, args)
        return eqx.tree_at(lambda s: s.vector_field, term, closed)

    def output(out):
        if out.fn is save_y:
            return out
        return eqx.tree_at(lambda s: s.fn, out, eqx.filter_closure_convert(out.fn, t, y, args))

    terms = jax.tree.map(field, terms, is_leaf=is_field)
    subs = jax.tree.map(output, solve.saveat.subs, is_leaf=is_output)
    event = solve.event
    if event is not None:
        condition = jax.tree.map(lambda fn: _condition(solve, fn), event.cond_fn, is_leaf=callable)
        event = dfx.Event(condition, None, event.direction)
    return eqx.tree_at(lambda s: (s.terms, s.saveat.subs, s.event), solve, (terms, subs, event), is_leaf=is_none)


class _Condition(eqx.Module):
    """The condition of an event, its other arguments filled in. Where the root is, is found after the loop."""

    fn: Any

    def __call__(self, t: Any, y: PyTree, args: PyTree, **kwargs: Any) -> Any:
        del kwargs
        return self.fn(t, y, args)


def _condition(solve: Solve, fn: Any) -> _Condition:
    names = ("terms", "solver", "t0", "t1", "dt0", "saveat", "stepsize_controller", "max_steps")
    rest = {name: getattr(solve, name) for name in names}

    def condition(t, y, args):
        return fn(t, y, args, **rest)

    return _Condition(eqx.filter_closure_convert(condition, solve.t0, solve.init_state.y, solve.args))


def plain(solve: Solve) -> Solve:
    """Its stages by a loop that has a forward mode, for second derivatives."""
    return eqx.tree_at(lambda s: s.solver, solve, with_forward_mode(solve.solver))


def with_forward_mode(solver: Any) -> Any:
    if isinstance(solver, dfx.AbstractRungeKutta) and solver.scan_kind is None:
        return eqx.tree_at(lambda s: s.scan_kind, solver, "lax", is_leaf=is_none)
    return solver


def with_stages(solve: Solve, scheme: Scheme) -> Solve:
    """Its solver leaves the stages of a step in the solver's state."""
    state = solve.init_state
    zeros = jax.tree.map(lambda y: jnp.zeros((len(scheme), *y.shape), y.dtype), state.y)
    return eqx.tree_at(
        lambda s: (s.solver, s.init_state.solver_state),
        solve,
        (WithStages(solve.solver), (state.solver_state, zeros)),
        is_leaf=is_none,
    )


def arrays(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.asarray(x) if eqx.is_array_like(x) else x, tree)


class Shape(eqx.Module):
    """A solver that takes no step: what its step would return, by shape. Diffrax traces the body of its loop to see which
    of its results are known beforehand, and here that loop is not run."""

    solver: Any
    implicit: bool = eqx.field(static=True)

    @property
    def interpolation_cls(self) -> Any:
        return Still

    def error_order(self, terms: PyTree) -> Any:
        return self.solver.error_order(terms)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        del terms, args, made_jump
        result = dfx.RESULTS.successful
        if self.implicit:  # found out while it runs
            result = dfx.RESULTS.where(t0 <= t1, result, dfx.RESULTS.max_steps_reached)
        return y0, y0, {"y0": y0}, solver_state, result


class Still(eqx.Module):
    """What `Shape` interpolates with."""

    t0: Any
    t1: Any
    y0: PyTree

    def evaluate(self, t0: Any, t1: Any = None, left: bool = True) -> PyTree:
        del t0, t1, left
        return self.y0


def around(given: Solve, scheme: Scheme, steps: Callable[[Solve], Any]) -> tuple[Any, dict]:
    """Diffrax's loop with `steps` in the place of its while-loop over the steps: from a solve to the state after them.

    What Diffrax does before and after that, such as finding the time of an event, is differentiated as it stands.
    """

    def outer(cond_fun, body_fun, init_val, *, max_steps, buffers):
        del cond_fun, body_fun, max_steps, buffers
        start = eqx.tree_at(lambda s: s.controller_state, init_val, arrays(init_val.controller_state), is_leaf=is_none)
        return steps(jax.tree.map(without_tangent, closed(eqx.tree_at(lambda s: s.init_state, given, start))))

    if given.event is None and not given.saveat.dense:  # nobody asks for the solver: spare the tracing of its step
        given_shape = eqx.tree_at(lambda s: s.solver, given, Shape(given.solver, scheme.implicit))
        return given_shape.run(plain_loop, outer)
    return given.run(plain_loop, outer)


def without_tangent(x: Any) -> Any:
    """An integer as one that JAX knows to have no tangent: the result of a search among perturbed times counts as perturbed,
    at which Equinox's custom derivative stops."""
    whole = eqx.is_array(x) and (jnp.issubdtype(x.dtype, jnp.integer) or x.dtype == jnp.bool_)
    return jax.lax.bitwise_or(x, jnp.zeros_like(x)) if whole else x


def tied(final: Any, solve: Solve) -> Any:
    """The final state, every number of it in each lane of a `vmap` in which anything of the solve is: JAX refuses a custom
    derivative an output that the lanes share, such as the time where all of them end. Compiled, it is nothing."""
    token = jnp.array(False)
    for x in jax.tree.leaves(eqx.filter(solve, eqx.is_inexact_array)):
        if x.size:
            token = token | (jnp.ravel(x)[0] == 0)
    return jax.tree.map(lambda x: jnp.where(token, x, x) if eqx.is_inexact_array(x) else x, final)


def bounded(solve: Solve, name: str) -> None:
    if solve.max_steps is None:
        raise ValueError(
            f"{name} records every accepted step and has to know how many there may be: give diffeqsolve a max_steps, or use "
            "diffrax.RecursiveCheckpointAdjoint(checkpoints=...)"
        )
