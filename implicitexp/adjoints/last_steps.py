"""The last k iterations of a solver, differentiable; everything before them is a constant."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import PyTree

from implicitexp.equations import Stats
from implicitexp.solvers.algebraic import options_of
from implicitexp.solvers.base import stats


class _Run(eqx.Module):
    """A solver, iterated by hand through Optimistix's public methods `init`, `step`, `terminate`."""

    method: Any
    equation: Any
    args: PyTree
    options: dict[str, Any]

    def with_aux(self, y, args):
        """Optimistix's solvers see fn -> (value, aux). One that finds roots sees a fixed point as the root of fn - y."""
        value = self.equation.fn(y, args)
        if self.equation.kind == "fixed_point" and not isinstance(self.method, optx.AbstractFixedPointSolver):
            value = jax.tree.map(jnp.subtract, value, y)
        return value, None

    def init(self, y):
        shape, aux = jax.eval_shape(self.with_aux, y, self.args)
        return self.method.init(self.with_aux, y, self.args, self.options, shape, aux, frozenset())

    def step(self, y, state):
        y, state, _ = self.method.step(self.with_aux, y, self.args, self.options, state, frozenset())
        return y, state

    def terminate(self, y, state):
        return self.method.terminate(self.with_aux, y, self.args, self.options, state, frozenset())


def last_steps(call: Any, k: int) -> tuple[PyTree, Stats]:
    """Solve `call` (a root or a fixed point); the derivative sees the last k iterations.

    The solver runs twice: once to learn how many iterations it takes, once more, stopping k before the end. The last k
    are then done again on the differentiable path. A solve of fewer than k iterations is unrolled whole.
    """
    # An array again: of the number in an eager `jax.grad(f)(0.3)` the number itself is left.
    constant = jax.tree.map(lambda x: jnp.asarray(jax.lax.stop_gradient(x)) if eqx.is_array(x) else x, call)
    _, statistics = constant.run()
    method = call.solver.method(*call.solver.tolerances(call.equation.y0))
    frozen = _Run(method, constant.equation, constant.args, options_of(call.equation))
    live = _Run(method, call.equation, call.args, options_of(call.equation))
    y0 = constant.equation.y0
    before = jnp.maximum(statistics.steps - k, 0)
    state = frozen.init(y0)
    dynamic, static = eqx.partition((y0, state), eqx.is_array)

    def advance(run, i, dynamic):
        del i
        return eqx.filter(run.step(*eqx.combine(dynamic, static)), eqx.is_array)

    dynamic = jax.lax.fori_loop(0, before, lambda i, d: advance(frozen, i, d), dynamic)
    dynamic = jax.lax.stop_gradient(dynamic)
    remaining = statistics.steps - before

    def maybe(dynamic, i):
        return jax.lax.cond(i < remaining, lambda d: advance(live, i, d), lambda d: d, dynamic), None

    dynamic, _ = jax.lax.scan(maybe, dynamic, jnp.arange(k))
    value, _ = eqx.combine(dynamic, static)
    return value, stats(statistics.converged, statistics.steps, value)
