"""Closed-form cases by which the ground truth itself is judged: an equation, and the loss that it must give.

Each case is a problem: `loss` solves, `exact_loss` does not. `withheld(case)` is the same without its closed form, so
that the reference has to compute. `hard` says what makes a case hard; `condition` how many times its own size, relative, an
error of the solution is in the gradient, which `python -m benchmarks.accuracy` computes and holds against what is stated.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import erf, gammaln

from implicitexp import solvers
from implicitexp.equations import ODE, FixedPoint, Integral, Root
from implicitexp.problems import AbstractProblem


class Case(AbstractProblem):
    """`equation(params) -> (equation, args)`; the loss is `outcome(value)`, in closed form `exact(params)`."""

    name: str = eqx.field(static=True)
    equation: Callable = eqx.field(static=True)
    exact: Callable = eqx.field(static=True)
    start: tuple = eqx.field(static=True)
    outcome: Callable = eqx.field(static=True, default=jnp.sum)
    solver: Any = eqx.field(static=True, default=None)
    hard: str = eqx.field(static=True, default="")
    condition: float = eqx.field(static=True, default=1.0)
    on_the_way: float = eqx.field(static=True, default=0.0)  # an ODE's relative error in float64, if larger than at t1
    closed: bool = eqx.field(static=True, default=True)

    def init(self, key):
        return {name: jnp.asarray(value, jnp.result_type(float)) for name, value in self.start}

    def loss(self, params, batch, solve):
        equation, args = self.equation(params)
        return self.outcome(solve(equation, args).value)

    def exact_loss(self, params, batch):
        return self.exact(params) if self.closed else None

    def __repr__(self):
        return self.name


def withheld(case: Case) -> Case:
    fields = {name: getattr(case, name) for name in Case.__dataclass_fields__ if name != "trap"}
    return Case(**{**fields, "closed": False})


def case(name, equation, exact, outcome=jnp.sum, solver=None, hard="", condition=1.0, on_the_way=0.0, **start):
    return Case(name, equation, exact, tuple(start.items()), outcome, solver, hard, condition, on_the_way)


def root(fn, y0):
    return lambda p: (Root(fn, y0), p)


def fixed(fn, y0):
    return lambda p: (FixedPoint(fn, y0), p)


def ode(field, y0, t0, t1, ts=None):
    """Each of y0, t0, t1, ts may be a function of the parameters."""

    def at(x, p):
        return x(p) if callable(x) else x

    return lambda p: (ODE(field, at(y0, p), at(t0, p), at(t1, p), at(ts, p)), p)


def integral(integrand, lower, upper):
    def at(x, p):
        return x(p) if callable(x) else x

    return lambda p: (Integral(integrand, at(lower, p), at(upper, p)), p)


def _cardano(p):
    """The real root of y^3 + b y = a, b > 0."""
    scale = jnp.sqrt(p["b"] / 3)
    return 2 * scale * jnp.sinh(jnp.arcsinh(p["a"] / (2 * scale**3)) / 3)


def _ill(y, p):
    return jnp.stack([y[0] + y[1] - p["a"], y[0] + (1 + p["b"]) * y[1] - p["c"]])


ROOTS = [
    case("square root", root(lambda y, p: y**2 - p["a"], 1.0), lambda p: jnp.sqrt(p["a"]), a=2.0),
    case(
        "double root, nearly", root(lambda y, p: (y - 1) ** 2 - p["a"], 1.001), lambda p: 1 + jnp.sqrt(p["a"]), a=1e-8,
        hard="the Jacobian is 2e-4", condition=1e4,
    ),
    case(
        "triple root, nearly", root(lambda y, p: y**3 + p["b"] * y - p["a"], 0.02), _cardano, a=1e-6, b=1e-4,
        hard="the Jacobian is 4e-4", condition=1.2,
    ),
    case(
        "logarithm, small", root(lambda y, p: jnp.exp(y) - p["a"], -13.0), lambda p: jnp.log(p["a"]), a=1e-6,
        condition=13.8,
    ),
    case(
        "logarithm, large", root(lambda y, p: jnp.exp(y) - p["a"], 13.0), lambda p: jnp.log(p["a"]), a=1e6,
        condition=13.8,
    ),
    case(
        "Lambert's W at its branch", root(lambda y, p: y * jnp.exp(y) - p["s"] * jnp.exp(p["s"]), -0.9),
        lambda p: p["s"] ** 2, lambda y: y**2, s=-0.999, hard="the branch point is 0.001 away", condition=1e3,
    ),
    case(
        "arc cosine near one", root(lambda y, p: jnp.cos(y) - p["a"], 0.01), lambda p: jnp.arccos(p["a"]), a=0.999,
        hard="the Jacobian is 0.04",
    ),
    case(
        "ill-conditioned system", root(_ill, np.zeros(2)),
        lambda p: 2 * (p["a"] - (p["c"] - p["a"]) / p["b"]) + 3 * (p["c"] - p["a"]) / p["b"],
        lambda y: 2 * y[0] + 3 * y[1], a=2.0, b=1e-6, c=2.5, hard="condition 4e6", condition=1.4,
    ),
    case(
        "two unknowns in a dictionary",
        root(lambda y, p: {"u": y["u"] * y["v"] - p["a"], "v": y["u"] - p["b"] * y["v"]}, {"u": 1.0, "v": 1.0}),
        lambda p: jnp.sqrt(p["a"] * p["b"]) + 3 * jnp.sqrt(p["a"] / p["b"]),
        lambda y: y["u"] + 3 * y["v"], a=2.0, b=0.7, condition=2.3,
    ),
]  # fmt: skip


def _spiral(y, p):
    c, s = jnp.cos(p["angle"]), jnp.sin(p["angle"])
    return p["r"] * jnp.stack([c * y[0] - s * y[1], s * y[0] + c * y[1]]) + jnp.stack([p["b"], jnp.zeros_like(p["b"])])


def _spiral_exact(p):
    """|1 / (1 - r exp(i angle))|^2 b^2."""
    return p["b"] ** 2 / (1 - 2 * p["r"] * jnp.cos(p["angle"]) + p["r"] ** 2)


def _slow(y, p):
    """The fixed point is s whatever w is; the slope there is w (1 - s^2)."""
    return jnp.tanh(p["w"] * y + jnp.arctanh(p["s"]) - p["w"] * p["s"])


FIXED_POINTS = [
    case("contraction 0.99", fixed(lambda y, p: 0.99 * y + p["a"], 0.0), lambda p: 100 * p["a"], a=0.7, hard="slow"),
    case("contraction -0.99", fixed(lambda y, p: -0.99 * y + p["a"], 0.0), lambda p: p["a"] / 1.99, a=0.7),
    case(
        "contraction r", fixed(lambda y, p: p["r"] * y + p["a"], 0.0), lambda p: p["a"] / (1 - p["r"]), a=0.7, r=0.99,
        hard="its derivative is 7000",
    ),
    case("Heron", fixed(lambda y, p: (y + p["a"] / y) / 2, 1.0), lambda p: jnp.sqrt(p["a"]), a=2.0),
    case(
        "spiral", fixed(_spiral, np.zeros(2)), _spiral_exact, lambda y: jnp.sum(y**2), r=0.95, angle=0.3, b=1.5,
        hard="rotates", condition=2.0,
    ),
    case(
        "tanh, slope 0.99", fixed(_slow, 0.3), lambda p: p["s"] ** 2, lambda y: y**2, s=0.05, w=0.992,
        hard="slow", condition=4.8,
    ),
    case(
        "vector", fixed(lambda y, p: 0.5 * jnp.roll(y, 1) + p["a"] * jnp.arange(1.0, 5.0, dtype=y.dtype), np.zeros(4)),
        lambda p: p["a"] * 20.0, a=0.3,
    ),
]  # fmt: skip


def _oscillator(t, y, p):
    return {"x": y["v"], "v": -(p["omega"] ** 2) * y["x"]}


def _forced(t, z, p):
    return -p["rate"] * (z - p["a"] * jnp.cos(t)) - p["a"] * jnp.sin(t)


def _two_scales(t, y, p):
    """Eigenvalues -slow and -fast; y0 = (1, 0), and what is asked for is the slow part's weight."""
    slow, fast = p["slow"], p["fast"]
    return jnp.stack([-(slow + fast) / 2 * y[0] + (fast - slow) / 2 * y[1],
                      (fast - slow) / 2 * y[0] - (slow + fast) / 2 * y[1]])  # fmt: skip


