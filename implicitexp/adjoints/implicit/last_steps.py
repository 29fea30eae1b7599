"""The last k iterations of a solver, differentiable; everything before them is a constant."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, PyTree

from implicitexp.adjoints.implicit.optimistix_private import Inputs, constant, run
from implicitexp.equations import Stats
from implicitexp.solvers.algebraic import options_of
from implicitexp.solvers.base import stats


class Truncated(optx.AbstractAdjoint):
    """Differentiate the last iterations of the solver, everything before them held constant (A. Shaban et al. 2019,
    "Truncated back-propagation for bilevel optimization", AISTATS).

    For y <- T(y) from near a fixed point the error is (dT/dy)^last dy, as of `Neumann(last)`; the iterates are those that
    the solver took, Anderson's mixing or Newton's steps, which are differentiated as they stand. A solve of fewer
    iterations than `last` is differentiated whole, its start held. The solver runs twice: once to learn how many iterations
    it takes, once more to k before the end. `last` states are kept. Forward and reverse mode, of any order.

    A solver that solves linear systems differentiates these: with one that raises, such as Lineax's LU of a singular matrix,
    one lane of a batch ends the program (lineax#117).
    """

    last: int = eqx.field(static=True)

    def __check_init__(self):
        if self.last < 1:
            raise ValueError(f"Truncated needs at least one iteration, not {self.last}.")

    def apply(self, primal_fn, rewrite_fn, inputs, tags):
        del rewrite_fn, tags
        live = Inputs(*inputs)
        live = live._replace(y0=constant(live.y0))
        held = constant(live)
        _, outcome = run(primal_fn, held)
        y, aux = _last_iterations(held, live, outcome.steps, outcome.result, self.last)
        return y, outcome._replace(aux=aux)


def _last_iterations(held: Inputs, live: Inputs, steps: Array, result: Any, k: int) -> tuple[PyTree, PyTree]:
    """-> y and aux after `steps` iterations, of which the last k are those of `live`."""
    shapes, aux_shapes = held.structures
    state = held.solver.init(held.fn, held.y0, held.args, held.options, shapes, aux_shapes, held.tags)
    aux = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), aux_shapes)
    carry, static = eqx.partition((held.y0, state, aux), eqx.is_array)

    def advance(inputs: Inputs, carry: PyTree) -> PyTree:
        y, state, _ = eqx.combine(carry, static)
        moved = inputs.solver.step(inputs.fn, y, inputs.args, inputs.options, state, inputs.tags)
        return jax.tree.map(_typed_as, carry, eqx.filter(moved, eqx.is_array))

    before = jnp.maximum(steps - k, 0)
    carry = jax.tree.map(lambda x: _typed_as(x, x), carry)
    carry = constant(jax.lax.fori_loop(0, before, lambda _, c: advance(held, c), carry))

    def maybe(carry, i):
        return jax.lax.cond(i < steps - before, lambda c: advance(live, c), lambda c: c, carry), None

    carry, _ = jax.lax.scan(maybe, carry, jnp.arange(k))
    y, state, aux = eqx.combine(carry, static)
    y, aux, _ = live.solver.postprocess(live.fn, y, aux, live.args, live.options, state, live.tags, result)
    return y, aux


def _typed_as(like: Any, x: Any) -> Array:
    """x in the type of `like`, and not weakly: a loop wants the same type in each of its steps."""
    return jax.lax.convert_element_type(x, like.dtype)


def last_steps(call: Any, k: int) -> tuple[PyTree, Stats]:
    """Solve `call` (a root or a fixed point); the derivative sees the last k iterations."""
    equation, solver = call.equation, call.solver
    sol = (optx.root_find if equation.kind == "root" else optx.fixed_point)(
        equation.fn,
        solver.method(*solver.tolerances(equation.y0)),
        jax.lax.stop_gradient(equation.y0),
        call.args,
        options=options_of(equation),
        max_steps=solver.max_steps,
        adjoint=Truncated(k),
        throw=False,
    )
    return sol.value, stats(sol.result == optx.RESULTS.successful, sol.stats["num_steps"], sol.value)
