"""`ode_exponential`: exponential growth, the simplest ODE with a known gradient."""

import jax.numpy as jnp
import numpy as np

from implicitexp.equations import ODE

from .base import AbstractProblem, number, one_axes


class Exponential(AbstractProblem):
    """dz/dt = k z, z(0) = z0: find rate k and start z0 that bring z(T) to zero, by the loss z(T)^2.

    Closed form: z(T) = z0 exp(k T), so dL/dz0 = 2 z0 exp(2 k T) and dL/dk = 2 T z0^2 exp(2 k T), the test by which
    Zhuang et al. 2020 (Adaptive Checkpoint Adjoint Method, section 4.1) compare gradients of ODE solvers.

    Parameters: `rate` k (1/s) and `start` z0 (no unit), both scalars.
    """

    rate: float = number(0.5)  # 1/s, k at the start
    start: float = number(1.0)  # no unit, z0 at the start
    duration: float = number(2.0)  # s, T

    def init(self, key):
        return {"rate": jnp.asarray(self.rate), "start": jnp.asarray(self.start)}

    def _equation(self, start, ts=None):
        return ODE(lambda t, z, rate: rate * z, start, 0.0, self.duration, ts)

    def loss(self, params, batch, solve):
        return solve(self._equation(params["start"]), params["rate"]).value ** 2

    def exact_loss(self, params, batch):
        return (params["start"] * jnp.exp(params["rate"] * self.duration)) ** 2

    def evaluate(self, params, solve):
        exact = params["start"] * jnp.exp(params["rate"] * self.duration)
        return {"z_T": solve(self._equation(params["start"]), params["rate"]).value, "z_T_exact": exact}

    def figure(self, params, solve):
        figure, axes = one_axes("Exponential growth, fitted to end at zero", "time t (s)", "z (no unit)")
        ts = jnp.linspace(0.0, self.duration, 101)
        solved = solve(self._equation(params["start"], ts), params["rate"]).value
        exact = params["start"] * jnp.exp(params["rate"] * ts)
        first = self.start * jnp.exp(self.rate * ts)
        axes.plot(ts, first, "--", color="0.6", label=f"at the start: k = {float(self.rate):.3g}/s")
        axes.plot(ts, solved, "-", color="0.0", label=f"found, solved: k = {float(params['rate']):.3g}/s")
        axes.plot(ts[::10], np.asarray(exact)[::10], "o", color="0.5", label="found, z0 exp(k t)")
        axes.legend()
        return figure
