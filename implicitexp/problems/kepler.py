"""`root_kepler`: Kepler's equation, the oldest root that has no formula."""

import jax
import jax.numpy as jnp
import numpy as np

from implicitexp.equations import Root

from .base import AbstractProblem, number, one_axes, one_newton_step

BISECTIONS = 60  # halve [M - 1, M + 1] below float64's rounding


class Kepler(AbstractProblem):
    """E - e sin E = M: find the eccentricity e for which the eccentric anomaly E is `target`.

    Loss (E(e) - target)^2, least at e = (target - M) / sin(target). Derivative: dE/de = sin E / (1 - e cos E).
    Source: Kepler 1609, Astronomia Nova; Danby 1992, Fundamentals of Celestial Mechanics, chapter 6.

    Parameter: `eccentricity` e (no unit), a scalar in [0, 1).
    """

    mean_anomaly: float = number(1.0)  # rad, M
    target: float = number(1.5)  # rad, the wanted E
    eccentricity: float = number(0.1)  # no unit, e at the start

    def init(self, key):
        return {"eccentricity": jnp.asarray(self.eccentricity)}

    def anomaly(self, eccentricity, solve):
        """The eccentric anomaly E (rad)."""
        mean = jnp.asarray(self.mean_anomaly)
        bounds = (mean - 1, mean + 1)  # |E - M| is at most e < 1
        equation = Root(lambda E, args: E - args[0] * jnp.sin(E) - args[1], mean, bounds)
        return solve(equation, (eccentricity, mean)).value

    def loss(self, params, batch, solve):
        return (self.anomaly(params["eccentricity"], solve) - self.target) ** 2

    def exact_loss(self, params, batch):
        """By bisection, which shares nothing with the solvers; the derivative is the implicit one, in closed form."""
        e = params["eccentricity"]

        def residual(E):
            return E - e * jnp.sin(E) - self.mean_anomaly

        def halve(_, bracket):
            low, high = bracket
            middle = (low + high) / 2
            above = residual(middle) > 0
            return jnp.where(above, low, middle), jnp.where(above, middle, high)

        ends = jax.lax.stop_gradient((self.mean_anomaly - jnp.ones_like(e), self.mean_anomaly + jnp.ones_like(e)))
        low, high = jax.lax.stop_gradient(jax.lax.fori_loop(0, BISECTIONS, halve, ends))
        return (one_newton_step(residual, (low + high) / 2) - self.target) ** 2

    def exact_eccentricity(self):
        """The answer: e = (target - M) / sin(target)."""
        return (self.target - self.mean_anomaly) / jnp.sin(self.target)

    def evaluate(self, params, solve):
        exact = self.exact_eccentricity()
        return {"eccentricity": params["eccentricity"], "eccentricity_error": params["eccentricity"] - exact}

    def figure(self, params, solve):
        """The orbit, in units of its half major axis, with the two anomalies."""
        e = float(params["eccentricity"])
        E = float(self.anomaly(params["eccentricity"], solve))
        title = f"Kepler orbit, e = {e:.6f}, mean anomaly {float(self.mean_anomaly):.3g} rad"
        figure, axes = one_axes(title, "x (half major axes)", "y (half major axes)")
        turn = np.linspace(0, 2 * np.pi, 301)
        b = np.sqrt(max(1 - e**2, 0.0))
        axes.plot(np.cos(turn), b * np.sin(turn), "-", color="0.0", label="orbit")
        axes.plot(np.cos(turn), np.sin(turn), ":", color="0.6", label="circle of the eccentric anomaly")
        axes.plot(
            [0, np.cos(E)], [0, np.sin(E)], "--", color="0.4", label=f"E = {E:.4f} rad, wanted {float(self.target):.4f}"
        )
        axes.plot([np.cos(E)], [b * np.sin(E)], "o", color="0.0", label="planet")
        axes.plot([e], [0], "*", color="0.4", markersize=12, label="sun")
        axes.set_aspect("equal")
        figure.set_size_inches(6.0, 6.0)
        figure.legend(fontsize="small", loc="outside lower center", ncols=2)
        return figure
