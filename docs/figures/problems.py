"""ODEs and integrals with a closed form, and the calls of Diffrax around them."""

from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array

TIGHT = optx.Newton(1e-13, 1e-13)  # stages without an error of their own, so that the steps' is seen


def van_der_pol(t: Any, y: Any, damping: Any) -> Any:
    """x'' = damping (1 - x^2) x' - x."""
    return jnp.stack([y[1], damping * (1 - y[0] ** 2) * y[1] - y[0]])


def relaxation(t: Any, y: Any, k: Any) -> Any:
    """y' = -k (y - cos t), y(0) = 0."""
    return -k * (y - jnp.cos(t))


def relaxed(k: Any, t: Any) -> Array:
    """y(t)."""
    return (k * (k * jnp.cos(t) + jnp.sin(t)) - k**2 * jnp.exp(-k * t)) / (1 + k**2)


def logistic(t: Any, y: Any, p: Any) -> Any:
    """y' = r y (1 - y / K)."""
    return p["r"] * y * (1 - y / p["K"])


def logistic_solution(p: Any, t: Any) -> Array:
    return p["K"] / (1 + (p["K"] / p["y0"] - 1) * jnp.exp(-t * p["r"]))


LOGISTIC = {"r": 1.3, "K": 2.0, "y0": 0.3}


def predators(t: Any, y: Any, a: Any) -> Any:
    """Lotka-Volterra, at rest in (1, 1): there d(x + y)(T)/da = 2 - 2 cos T at a = 1, and the error estimate is zero."""
    prey, hunters = y
    return jnp.stack([a * prey - prey * hunters, prey * hunters - a * hunters])


def rates_field(t: Any, y: Any, rates: Any) -> Any:
    """Lotka-Volterra with four rates."""
    a, b, c, d = rates
    return jnp.stack([a * y[0] - b * y[0] * y[1], d * y[0] * y[1] - c * y[1]])


RATES, START = (1.5, 1.0, 3.0, 1.0), (1.0, 1.0)


def peak(a: Any, width: Any) -> Array:
    """The integral of 1 / ((x - a)^2 + width^2) from 0 to 1."""
    return (jnp.arctan((1 - a) / width) + jnp.arctan(a / width)) / width


def end(
    field: Any, args: Any, y0: Any, t1: Any, adjoint: Any, solver: Any = None, tolerance: Any = 1e-6, **options: Any
) -> Any:
    """y(t1), from t = 0, under an error control."""
    sol = dfx.diffeqsolve(
        dfx.ODETerm(field),
        dfx.Tsit5() if solver is None else solver,
        0.0,
        t1,
        None,
        y0,
        args,
        stepsize_controller=dfx.PIDController(rtol=tolerance, atol=tolerance),
        adjoint=adjoint,
        **{"max_steps": 4096, "throw": False, **options},
    )
    return jax.tree.map(lambda y: y[-1], sol.ys)


def end_in_steps(field: Any, args: Any, y0: Any, steps: int, dt: float, adjoint: Any, solver: Any) -> Any:
    """y after that many equal steps."""
    sol = dfx.diffeqsolve(
        dfx.ODETerm(field), solver, 0.0, steps * dt, dt, y0, args, adjoint=adjoint, max_steps=steps + 1
    )
    assert sol.ys is not None
    return sol.ys[-1]
