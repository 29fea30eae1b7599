"""`brachistochrone`: the path of quickest descent, as an ODE, as a root, or by direct minimization of the time."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .base import AbstractProblem, as_number, number, one_axes
from .brachistochrone_paths import (
    cycloid,
    cycloid_angle,
    drop_by_ode,
    drop_by_root,
    exact_drop,
    path_point,
    travel_time,
)

COEFFICIENTS = 10  # of the path's series in `direct`: time within 1e-4 of the cycloid's up to P_X / P_Y = 10
NEAR = (0.6, 0.85)  # P_X / P_Y between which the start's rule is within 30 % of the answer
FACTOR = 2.0  # by which the start is moved away there
DEEP_BELOW = 1.5  # P_X / P_Y below which `direct` starts from a path that goes deeper than P, as the answer does not
DEEP = 4.0  # the first coefficient of that path: without it the start's time is within 20 % of the shortest


def _pair(value):
    if len(value) != 2:
        raise ValueError(f"P must be two lengths [P_X, P_Y] in meters, not {value!r}.")
    return tuple(as_number(x) for x in value)


class Brachistochrone(AbstractProblem):
    """A marble starts at rest in (0, 0) and must reach P = (P_X, P_Y), y downwards, soonest.

    Its time is ∫ sqrt((1 + y'²) / (2 g y)) dx, and Euler-Lagrange gives y (1 + y'²) = 2R. Three formulations:

    - `ode`: find R that minimizes (y_R(P_X)/P_Y - 1)², y_R the solution of that ODE, continued beyond the lowest point;
    - `root`: the same loss, y_R(P_X) = R (1 - cos θ) with θ the root of R (θ - sin θ) = P_X;
    - `direct`: no Euler-Lagrange: minimize the time over x = P_X s³(4 - 3s), y = P_Y s² exp((1 - s) times a Chebyshev series),
      by numerical integration; these powers of s make the singular integrand regular.

    The start is R0 = (P_X² + P_Y²) / (2 P_Y), which is the circle through both points with a vertical start, times 2 for
    0.6 < P_X/P_Y < 0.85, where the circle is too close to the answer: it is at least 25 % away everywhere. `direct`
    starts from the series 0, or (4, 0, ...) for P_X/P_Y < 1.5, a path that goes deeper than P: its time is at least
    20 % longer than the shortest.
    Exact: the cycloid x = R(θ - sin θ), y = R(1 - cos θ), time θ sqrt(R/g) (Johann Bernoulli 1696). Works for
    0.05 <= P_X/P_Y <= 10; the lowest point is at P_X/P_Y = π/2.

    Parameters: `log_R` (R in meters), or `R` with `parameter="R"`, for which the learning rate is a length and has to fit
    P (gradient descent oscillates beyond the lowest point); in `direct` `series`, (10,), no unit.
    """

    P: tuple[float, float] = eqx.field(converter=_pair, default=(2.0, 1.0))  # m, (P_X, P_Y), both positive
    formulation: Literal["ode", "root", "direct"] = eqx.field(static=True, default="ode")
    parameter: Literal["log_R", "R"] = eqx.field(static=True, default="log_R")
    gravity: float = number(9.81)  # m/s²

    def __check_init__(self):
        if self.formulation not in ("ode", "root", "direct"):
            raise ValueError(f"formulation must be ode, root or direct, not {self.formulation!r}.")
        if self.parameter not in ("log_R", "R"):
            raise ValueError(f"parameter must be log_R or R, not {self.parameter!r}.")
        if any(isinstance(x, float) and not 0 < x < float("inf") for x in self.P):
            raise ValueError(f"P must be two positive lengths in meters, not {list(self.P)!r}.")

    def init(self, key):
        across, down = jnp.asarray(self.P[0]), jnp.asarray(self.P[1])
        if self.formulation == "direct":
            deep = jnp.where(across < DEEP_BELOW * down, DEEP, 0.0)
            return {"series": jnp.zeros(COEFFICIENTS, across.dtype).at[0].set(deep)}
        radius = (across**2 + down**2) / (2 * down)
        near = (across > NEAR[0] * down) & (across < NEAR[1] * down)
        radius = jnp.where(near, FACTOR * radius, radius)
        return {"log_R": jnp.log(radius)} if self.parameter == "log_R" else {"R": radius}

    def radius(self, params):
        """The cycloid's R (m) of these parameters."""
        return jnp.exp(params["log_R"]) if self.parameter == "log_R" else params["R"]

    def loss(self, params, batch, solve):
        across, down = self.P
        if self.formulation == "direct":
            return travel_time(params["series"], across, down, self.gravity, solve)
        drop = drop_by_ode if self.formulation == "ode" else drop_by_root
        return (drop(self.radius(params), across, solve) / down - 1) ** 2

    def exact_loss(self, params, batch):
        """By the cycloid; None for `direct`, whose path is none."""
        if self.formulation == "direct":
            return None
        across, down = self.P
        return (exact_drop(self.radius(params), across) / down - 1) ** 2

    def exact_radius(self):
        """The cycloid's R through P (m)."""
        return self.P[1] / (2 * jnp.sin(cycloid_angle(*self.P) / 2) ** 2)

    def exact_time(self):
        """The shortest time (s)."""
        return cycloid_angle(*self.P) * jnp.sqrt(self.exact_radius() / self.gravity)

    def evaluate(self, params, solve):
        if self.formulation == "direct":
            time = travel_time(params["series"], *self.P, self.gravity, solve)
            return {"time_s": time, "time_relative_error": time / self.exact_time() - 1}
        radius = self.radius(params)
        return {"R_m": radius, "R_relative_error": radius / self.exact_radius() - 1, "time_exact_s": self.exact_time()}

    def figure(self, params, solve):
        figure, axes = one_axes(f"Quickest descent, found by {self.formulation}", "x (m)", "y (m), downwards")
        across, down = (float(x) for x in self.P)
        exact = cycloid(float(self.exact_radius()), np.linspace(0, float(cycloid_angle(*self.P)), 201))
        axes.plot(*exact, "-", color="0.7", linewidth=5, label="cycloid, exact")
        axes.plot(*self._path(params, across, solve), "--", color="0.0", label="found")
        axes.plot([0, across], [0, down], "o", color="0.0")
        axes.annotate("P", (across, down), xytext=(6, 6), textcoords="offset points")
        axes.invert_yaxis()
        axes.set_aspect("equal", adjustable="datalim")
        axes.legend()
        return figure

    def _path(self, params, across, solve):
        """Points of the found path for the figure: two arrays (m)."""
        if self.formulation == "direct":
            return path_point(np.linspace(0, 1, 201), params["series"], *self.P)
        xs = np.linspace(0.0, 1.0, 41)[1:] ** 2 * across
        drop = drop_by_ode if self.formulation == "ode" else drop_by_root
        ys = jax.jit(jax.vmap(lambda x: drop(self.radius(params), x, solve)))(xs)
        return np.append(0.0, xs), np.append(0.0, ys)
