"""`ode_equilibrium`: Lotka-Volterra at its equilibrium, where backpropagation through the solver is wrong."""

from typing import ClassVar

import jax.numpy as jnp

from implicitexp.equations import ODE

from .base import AbstractProblem, number, one_axes


def _field(t, state, a):
    x, y = state
    return a * x - x * y, -a * y + x * y


class Equilibrium(AbstractProblem):
    """x' = a x - x y, y' = -a y + x y from (1, 1); the loss is x(T) + y(T), which is 2 at a = 1.

    The trap (Sapienza et al. 2024, arXiv 2406.09699, section 4.1.2): at a = 1 the start is an equilibrium, the
    solver's error estimate is zero and its steps grow without bound, but the solution's derivative by a oscillates.
    So `unroll` and `implicit`, which differentiate the accepted steps, are exact for the program and wrong for the
    problem, at every tolerance. Linearized at (1, 1): dL/da = 2 - 2 cos T, at a = 1 only.
    What it is for is the first check. Training has no answer to find: it lowers a, and the first update, however wrong
    its gradient's size, leaves the equilibrium, after which the discrete gradients are right again.

    Parameter: `a` (1/s), a scalar.
    """

    trap: ClassVar[bool] = True

    a: float = number(1.0)  # 1/s, at the start
    duration: float = number(10.0)  # s, T

    def init(self, key):
        return {"a": jnp.asarray(self.a)}

    def _equation(self, ts=None):
        return ODE(_field, (1.0, 1.0), 0.0, self.duration, ts)

    def loss(self, params, batch, solve):
        x, y = solve(self._equation(), params["a"]).value
        return x + y

    def exact_gradient(self, params, batch):
        """Holds at a = 1 only: elsewhere None."""
        if float(params["a"]) != 1.0:
            return None
        return {"a": 2 - 2 * jnp.cos(jnp.asarray(self.duration, jnp.asarray(params["a"]).dtype))}

    def evaluate(self, params, solve):
        x, y = solve(self._equation(), params["a"]).value
        return {"x_T": x, "y_T": y}

    def figure(self, params, solve):
        ts = jnp.linspace(0.0, self.duration, 201)
        x, y = solve(self._equation(ts), params["a"]).value
        title = f"From (1, 1) at a = {float(params['a']):.4g} per s: x(T) + y(T) = {float(x[-1] + y[-1]):.4g}"
        figure, axes = one_axes(title, "time t (s)", "population (no unit)")
        axes.plot(ts, x, "-", color="0.0", label="prey x")
        axes.plot(ts, y, "--", color="0.4", label="predators y")
        axes.axhline(1.0, color="0.6", linestyle=":", label="equilibrium at a = 1")
        figure.legend(fontsize="small", loc="outside lower center", ncols=3)
        return figure