def _logistic(p):
    return p["cap"] / (1 + (p["cap"] / p["z0"] - 1) * jnp.exp(-3 * p["r"]))


TIMES = (0.5, 1.0, 1.7)

ODES = [
    case(
        "growth", ode(lambda t, z, p: p["k"] * z, lambda p: p["z0"], 0.0, 2.0),
        lambda p: (p["z0"] * jnp.exp(2 * p["k"])) ** 2, lambda z: z**2, k=0.5, z0=1.2, condition=1.9,
    ),
    case(
        "decay to a millionth", ode(lambda t, z, p: -p["k"] * z, 1.0, 0.0, 1.0), lambda p: jnp.exp(-p["k"]), k=14.0,
        hard="the solution is far below the absolute tolerance that it starts with",
    ),
    case(
        "oscillator, 30 periods", ode(_oscillator, {"x": 1.0, "v": 0.0}, 0.0, 20.0),
        lambda p: jnp.cos(20 * p["omega"]), lambda y: y["x"], omega=9.4, hard="oscillates",
    ),
    case(
        "logistic", ode(lambda t, z, p: p["r"] * z * (1 - z / p["cap"]), lambda p: p["z0"], 0.0, 3.0), _logistic,
        r=1.3, cap=5.0, z0=0.1, condition=1.3,
    ),
    case(
        "near blow-up", ode(lambda t, z, p: z**2, lambda p: p["z0"], 0.0, lambda p: p["end"]),
        lambda p: 1 / (1 / p["z0"] - p["end"]), z0=1.0, end=0.98, hard="2 % before the pole", condition=5.5,
    ),
    case(
        "backwards in time", ode(lambda t, z, p: p["k"] * t * z, 1.0, lambda p: p["start"], 0.0),
        lambda p: jnp.exp(-p["k"] * p["start"] ** 2 / 2), k=0.8, start=1.5, on_the_way=8.4e-10,
    ),
    case(
        "three output times", ode(lambda t, z, p: p["k"] * z, 1.0, 0.0, 1.7, lambda p: p["s"] * np.asarray(TIMES)),
        lambda p: sum(i * jnp.exp(p["k"] * p["s"] * t) for i, t in enumerate(TIMES, 1)),
        lambda z: z @ jnp.arange(1.0, 4.0, dtype=z.dtype), k=0.6, s=0.9,
    ),
    case(
        "driven", ode(lambda t, z, p: p["a"] * jnp.cos(p["b"] * t) * z, 1.0, 0.0, 4.0),
        lambda p: jnp.exp(p["a"] * jnp.sin(4 * p["b"]) / p["b"]), a=1.1, b=2.3,
    ),
    case(
        "peak in the field", ode(lambda t, z, p: p["e"] / (p["e"] ** 2 + (t - p["c"]) ** 2), 0.0, 0.0, 1.0),
        lambda p: jnp.arctan((1 - p["c"]) / p["e"]) + jnp.arctan(p["c"] / p["e"]), e=0.01, c=0.4, hard="a peak",
    ),
    case(
        "stiff, forced", ode(_forced, lambda p: p["a"], 0.0, 1.0), lambda p: p["a"] * jnp.cos(1.0),
        solver=solvers.Kvaerno5(), a=1.3, rate=1000.0, hard="stiff; the derivative by the rate is zero",
    ),
    case(
        "stiff, two scales", ode(_two_scales, np.array([1.0, 0.0]), 0.0, 1.0),
        lambda p: jnp.exp(-p["slow"]) + 0 * p["fast"], solver=solvers.Kvaerno5(), slow=0.7, fast=3000.0, hard="stiff",
    ),
    case(
        "an input that does nothing", ode(lambda t, z, p: p["k"] * z + 0 * p["idle"], 1.0, 0.0, 1.0),
        lambda p: jnp.exp(p["k"]), k=0.5, idle=2.0, hard="one leaf of the gradient is zero",
    ),
]  # fmt: skip


