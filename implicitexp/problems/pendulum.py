"""`integral_pendulum`: a pendulum's length from its period at large swing."""

import jax
import jax.numpy as jnp
import numpy as np

from implicitexp.equations import Integral

from .base import AbstractProblem, number, one_axes

AGM_STEPS = 8  # convergence is quadratic: 5 are enough below 179 degrees in float64


def agm(a, b):
    """The arithmetic-geometric mean of two positive numbers."""
    for _ in range(AGM_STEPS):
        a, b = (a + b) / 2, jnp.sqrt(a * b)
    return a


class Pendulum(AbstractProblem):
    """T = 4 sqrt(L/g) K(sin²(θ0/2)): find the length L of a pendulum whose period at amplitude θ0 was measured.

    By integration: T(L) = ∫_0^{π/2} 4 sqrt(L/g) / sqrt(1 - sin²(θ0/2) sin² φ) dφ; the loss is (T(L)/T_measured - 1)^2.
    Closed form (Gauss 1799): T = 2π sqrt(L/g) / agm(1, cos(θ0/2)).
    Source: Landau and Lifshitz, Mechanics, section 11.

    Parameter: `log_length`, the logarithm of L in meters, a scalar: lengths stay positive.
    """

    period: float = number(2.5)  # s, measured
    amplitude: float = number(2.5)  # rad, θ0, below π
    gravity: float = number(9.81)  # m/s²
    length: float = number(0.5)  # m, L at the start

    def init(self, key):
        return {"log_length": jnp.log(jnp.asarray(self.length))}

    def period_of(self, log_length, amplitude, solve):
        """The period (s), by numerical integration."""

        def integrand(phi, args):
            log_length, modulus = args
            scale = 4 * jnp.exp(log_length / 2) / jnp.sqrt(self.gravity)
            return scale / jnp.sqrt(1 - modulus * jnp.sin(phi) ** 2)

        modulus = jnp.sin(jnp.asarray(amplitude) / 2) ** 2
        return solve(Integral(integrand, 0.0, jnp.pi / 2), (log_length, modulus)).value

    def exact_period(self, log_length, amplitude):
        """The period (s) in closed form."""
        return (
            2
            * jnp.pi
            * jnp.exp(log_length / 2)
            / jnp.sqrt(self.gravity)
            / agm(1.0, jnp.cos(jnp.asarray(amplitude) / 2))
        )

    def exact_length(self):
        """The answer (m): L = g (T agm(1, cos(θ0/2)) / 2π)²."""
        return self.gravity * (self.period * agm(1.0, jnp.cos(jnp.asarray(self.amplitude) / 2)) / (2 * jnp.pi)) ** 2

    def loss(self, params, batch, solve):
        return (self.period_of(params["log_length"], self.amplitude, solve) / self.period - 1) ** 2

    def exact_loss(self, params, batch):
        return (self.exact_period(params["log_length"], self.amplitude) / self.period - 1) ** 2

    def evaluate(self, params, solve):
        length = jnp.exp(params["log_length"])
        return {"length_m": length, "length_relative_error": length / self.exact_length() - 1}

    def figure(self, params, solve):
        length = float(jnp.exp(params["log_length"]))
        figure, axes = one_axes(f"Period of a pendulum of {length:.4f} m", "amplitude (rad)", "period (s)")
        amplitudes = np.linspace(0.05, 3.1, 101)
        axes.plot(amplitudes, self.exact_period(params["log_length"], amplitudes), "-", color="0.0", label="exact")
        some = amplitudes[::10]
        solved = jax.jit(jax.vmap(lambda x: self.period_of(params["log_length"], x, solve)))(some)
        axes.plot(some, solved, "o", color="0.5", label="integrated")
        small = 2 * np.pi * np.sqrt(length / float(self.gravity))
        axes.axhline(small, color="0.5", linestyle=":", label="small swings")
        axes.plot([float(self.amplitude)], [float(self.period)], "x", color="0.0", markersize=11, label="measured")
        axes.legend()
        return figure
