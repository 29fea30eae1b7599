"""Where the cotangents go: from the walk over the steps to the arguments of the solve."""

from typing import Any

import diffrax as dfx
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from implicitexp.adjoints.diffrax_private import Solve, is_none, is_output, outputs
from implicitexp.adjoints.discrete.clock import Clock, Times
from implicitexp.adjoints.discrete.outputs import Totals


def as_solve(
    solve: Solve, y: PyTree, total: Totals, clock: Clock | None, cotangent: Any, solver_state: Any = None
) -> Solve:
    """The cotangents at their places in `solve`, None being zero. `y`, `solver_state`: of those that it starts from."""
    none = jax.tree.map(lambda _: None, eqx.filter(solve, eqx.is_inexact_array))
    times = Times.of(none) if clock is None or total.clock is None else clock.cotangents(total.clock)
    args, terms, fns = total.theta
    structure = jax.tree.structure(solve.saveat.subs, is_leaf=is_output)
    outs = [
        eqx.tree_at(lambda s: (s.fn, s.ts), out, (fn, total.ts.get(which)), is_leaf=is_none)
        for which, (out, fn) in enumerate(zip(outputs(none.saveat), fns, strict=True))
    ]
    saved = jax.tree.map(_first_saved, solve.saveat.subs, cotangent.save_state, is_leaf=is_output)
    state = none.init_state.solver_state if solver_state is None else solver_state
    start = eqx.tree_at(
        lambda s: (s.y, s.tprev, s.tnext, s.controller_state, s.save_state, s.solver_state, s.dense_ts),
        none.init_state,
        (y, times.tprev, times.tnext, times.state, saved, state, _first(cotangent.dense_ts)),
        is_leaf=is_none,
    )
    return eqx.tree_at(
        lambda s: (s.args, s.terms, s.stepsize_controller, s.saveat.subs, s.t1, s.init_state),
        none,
        (args, terms, times.controller, jax.tree.unflatten(structure, outs), times.end, start),
        is_leaf=is_none,
    )


def _first_saved(out: dfx.SubSaveAt, of: Any) -> Any:
    """The cotangent of the output at t0, which was there before the loop."""
    first = _first((of.ts, of.ys))
    values = first if out.t0 else jax.tree.map(lambda _: None, first)
    return eqx.tree_at(lambda s: (s.ts, s.ys), of, values, is_leaf=is_none)


def _first(of: PyTree) -> PyTree:
    """The cotangent of the first entries only."""
    return jax.tree.map(lambda x: jnp.zeros_like(x).at[0].set(x[0]), of)


def once(cotangents: PyTree, name: str) -> PyTree:
    """The same, refusing a second derivative in reverse mode, which would have to keep all of the walk over the steps."""
    return eqxi.nondifferentiable_backward(
        cotangents,
        msg=f"{name} has second derivatives by forward mode over reverse mode only: use jax.hessian, jax.jacfwd(jax.grad(...)) "
        "or jax.jvp of jax.grad, or diffrax.DirectAdjoint() for jax.grad of jax.grad",
    )


def judged(gradient: PyTree, right: Array, solve: Solve, final: Any, cotangent: Any) -> PyTree:
    """The gradient, if it is `right` and the solve succeeded, else NaN; zero where the result of one that failed is not used,
    whatever its states came to. (Diffrax raises an error if the solution is looked at, and says nothing if only its gradient
    is.)"""
    unused = jnp.array(True)
    for x in jax.tree.leaves(cotangent):
        unused = unused & jnp.all(x == 0)
    unfinished = dfx.is_successful(final.result) & (final.tprev < solve.t1)
    failed = unfinished | ~dfx.is_okay(final.result)

    def one(x):
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return x
        return jnp.where(failed & unused, 0, jnp.where(failed | ~right, jnp.nan, x))

    return jax.tree.map(one, gradient)