def _incomplete(p):
    return (1 - jnp.exp(-(p["a"] ** 2))) / p["a"]


INTEGRALS = [
    case(
        "power with a singular end", integral(lambda x, p: x ** p["a"], 0.0, 1.0), lambda p: 1 / (1 + p["a"]), a=-0.4,
        solver=solvers.TanhSinh(), hard="x^-0.4 at zero, its derivative times log x",
    ),
    case(
        "logarithm", integral(lambda x, p: jnp.log(p["a"] * x), 0.0, 1.0), lambda p: jnp.log(p["a"]) - 1, a=0.7,
        hard="singular end",
    ),
    case(
        "square root at the end", integral(lambda x, p: jnp.sqrt(p["a"] * x), 0.0, 2.0),
        lambda p: jnp.sqrt(p["a"]) * 2**1.5 * 2 / 3, a=0.7, hard="infinite slope at zero",
    ),
    case(
        "Lorentz peak", integral(lambda x, p: p["e"] / (p["e"] ** 2 + (x - p["c"]) ** 2), -1.0, 1.0),
        lambda p: jnp.arctan((1 - p["c"]) / p["e"]) + jnp.arctan((1 + p["c"]) / p["e"]), e=1e-3, c=0.3,
        hard="a peak of width 0.001", condition=1.3e3,
    ),
    case(
        "Gauss over the line", integral(lambda x, p: jnp.exp(-p["a"] * x**2), -jnp.inf, jnp.inf),
        lambda p: jnp.sqrt(jnp.pi / p["a"]), a=1.7, hard="infinite limits",
    ),
    case(
        "Gamma function", integral(lambda x, p: x ** (p["s"] - 1) * jnp.exp(-x), 0.0, jnp.inf),
        lambda p: jnp.exp(gammaln(p["s"])), s=2.5, hard="infinite, and log x at zero", condition=1.2,
    ),
    case(
        "limits move", integral(lambda x, p: jnp.cos(x), lambda p: p["a"], lambda p: p["b"] ** 2),
        lambda p: jnp.sin(p["b"] ** 2) - jnp.sin(p["a"]), a=0.3, b=1.4, hard="only the boundary terms count",
    ),
    case(
        "limit and integrand", integral(lambda x, p: jnp.exp(-p["a"] * x), 0.0, lambda p: p["a"]), _incomplete, a=0.9,
        condition=3.4,
    ),
    case(
        "oscillating", integral(lambda x, p: jnp.cos(p["w"] * x), 0.0, 1.0), lambda p: jnp.sin(p["w"]) / p["w"], w=120.3,
        hard="19 periods", condition=64.0,
    ),
    case(
        "vector integrand", integral(lambda x, p: jnp.stack([p["a"] * x, jnp.exp(p["b"] * x)]), 0.0, 1.0),
        lambda p: p["a"] / 2 + (jnp.exp(p["b"]) - 1) / p["b"], a=0.4, b=0.8,
    ),
    case(
        "error function", integral(lambda x, p: 2 / jnp.sqrt(jnp.pi) * jnp.exp(-(x**2)), 0.0, lambda p: p["u"]),
        lambda p: erf(p["u"]), u=1.1,
    ),
]  # fmt: skip

CASES = ROOTS + FIXED_POINTS + ODES + INTEGRALS
BY_KIND = {"root": ROOTS, "fixed_point": FIXED_POINTS, "ode": ODES, "integral": INTEGRALS}


def start(case: Case) -> Any:
    """Its parameters in float64, in a process of any precision."""
    return {name: np.asarray(value, np.float64) for name, value in case.start}


def exact_gradient(case: Case) -> Any:
    """The closed form's gradient, in float64."""
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, jax.grad(case.exact)(jax.tree.map(jnp.asarray, start(case))))
