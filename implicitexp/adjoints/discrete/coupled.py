"""The reversible form of an explicit solver, and how strongly its two solutions are coupled.

The solution is y. Beside it runs a second one, z, and with the increment Psi(t, t', z) of a step of the solver from t to t',

    y_{n+1} = c y_n + (1 - c) z_n + Psi(t_n, t_{n+1}, z_n),    z_{n+1} = z_n - Psi(t_{n+1}, t_n, y_{n+1}),

which can be undone line by line, in reverse order, up to rounding (S. McCallum and J. Foster 2024, arXiv 2410.11648).

Where a step multiplies a component of the solution by R, it multiplies y - z there by c/R, so that in a field that contracts
(R < c) y drifts away from the solution; backwards it multiplies rounding there by R/c. So c is small where y - z is not small
beside the tolerance, and near 1 elsewhere. With a fixed c = 0.999, Lotka-Volterra over two periods at a tolerance of 1e-6 is
off by 3e-2, and its gradient by 0.4 (tests/test_reversible.py).
"""

import abc
from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from implicitexp.adjoints.diffrax_private import AbstractAround, Solve

PART = 0.3  # of the tolerance: what y - z may be before the coupling is weakened
WEAKEST = 0.1  # a decimal digit of y lost a step, backwards
STRONGEST = 0.999  # McCallum and Foster's own
DAMPING = 32.0  # without a tolerance: y - z is damped by exp(-32) over the whole solve
UNBOUNDED = 0.95  # nor an end: constant steps until an event


class AbstractCoupling(eqx.Module):
    """c of a step from t0 to t1 that starts from y0 and z0; a constant of every derivative, as the step size is."""

    @abc.abstractmethod
    def __call__(self, t0: Array, t1: Array, y0: PyTree, z0: PyTree) -> Array: ...

    def apart(self, y: PyTree, z: PyTree) -> Array:
        """How far the two solutions are apart, in tolerances; zero where the coupling knows of none."""
        del z
        return jnp.zeros((), jnp.result_type(float, *jax.tree.leaves(y)))


class Fixed(AbstractCoupling):
    value: float
    tolerance: "ToTolerance | None" = None  # of the step size controller

    def __call__(self, t0: Array, t1: Array, y0: PyTree, z0: PyTree) -> Array:
        del t1, y0, z0
        return jnp.full_like(t0, self.value)

    def apart(self, y: PyTree, z: PyTree) -> Array:
        return super().apart(y, z) if self.tolerance is None else self.tolerance.apart(y, z)


class OverTime(AbstractCoupling):
    """As much damping for equal times; `rate` is per unit of time."""

    rate: Array

    def __call__(self, t0: Array, t1: Array, y0: PyTree, z0: PyTree) -> Array:
        del y0, z0
        return jax.lax.stop_gradient(jnp.clip(jnp.exp(-self.rate * (t1 - t0)), WEAKEST, STRONGEST))


class ToTolerance(AbstractCoupling):
    """As much damping as keeps y - z below a part of the tolerance of the step size controller."""

    rtol: Any
    atol: Any
    norm: Any = eqx.field(static=True)

    def __call__(self, t0: Array, t1: Array, y0: PyTree, z0: PyTree) -> Array:
        del t1
        return jnp.clip(PART / jnp.maximum(self.apart(y0, z0), PART), WEAKEST, STRONGEST).astype(t0.dtype)

    def apart(self, y: PyTree, z: PyTree) -> Array:
        scaled = jax.tree.map(lambda y, z: (y - z) / (self.atol + self.rtol * jnp.abs(y)), y, z)
        return jax.lax.stop_gradient(self.norm(scaled))


def coupling_of(solve: Solve, value: float | None) -> AbstractCoupling:
    """The coupling of a solve: `value`, or, if that is None, one that its controller's tolerance or its length gives."""
    tolerance, controller = None, solve.stepsize_controller
    if isinstance(controller, dfx.AbstractAdaptiveStepSizeController):
        rtol, atol = jax.lax.stop_gradient((controller.rtol, controller.atol))
        tolerance = ToTolerance(rtol, atol, controller.norm)
    if value is not None:
        return Fixed(value, tolerance)
    if tolerance is not None:
        return tolerance
    if solve.event is not None:
        return Fixed(UNBOUNDED)
    length = jax.lax.stop_gradient(solve.t1 - solve.t0)
    return OverTime(DAMPING / jnp.where(length > 0, length, 1))


class Coupled(AbstractAround):
    """The reversible form of a solver, its state being (z, c of the last step).

    What it interpolates with inside a step are the step's two states y and the stages of z's step.
    """

    solver: Any
    coupling: AbstractCoupling

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        z0, _ = solver_state
        c = self.coupling(t0, t1, y0, z0)
        w, error, dense, result = self._base(terms, t0, t1, z0, args, made_jump)
        y1 = jax.tree.map(lambda y, z, w: mixed(c, y, z) + (w - z), y0, z0, w)
        v, _, _, _ = self._base(terms, t1, t0, y1, args, made_jump)
        z1 = jax.tree.map(lambda z, v, y: z - (v - y), z0, v, y1)
        return y1, error, {**dense, "y0": y0, "y1": y1}, (z1, c), result

    def _base(self, terms, t0, t1, y, args, made_jump):
        """A step of the solver on its own: where it ended before is of no use here."""
        state = self.solver.init(terms, t0, t1, y, args)
        y1, error, dense, _, result = self.solver.step(terms, t0, t1, y, args, state, made_jump)
        return y1, error, dense, result


def mixed(c: Array, y: Array, z: Array) -> Array:
    """c y + (1 - c) z."""
    c = like(c, y)
    return c * y + (1 - c) * z


def unmixed(c: Array, mixture: Array, z: Array) -> Array:
    """y with c y + (1 - c) z = mixture."""
    c = like(c, z)
    return (mixture - (1 - c) * z) / c


def like(c: Array, y: Array) -> Array:
    """In the precision of y."""
    return c.astype(jnp.finfo(y.dtype).dtype)
