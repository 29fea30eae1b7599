"""`ode_lotka_volterra`: predator and prey, fitted to the pelts of the Hudson's Bay Company."""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from implicitexp import data
from implicitexp.equations import ODE

from .base import AbstractProblem, array, as_number, one_axes

RATES = ("hare_growth", "predation", "lynx_death", "lynx_growth")
STARTS = ("hare_start", "lynx_start")
TICKS = (5, 10, 20, 50, 100)  # thousands of pelts


def field(t, log_state, rates):
    """The rates of change of (log x, log y): the state stays positive, and the residuals are on the log scale."""
    x, y = jnp.exp(log_state[0]), jnp.exp(log_state[1])
    return jnp.stack([rates["hare_growth"] - rates["predation"] * y, rates["lynx_growth"] * x - rates["lynx_death"]])


class LotkaVolterra(AbstractProblem):
    """x' = α x - β x y, y' = δ x y - γ y: four rates and the start, fitted to hare (x) and lynx (y), 1900 to 1920.

    Loss: half the sum of squared residuals of the logarithms over 21 years and both species. It is solved for
    (log x, log y), whose equations are (log x)' = α - β y, (log y)' = δ x - γ.
    The start comes from the data: α = γ = 2π / `period_guess` (the period of small oscillations is 2π/sqrt(αγ)),
    β = α / mean lynx, δ = γ / mean hare (the equilibrium is the mean), and the first year's pelts.
    Source: Lotka 1925, Volterra 1926; data Howard 2009; the fit by Carpenter 2018 (Stan case study), whose posterior
    means are 0.55, 0.028, 0.80, 0.024 a year and the start (34, 5.9).

    Parameters: the logarithms of `hare_growth` α (1/year), `predation` β (1/(year thousand lynx)), `lynx_death` γ
    (1/year), `lynx_growth` δ (1/(year thousand hares)), `hare_start`, `lynx_start` (thousands of pelts); scalars.
    """

    period_guess: float = eqx.field(converter=as_number)  # years, between two peaks, from which the start is derived
    years: Float[Array, "21"]  # since 1900
    pelts: Float[Array, "21 2"]  # thousands of hare and lynx

    def __init__(self, period_guess: float = 10.0):
        self.period_guess = period_guess
        years, pelts = data.hare_lynx()
        self.years, self.pelts = array(years - years[0]), array(pelts)

    def init(self, key):
        frequency = 2 * jnp.pi / jnp.asarray(self.period_guess)
        hare, lynx = jnp.mean(self.pelts, axis=0)
        rates = (frequency, frequency / lynx, frequency, frequency / hare)
        values = dict(zip(RATES + STARTS, (*rates, *self.pelts[0]), strict=True))
        return {name: jnp.log(value) for name, value in values.items()}

    def trajectory(self, params, ts, solve):
        """The logarithms of hare and lynx (thousands) at `ts` (years since 1900), shape (len(ts), 2)."""
        start = jnp.stack([params[name] for name in STARTS])
        equation = ODE(field, start, 0.0, self.years[-1], ts)
        return solve(equation, {name: jnp.exp(params[name]) for name in RATES}).value

    def loss(self, params, batch, solve):
        residuals = self.trajectory(params, self.years, solve) - jnp.log(self.pelts)
        return jnp.sum(residuals**2) / 2

    def evaluate(self, params, solve):
        return {name: jnp.exp(params[name]) for name in RATES + STARTS}

    def figure(self, params, solve):
        figure, axes = one_axes("Lynx and hare, Hudson's Bay Company", "year", "pelts (thousands)")
        ts = jnp.linspace(0.0, float(self.years[-1]), 201)
        fitted = np.exp(np.asarray(self.trajectory(params, ts, solve)))
        for i, (name, line, marker, shade) in enumerate([("hare", "-", "o", "0.0"), ("lynx", "--", "s", "0.5")]):
            axes.semilogy(1900 + np.asarray(ts), fitted[:, i], line, color=shade, label=f"{name}, fitted")
            axes.semilogy(
                1900 + np.asarray(self.years), self.pelts[:, i], marker, color=shade, label=f"{name}, counted"
            )
        axes.set_xticks(range(1900, 1921, 5))
        axes.set_yticks(TICKS, [f"{tick}" for tick in TICKS])
        axes.minorticks_off()
        figure.legend(fontsize="small", loc="outside lower center", ncols=4)
        return figure
