"""An algebraically reversible solve of an ODE: its gradient is exact, and no state of the forward pass is kept.

Beside the solution y runs a second one, z. With the increment Psi(t, t', z) of a step of any Runge-Kutta method from t to t',

    y_{n+1} = c y_n + (1 - c) z_n + Psi(t_n, t_{n+1}, z_n),    z_{n+1} = z_n - Psi(t_{n+1}, t_n, y_{n+1}),

which can be undone line by line, in reverse order, up to rounding. Backwards the states are made again from the last ones,
and each step is transposed by the way: the same two increments serve both.

Source: S. McCallum and J. Foster 2024, "Efficient, Accurate and Stable Gradients for Neural ODEs", arXiv 2410.11648.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from implicitexp.adjoints.diffrax_private import AbstractAround, AbstractPlugin, Passed, Solve, is_none
from implicitexp.adjoints.discrete.clock import Clock
from implicitexp.adjoints.discrete.cotangents import as_solve, idle
from implicitexp.adjoints.discrete.outputs import Model, saved_outputs
from implicitexp.adjoints.discrete.record import Recording, run
from implicitexp.adjoints.discrete.reversible_walk import RegularEnds, ReversibleWalk
from implicitexp.adjoints.discrete.setup import around, bounded, checked, tied, with_forward_mode
from implicitexp.adjoints.discrete.tableau import Scheme
from implicitexp.errors import Unsupported


class Reversible(AbstractPlugin):
    """Solve by the reversible form of the solver, and backpropagate without any stored state.

    Use as `diffrax.diffeqsolve(..., adjoint=Reversible())`, with an explicit Runge-Kutta solver. The solution is that of the
    reversible method, which has the order of the solver and is not the same number: the gradient is that of what is returned,
    to rounding. A step costs two of the solver's, forwards and backwards. Memory: a few states, whatever the number of steps;
    under an error control the times of the steps besides, 2 `max_steps` numbers (with constant steps they are known).

    `coupling` c lies in (0, 1]. Where a step multiplies a component of the solution by R, it multiplies the difference of y
    and z there by c/R: the solution of a field that contracts (R < c) drifts away from the exact one, the more so the nearer
    c is to 1. Backwards rounding grows by 1/c a step. So c has to be between exp(-20/N) for N steps, in float64, and the
    contraction of a step, and where there is no such c this is not the adjoint to take: over the 82 steps of
    Lotka-Volterra at rtol = 1e-6 the gradient of the rates is off by 0.5 with 0.999, by 2e-2 with 0.95 and NaN below 0.92,
    where that of `Replay` is off by 7e-5 (`benchmarks/replay.py` has the equation). A gradient whose states did not come
    back to the start, up to the square root of the rounding, is NaN.

    `SaveAt`, events, t0, t1, args and second derivatives are as for `Replay`. A solver state that is passed in must come from
    a solve with this adjoint.

    Source: S. McCallum and J. Foster 2024, arXiv 2410.11648, equations 3 to 5.

    Raises:
        Unsupported: a stochastic equation, an implicit solver, a solver without a tableau.
        ValueError: `coupling` outside (0, 1]; `max_steps=None` with steps that have to be recorded.
    """

    coupling: float = 0.999

    def __check_init__(self):
        if not 0 < self.coupling <= 1:
            raise ValueError(f"coupling={self.coupling!r} has to lie in (0, 1]: 0.999 is the default")

    def solve(self, given: Solve, passed: Passed, throw: bool) -> tuple[Any, dict]:
        """As for `Replay`, the solver's state being z."""
        del throw
        scheme = checked(given.solver, given.terms, given.init_state.y, "Reversible")
        if scheme.implicit:
            raise Unsupported(
                f"Reversible has no form of {type(given.solver).__name__}, whose steps are solved for: use Replay, or an "
                "explicit solver"
            )
        coupled = Coupled(with_forward_mode(given.solver), self.coupling)
        z = given.init_state.solver_state if passed.solver_state else given.init_state.y
        given = eqx.tree_at(lambda s: (s.solver, s.init_state.solver_state), given, (coupled, z), is_leaf=is_none)
        return around(given, scheme, lambda solve: _steps(solve, scheme=scheme))


class Coupled(AbstractAround):
    """The reversible form of a solver, its state being z.

    What it interpolates with inside a step are the step's two states y and the stages of z's step.
    """

    solver: Any
    coupling: float = eqx.field(static=True)

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        z0, c = solver_state, self.coupling
        w, error, dense, result = self._base(terms, t0, t1, z0, args, made_jump)
        y1 = jax.tree.map(lambda y, z, w: c * y + (1 - c) * z + (w - z), y0, z0, w)
        v, _, _, _ = self._base(terms, t1, t0, y1, args, made_jump)
        z1 = jax.tree.map(lambda z, v, y: z - (v - y), z0, v, y1)
        return y1, error, {**dense, "y0": y0, "y1": y1}, z1, result

    def _base(self, terms, t0, t1, y, args, made_jump):
        """A step of the solver on its own: where it ended before is of no use here."""
        state = self.solver.init(terms, t0, t1, y, args)
        y1, error, dense, _, result = self.solver.step(terms, t0, t1, y, args, state, made_jump)
        return y1, error, dense, result


# -- the loop over the steps, and its derivative --------------------------------------------------------------------------


@eqx.filter_custom_vjp
def _steps(solve: Solve, *, scheme: Scheme) -> Any:
    """The state after the last step."""
    del scheme
    return tied(run(solve, None).final, solve)


@_steps.def_fwd
def _forward(perturbed: Any, solve: Solve, *, scheme: Scheme) -> tuple[Any, Any]:
    del scheme
    clock = Clock.of(solve, perturbed)
    if clock is None and RegularEnds.fit(solve):
        final = run(solve, None).final
        return tied(final, solve), (final, None, None, perturbed)
    bounded(solve, "Reversible")
    started = solve if clock is None else clock.started(solve)
    taped = run(started, Recording(0, False, False, clock))
    final = taped.final
    if clock is not None:
        final = eqx.tree_at(lambda s: s.controller_state, final, final.controller_state[0], is_leaf=is_none)
    return tied(final, solve), (final, taped.record, clock, perturbed)


@_steps.def_bwd
def _backward(residuals: Any, cotangent: Any, perturbed: Any, solve: Solve, *, scheme: Scheme) -> Any:
    del perturbed  # arrays by now; in the residuals they are still known while this is traced
    final, record, clock, perturbed = residuals
    model, theta = Model.split(solve, perturbed)
    saved = saved_outputs(solve, final, cotangent)
    ends = RegularEnds.of(solve) if record is None else record.ends
    moves = None if record is None else record.moves
    y, z, total, came_back = ReversibleWalk(solve, scheme, model, theta, ends, moves, final, cotangent, saved)()
    y, z, total = jax.tree.map(lambda x: _or_nan(came_back, x), (y, z, total))
    unused = idle(solve, final, cotangent)
    y, z, total = jax.tree.map(lambda x: jnp.where(unused, jnp.zeros_like(x), x), (y, z, total))
    return as_solve(solve, y, total, clock, cotangent, z)


def _or_nan(right: Any, x: Any) -> Any:
    return jnp.where(right, x, jnp.nan) if jnp.issubdtype(x.dtype, jnp.inexact) else x
