"""`ode_robertson`: the three rates of Robertson's stiff kinetics, from noisy concentrations."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from implicitexp import data
from implicitexp.data.make_robertson import NOISE, RATES
from implicitexp.equations import ODE

from .base import AbstractProblem, array, as_number, one_axes

NAMES = ("k1", "k2", "k3")
FARTHEST = 7.0  # of a rate's logarithm from its start: a line search may try rates at which everything overflows
UNITS = (1.0, 1e-4, 1.0)  # of A, B, C in the solver's state, so that one absolute tolerance fits all: B peaks at 3.6e-5


def field(t, state, rates):
    """The rates of change (3,) of A, B, C, each in its unit of UNITS a second."""
    a, b, c = state[0], UNITS[1] * state[1], state[2]
    decay, join, back = rates["k1"] * a, rates["k2"] * b**2, rates["k3"] * b * c
    return jnp.stack([back - decay, (decay - join - back) / UNITS[1], join])


class Robertson(AbstractProblem):
    """A → B (k1), 2 B → B + C (k2), B + C → A + C (k3): three rates over nine decades, from 40 samples up to 1e5 s.

    A' = -k1 A + k3 B C, B' = k1 A - k3 B C - k2 B², C' = k2 B², from A = 1, B = C = 0. Stiff: B settles within a
    millisecond, A and C take days. Loss: half the sum of squared residuals of all three concentrations, each in
    standard deviations of its noise, which is 1 % of its largest value; about 59 at the answer. The data are computed
    (see `data.make_robertson`) with the rates 0.04, 3e7, 1e4 a second. The standard errors of the logarithms are the roots of the
    diagonal of (JᵀJ)⁻¹, J the residuals' Jacobian: 1.1, 1.1 and 1.8 % at the answer.
    The rates are kept within a factor of 1100 of the start, so that a line search cannot try any that overflow.
    In float32 the rates come back too: at a tolerance of 1e-6 the concentrations are right to 3e-4 of their range and the
    gradient by `unroll` or `implicit` to 1e-4. Out of reach is the continuous adjoint (`adjoint`; NaN, as unconverged): it
    starts at 1e5 s with a transient of 1e-4 s, and float32 tells two times there apart by 8e-3 s only.
    Source: Robertson 1966, The solution of a set of reaction rate equations, in Numerical Analysis: An Introduction;
    Hairer and Wanner 1996, Solving Ordinary Differential Equations II, section IV.1.

    Parameters: the logarithms of `k1`, `k2`, `k3` (1/s, concentrations being fractions of the total), scalars.
    """

    k1: float = eqx.field(converter=as_number)  # 1/s, at the start
    k2: float = eqx.field(converter=as_number)  # 1/s, at the start
    k3: float = eqx.field(converter=as_number)  # 1/s, at the start
    times: Float[Array, "40"]  # s
    measured: Float[Array, "40 3"]  # fractions of the total
    noise: Float[Array, "3"]  # standard deviations, fractions of the total

    def __init__(self, k1: float = 0.1, k2: float = 1e7, k3: float = 3e4):
        self.k1, self.k2, self.k3 = k1, k2, k3
        times, measured = data.robertson()
        self.times, self.measured = array(times), array(measured)
        self.noise = array(NOISE * measured.max(axis=0))

    def init(self, key):
        return {name: jnp.log(jnp.asarray(getattr(self, name))) for name in NAMES}

    def concentrations(self, params, times, solve):
        """A, B and C at `times` (s), shape (len(times), 3)."""
        first = jnp.zeros_like(self.noise).at[0].set(1)
        around = {name: jnp.log(jnp.asarray(getattr(self, name))) for name in NAMES}
        rates = {name: jnp.exp(jnp.clip(params[name], x - FARTHEST, x + FARTHEST)) for name, x in around.items()}
        return solve(ODE(field, first, 0.0, self.times[-1], times), rates).value * jnp.asarray(UNITS, first.dtype)

    def residuals(self, params, solve):
        """(40, 3), in standard deviations of the noise."""
        return (self.concentrations(params, self.times, solve) - self.measured) / self.noise

    def loss(self, params, batch, solve):
        return jnp.sum(self.residuals(params, solve) ** 2) / 2

    def standard_errors(self, params, solve):
        """Of the logarithms of k1, k2, k3, so of the rates relative to themselves, (3,)."""
        columns = jax.jacfwd(lambda p: self.residuals(p, solve).reshape(-1))(params)
        jacobian = jnp.stack([columns[name] for name in NAMES], axis=1)
        return jnp.sqrt(jnp.diag(jnp.linalg.inv(jacobian.T @ jacobian)))

    def evaluate(self, params, solve):
        found = {}
        for name, error, true in zip(NAMES, self.standard_errors(params, solve), RATES, strict=True):
            found[name] = jnp.exp(params[name])
            found[f"{name}_standard_error"] = error * jnp.exp(params[name])
            found[f"{name}_deviation"] = (params[name] - np.log(true)) / error
        return found

    def figure(self, params, solve):
        figure, axes = one_axes("Robertson's kinetics", "time (s)", "concentration (of its largest measured value)")
        times = jnp.logspace(-5, 5, 201)
        fitted = np.asarray(self.concentrations(params, times, solve))
        largest = np.asarray(self.noise) / NOISE
        lines = [("A", "-", "o", "0.0"), ("B", "--", "s", "0.4"), ("C", ":", "^", "0.6")]
        for i, (name, line, marker, shade) in enumerate(lines):
            axes.semilogx(times, fitted[:, i] / largest[i], line, color=shade, label=f"{name}, fitted")
            axes.semilogx(self.times, self.measured[:, i] / largest[i], marker, color=shade, markersize=4,
                          label=f"{name}, measured")  # fmt: skip
        figure.legend(fontsize="small", loc="outside lower center", ncols=3)
        return figure
