"""The continuous adjoints and the forward sensitivities: their tolerance, their cost, how far the state comes back."""

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
from panels import Panel, in_turn, relative
from problems import LOGISTIC, TIGHT, end, logistic, logistic_solution, predators, van_der_pol

from implicitexp.adjoints import Backsolve, ForwardSensitivity, Gauss, Interpolating

ERROR = "relative error of the gradient"
SOLVERS = {"Tsit5": dfx.Tsit5(), "Dopri8": dfx.Dopri8(), "Kvaerno5": dfx.Kvaerno5(root_finder=TIGHT)}
SIX_DECADES = [10.0**-k for k in range(5, 12)]


def _over_tolerances(adjoint, title: str) -> Panel:
    """Of sin y(3) of the logistic equation, by growth, capacity and start."""
    p = jax.tree.map(jnp.array, LOGISTIC)
    reference = jax.grad(lambda p: jnp.sin(logistic_solution(p, 3.0)))(p)
    curves = {}
    for name, solver in SOLVERS.items():

        def value(p, tolerance, solver=solver):
            return jnp.sin(end(logistic, p, p["y0"], 3.0, adjoint, solver, tolerance))

        gradient = jax.jit(jax.grad(value))
        curves[name] = [relative(gradient(p, t), reference) for t in SIX_DECADES]
    return Panel(title, "rtol = atol", ERROR, SIX_DECADES, curves, {"equal": SIX_DECADES})


def gauss() -> list[Panel]:
    return [_over_tolerances(Gauss(), "Gauss(): the logistic equation")]


def interpolating() -> list[Panel]:
    """Its tolerance, and what the parameters cost by an implicit method."""
    counts = [3, 30, 100, 1000]
    adjoints = {"Interpolating()": (Interpolating(), 100), "Gauss()": (Gauss(), 1000)}
    curves = {name: [] for name in adjoints}
    for count in counts:
        calls = {"solve": _stiff(None, count)}
        calls |= {name: _stiff(adjoint, count) for name, (adjoint, most) in adjoints.items() if count <= most}
        seconds = in_turn(calls, 5)
        for name, values in curves.items():
            values.append(seconds.get(name, np.nan) / seconds["solve"])
    by_count = Panel("Kvaerno5, 2 states", "parameters", "time of gradient / solve", counts, curves)
    return [_over_tolerances(Interpolating(), "Interpolating(): the logistic equation"), by_count]


def _stiff(adjoint, count: int):
    """A stiff field of two states with so many parameters, of which it sees weighted means."""
    weights = jnp.asarray(np.random.default_rng(0).normal(size=(2, count)) / count**0.5)
    p = jnp.asarray(np.random.default_rng(1).normal(size=count))

    def field(t, y, p):
        pull = weights @ p
        return jnp.stack([-100 * (y[0] - jnp.cos(t)) + pull[0] * y[1], -y[1] + pull[1] * y[0]])

    def value(p):
        return end(field, p, jnp.array([1.0, 0.0]), 3.0, adjoint or dfx.ForwardMode(), dfx.Kvaerno5()).sum()

    call = jax.jit(value if adjoint is None else jax.grad(value))
    return lambda: call(p)


def backsolve() -> list[Panel]:
    """The oscillator of van der Pol, whose solutions run into one cycle: backwards they run apart."""
    ends = [1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0]
    damping = jnp.array(1.0)

    def gradient(adjoint, solver=None, tolerance=1e-6):
        def value(damping, drift, t1):
            own = Backsolve(checkpoints=adjoint, drift=drift) if isinstance(adjoint, int) else adjoint
            return end(van_der_pol, damping, jnp.array([2.0, 0.0]), t1, own, solver, tolerance)[0]

        compiled = jax.jit(jax.grad(value, argnums=(0, 1)))
        return [compiled(damping, jnp.zeros(()), t1) for t1 in ends]

    exact = [g for g, _ in gradient(Gauss(), dfx.Dopri8(), 1e-12)]
    curves = {}
    for name, adjoint in {"no state kept": 0, "16 states kept": 16, "gauss": Gauss()}.items():
        found = gradient(adjoint)
        curves[f"error, {name}"] = [relative(g, e) for (g, _), e in zip(found, exact, strict=True)]
        if name != "gauss":
            curves[f"drift, {name}"] = [float(drift) for _, drift in found]
    title = "The oscillator of van der Pol, damping 1, Tsit5, tolerance 1e-6"
    return [Panel(title, "T (s)", "relative", ends, curves, log="y")]


def forward_sensitivity() -> list[Panel]:
    """The equilibrium of Lotka-Volterra, where the state's own error estimate is zero."""
    tolerances = [10.0**-k for k in range(3, 12)]
    curves = {}
    for in_error_test in (False, True):
        adjoint = ForwardSensitivity(in_error_test=in_error_test)

        def value(a, tolerance, adjoint=adjoint):
            return end(predators, a, jnp.ones(2), 10.0, adjoint, None, tolerance).sum()

        gradient = jax.jit(jax.grad(value))
        errors = [relative(gradient(jnp.array(1.0), t), 2 - 2 * jnp.cos(10.0)) for t in tolerances]
        curves[f"in_error_test={in_error_test}"] = errors
    title = "ForwardSensitivity(): Lotka-Volterra at its equilibrium, T = 10 s"
    return [Panel(title, "rtol = atol", ERROR, tolerances, curves, {"equal": tolerances})]
