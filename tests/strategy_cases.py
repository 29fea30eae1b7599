"""Equations with closed-form solutions, one a kind, that are differentiated in every way at once.

In each of them the parameters enter through `args`, through an array leaf that the function holds, through a value that
it closes over, and through what else the kind differentiates (y0, t0, t1, ts, limits). Unknowns are pytrees.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np

from implicitexp.equations import ODE, FixedPoint, Integral, Root


class Held(eqx.Module):
    """A function with an array leaf: `fn(weight, *inputs)`."""

    weight: Any
    fn: Callable = eqx.field(static=True)

    def __call__(self, *inputs):
        return self.fn(self.weight, *inputs)


class Case(NamedTuple):
    """`equation(p)` -> equation, args; `exact(p)` -> its solution; `params`: numbers for p."""

    kind: str
    params: dict
    equation: Callable
    exact: Callable

    def __str__(self):
        return self.kind


def root(p):
    closed = p["closed"]

    def fn(weight, y, args):
        return {"x": y["x"] ** 2 - args * closed, "s": jnp.exp(y["s"]) - weight * jnp.sum(y["x"])}

    return Root(Held(p["held"], fn), {"x": jnp.ones_like(p["args"]), "s": 0.0}), p["args"]


def root_exact(p):
    x = jnp.sqrt(p["args"] * p["closed"])
    return {"x": x, "s": jnp.log(p["held"] * jnp.sum(x))}


def fixed_point(p):
    closed = p["closed"]

    def fn(weight, y, args):
        return {"x": jnp.sqrt(args * closed + y["x"]), "s": 0.4 * y["s"] + weight * jnp.sum(y["x"])}

    return FixedPoint(Held(p["held"], fn), {"x": jnp.ones_like(p["args"]), "s": 0.0}), p["args"]


def fixed_point_exact(p):
    x = (1 + jnp.sqrt(1 + 4 * p["args"] * p["closed"])) / 2
    return {"x": x, "s": p["held"] * jnp.sum(x) / 0.6}


def _field(closed):
    def fn(weight, t, y, args):
        return {"x": -args * closed * y["x"], "s": weight * jnp.sum(y["x"])}

    return fn


def ode(p):
    y0 = {"x": p["y0"] * jnp.ones_like(p["args"]), "s": p["y0"]}
    return ODE(Held(p["held"], _field(p["closed"])), y0, p["t0"], p["t1"]), p["args"]


def ode_at(t, p):
    rate = p["args"] * p["closed"]
    span = t - p["t0"]
    s = p["y0"] + p["held"] * jnp.sum(p["y0"] * (1 - jnp.exp(-rate * span)) / rate)
    return {"x": p["y0"] * jnp.exp(-rate * span), "s": s}


def ode_exact(p):
    return ode_at(p["t1"], p)


def integral(p):
    closed = p["closed"]

    def fn(weight, x, args):
        return {"a": weight * jnp.exp(-args * x), "b": jnp.cos(closed * x)}

    return Integral(Held(p["held"], fn), p["lower"], p["upper"]), p["args"]


def integral_exact(p):
    k, c, lower, upper = p["args"], p["closed"], p["lower"], p["upper"]
    a = p["held"] * (jnp.exp(-k * lower) - jnp.exp(-k * upper)) / k
    return {"a": a, "b": (jnp.sin(c * upper) - jnp.sin(c * lower)) / c}


def bracketed(p):
    """One number between bounds, as bisection needs it."""
    closed = p["closed"]

    def fn(weight, y, args):
        return y**2 - closed * jnp.sum(args) - weight

    return Root(Held(p["held"], fn), 1.0, bounds=(0.0, 3.0)), p["args"]


def bracketed_exact(p):
    return jnp.sqrt(p["closed"] * jnp.sum(p["args"]) + p["held"])


def pair(p):
    """Oscillators q' = held p, p' = -closed args q, in the form that a symplectic method needs."""
    closed = p["closed"]

    def field(weight, t, y, args):
        q, momentum = y
        return weight * momentum, -args * closed * q

    start = p["y0"] * jnp.ones_like(p["args"])
    return ODE(Held(p["held"], field), (start, 0.3 * start), p["t0"], p["t1"]), p["args"]


def pair_exact(p):
    frequency, start = jnp.sqrt(p["held"] * p["closed"] * p["args"]), p["y0"]
    phase, scale = frequency * (p["t1"] - p["t0"]), frequency / p["held"]
    sine, cosine = jnp.sin(phase), jnp.cos(phase)
    return start * (cosine + 0.3 / scale * sine), start * (0.3 * cosine - scale * sine)


VECTOR = np.array([1.5, 0.7])
COMMON = {"args": VECTOR, "closed": 1.3, "held": 0.8}
CASES = {
    "root": Case("root", COMMON, root, root_exact),
    "fixed_point": Case("fixed_point", COMMON, fixed_point, fixed_point_exact),
    "ode": Case("ode", {**COMMON, "y0": 1.2, "t0": 0.1, "t1": 1.4}, ode, ode_exact),
    "integral": Case("integral", {**COMMON, "lower": 0.2, "upper": 1.7}, integral, integral_exact),
}
BRACKETED = Case("root", COMMON, bracketed, bracketed_exact)
PAIR = Case("ode", {**COMMON, "y0": 1.2, "t0": 0.1, "t1": 1.4}, pair, pair_exact)
