"""The leapfrog method, which Diffrax lacks: its semi-implicit Euler is of order 1 and takes each half of the field apart.

Störmer and Verlet's method, as in E. Hairer, C. Lubich and G. Wanner 2003, "Geometric numerical integration
illustrated by the Störmer-Verlet method", Acta Numerica 12: for q' = f(t, p), p' = g(t, q)

    p_half = p + h/2 g(t, q),   q_new = q + h f(t + h/2, p_half),   p_new = p_half + h/2 g(t + h, q_new).
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from implicitexp.errors import Unsupported

from .base import NotConverged
from .ode import AbstractFixedStep


class StoermerVerlet(dfx.AbstractSolver):
    """One step of the leapfrog method for a state (q, p); a drop-in for `diffrax.diffeqsolve` with fixed steps."""

    term_structure: ClassVar = dfx.AbstractTerm
    interpolation_cls: ClassVar = dfx.ThirdOrderHermitePolynomialInterpolation.from_k

    def order(self, terms):
        return 2

    def init(self, terms, t0, t1, y0, args):
        return None

    def step(self, terms, t0, t1, y0, args, solver_state, made_jump):
        h = terms.contr(t0, t1)
        (q, p), middle = y0, t0 + (t1 - t0) / 2
        slope = terms.vf_prod(t0, y0, args, h)
        half = _plus(p, slope[1], 0.5)
        q_new = _plus(q, terms.vf_prod(middle, (q, half), args, h)[0])
        p_new = _plus(half, terms.vf_prod(t1, (q_new, half), args, h)[1], 0.5)
        y1 = (q_new, p_new)
        ends = jax.tree.map(lambda a, b: jnp.stack([a, b]), slope, terms.vf_prod(t1, y1, args, h))
        return y1, None, {"y0": y0, "y1": y1, "k": ends}, None, dfx.RESULTS.successful

    def func(self, terms, t0, y0, args):
        return terms.vf(t0, y0, args)


def _plus(y: PyTree, slope: PyTree, factor: float = 1.0) -> PyTree:
    return jax.tree.map(lambda y, k: y + jnp.asarray(factor, y.dtype) * k, y, slope)


class Leapfrog(AbstractFixedStep):
    """The symplectic leapfrog method (Störmer-Verlet), order 2, with the fixed step `dt0`, for mechanics over a long
    time: the energy does not drift.

    The state is a pair (q, p) and the field returns (dq/dt, dp/dt), of which dq/dt depends on t and p only and dp/dt on
    t and q only. **Raises** `Unsupported` for any other equation.
    """

    dt0: Any = 0.01  # in the units of t
    max_steps: int = eqx.field(static=True, default=100_000)
    when_not_converged: NotConverged = eqx.field(static=True, default="stop")
    kind: ClassVar[str] = "ode"
    refuses: ClassVar[Mapping[str, str]] = {
        "adjoint": "the adjoint's system is not a pair (q, p) of this form; use implicit or unroll, the derivative of "
        "the steps, forward, or adjoint with Tsit5"
    }

    def stepper(self, y0, rtol=None, atol=None):
        return StoermerVerlet()

    def check(self, equation, args):
        if not (isinstance(equation.y0, tuple) and len(equation.y0) == 2):
            raise Unsupported(
                "Leapfrog integrates a pair: y0 = (q, p), and the field returns (dq/dt, dp/dt), but this y0 is no pair; "
                "use Tsit5, or FixedStep for fixed steps."
            )
        for half, (of, on) in enumerate([("dq/dt", "q"), ("dp/dt", "p")]):
            if _moves(equation, args, half):
                raise Unsupported(
                    f"Leapfrog needs q' = f(t, p) and p' = g(t, q), but {of} depends on {on}; use Tsit5, or FixedStep "
                    f"for fixed steps."
                )


def _moves(equation: Any, args: PyTree, half: int) -> bool:
    """Whether that half of the slope depends on the same half of the state: seen by tracing, nothing is computed."""
    found = []

    @jax.custom_jvp
    def watched(leaves):
        return leaves

    def rule(primals, tangents):
        found.extend(t for t in tangents[0] if not isinstance(t, jax.custom_derivatives.SymbolicZero))
        return primals[0], [jnp.zeros_like(x) for x in primals[0]]

    watched.defjvp(rule, symbolic_zeros=True)

    def slope(moving):
        y = (moving, equation.y0[1]) if half == 0 else (equation.y0[0], moving)
        return watched(jax.tree.leaves(equation.field(equation.t0, y, args)[half]))

    jax.eval_shape(lambda y: jax.jvp(slope, (y,), (y,)), equation.y0[half])
    return bool(found)
