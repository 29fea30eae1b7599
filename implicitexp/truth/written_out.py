"""Methods with fixed steps, written out: a second code path beside Diffrax's for a model whose layers are such steps."""

from collections.abc import Callable
from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from implicitexp.solvers import AbstractFixedStep, Leapfrog
from implicitexp.solvers.base import AbstractSolver, Loop, NotConverged
from implicitexp.solvers.base import stats as statistics

CLIP = 1e-10  # as Diffrax: a step that ends this close to t1 ends at t1

Slope = Callable[[Any, PyTree], PyTree]


class WrittenOut(AbstractSolver):
    """The equal steps that `fixed` takes, in a loop of our own; inside a step the method's own interpolation."""

    fixed: AbstractFixedStep
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "ode"

    def noise(self, like):
        return 0.0

    def run(self, equation, args, loop: Loop):
        t0, t1 = equation.t0, equation.t1
        direction, dt = jnp.where(t1 < t0, -1.0, 1.0), self.fixed.first_step(t0, t1)
        ts = t1[None] if equation.ts is None else equation.ts
        out = jax.tree.map(lambda y: jnp.broadcast_to(y, (*ts.shape, *y.shape)), equation.y0)

        def unfinished(carry):
            return direction * (t1 - carry[0]) > 0

        def step(carry):
            t, y, out, n = carry
            end = jnp.where(direction * (t + dt - t1) > -CLIP, t1, t + dt)
            after, path = one_step(self.fixed, lambda t, y: equation.field(t, y, args), t, end, y)
            passed = (direction * (ts - t) > 0) & (direction * (ts - end) <= 0)
            inside = jax.vmap(path.evaluate)(jnp.where(passed, ts, end))
            return end, after, jax.tree.map(lambda o, x: _where(passed, x, o), out, inside), n + 1

        kind = "lax" if loop.kind == "plain" else "checkpointed"
        start = (t0, equation.y0, out, jnp.array(0, jnp.int32))
        t, _, out, n = eqxi.while_loop(unfinished, step, start, max_steps=self.fixed.max_steps, kind=kind)
        value = out if equation.ts is not None else jax.tree.map(lambda o: o[0], out)
        return value, statistics(t == t1, n, value)


def _where(passed: Array, inside: Array, out: Array) -> Array:
    return jnp.where(passed.reshape(-1, *[1] * (out.ndim - 1)), inside, out)


def one_step(fixed: AbstractFixedStep, slope: Slope, t: Array, end: Array, y: PyTree) -> tuple[PyTree, Any]:
    """-> the state at `end`, and what interpolates between."""
    h = end - t
    stepper: Any = fixed.stepper(y)
    if isinstance(stepper, dfx.Euler):  # it has no tableau
        after = _plus(y, (1.0,), [slope(t, y)], h)
        return after, stepper.interpolation_cls(t0=t, t1=end, y0=y, y1=after)
    after, slopes = leapfrog(slope, t, h, y) if isinstance(fixed, Leapfrog) else runge_kutta(stepper, slope, t, h, y)
    stages = jax.tree.map(lambda *k: jnp.stack([h * x for x in k]), *slopes)
    return after, stepper.interpolation_cls(t0=t, t1=end, y0=y, y1=after, k=stages)


def runge_kutta(stepper: Any, slope: Slope, t: Array, h: Array, y: PyTree) -> tuple[PyTree, list[PyTree]]:
    """-> the state after a step of an explicit method, from its tableau, and the slope at each stage."""
    tableau = stepper.tableau
    slopes = [slope(t, y)]
    for c, row in zip(tableau.c, tableau.a_lower, strict=True):
        slopes.append(slope(t + float(c) * h, _plus(y, row, slopes, h)))
    return _plus(y, tableau.b_sol, slopes, h), slopes


def leapfrog(slope: Slope, t: Array, h: Array, y: PyTree) -> tuple[PyTree, list[PyTree]]:
    """-> the state after kick, drift and kick, and the slopes at both ends."""
    q, p = y
    first = slope(t, y)
    p = _plus(p, (0.5,), [first[1]], h)
    q = _plus(q, (1.0,), [slope(t + h / 2, (q, p))[0]], h)
    p = _plus(p, (0.5,), [slope(t + h, (q, p))[1]], h)
    return (q, p), [first, slope(t + h, (q, p))]


def _plus(y: PyTree, weights: Any, slopes: list[PyTree], h: Array) -> PyTree:
    """y + h times the weighted sum of the slopes."""
    for weight, k in zip(np.asarray(weights), slopes, strict=True):
        y = jax.tree.map(lambda y, k, w=float(weight): y + (h * w).astype(y.dtype) * k, y, k)
    return y
