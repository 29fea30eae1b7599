"""Derivatives of the program, through its steps: `unroll`, `replay`, `reversible`; and the two that go forward."""

import diffrax as dfx
import jax
import jax.numpy as jnp
from panels import Panel, in_turn, over, relative
from problems import RATES, START, end, end_in_steps, predators, rates_field, relaxation, relaxed

import implicitexp
from implicitexp.adjoints import Replay, Reversible
from implicitexp.solvers import Tsit5

ERROR = "relative error of the gradient"


def unroll() -> list[Panel]:
    """The equilibrium of Lotka-Volterra: no tolerance makes the accepted steps resolve the derivative."""
    tolerances = [10.0**-k for k in range(3, 12)]
    strategies = {"unroll": implicitexp.Unroll(), "adjoint": implicitexp.Adjoint()}
    curves = {}
    for name, strategy in strategies.items():

        def value(a, tolerance, strategy=strategy):
            equation = implicitexp.ODE(predators, jnp.ones(2), 0.0, 10.0)
            solver = Tsit5(rtol=tolerance, atol=tolerance)
            return implicitexp.solve(equation, a, solver=solver, gradient=strategy).value.sum()

        gradient = jax.jit(jax.grad(value))
        curves[name] = [relative(gradient(jnp.array(1.0), t), 2 - 2 * jnp.cos(10.0)) for t in tolerances]
    title = "Lotka-Volterra at its equilibrium, Tsit5, T = 10 s"
    return [Panel(title, "rtol = atol of the solver", ERROR, tolerances, curves)]


def forward() -> list[Panel]:
    """y' = -y + the mean of theta_i sin(i t): the time of a gradient over the number of parameters."""
    counts = [1, 4, 16, 64, 200]
    strategies = {"forward": implicitexp.Forward(), "adjoint": implicitexp.Adjoint()}
    curves = {name: [] for name in strategies}
    for count in counts:
        theta = jnp.linspace(0.5, 1.5, count)

        def field(t, y, theta):
            return -y + jnp.mean(theta * jnp.sin(jnp.arange(1, theta.size + 1) * t))

        def value(theta, strategy=None):
            equation = implicitexp.ODE(field, 1.0, 0.0, 3.0)
            return implicitexp.solve(equation, theta, solver=Tsit5(rtol=1e-6, atol=1e-6), gradient=strategy).value

        calls = {"solve": jax.jit(value)}
        calls |= {name: jax.jit(jax.grad(lambda x, s=s: value(x, s))) for name, s in strategies.items()}
        seconds = in_turn({name: lambda call=call, theta=theta: call(theta) for name, call in calls.items()})
        for name, values in curves.items():
            values.append(seconds[name] / seconds["solve"])
    title = "One state, p parameters, Tsit5"
    return [Panel(title, "parameters p", "time of gradient / solve", counts, curves)]


def finite_difference() -> list[Panel]:
    """y(2) of y' = -k (y - cos t): the truncation of the difference, and the noise of the solver divided by the step."""
    widths = [10.0 ** (-k / 2) for k in range(1, 25)]
    tolerances = [1e-4, 1e-8, 1e-12]
    exact = jax.grad(relaxed)(3.0, 2.0)

    @jax.jit
    def gradient(step, tolerance):
        def value(k):
            equation = implicitexp.ODE(relaxation, 0.0, 0.0, 2.0)
            strategy = implicitexp.FiniteDifference(step=step)
            return implicitexp.solve(equation, k, solver=Tsit5(rtol=tolerance, atol=tolerance), gradient=strategy).value

        return jax.grad(value)(jnp.array(3.0))

    curves = {f"tolerance {t:.0e}": over(widths, lambda h, t=t: relative(gradient(h, t), exact)) for t in tolerances}
    title = "FiniteDifference(step): y' = -3 (y - cos t), Tsit5"
    return [Panel(title, "step, relative", ERROR, widths, curves)]


def replay() -> list[Panel]:
    """Lotka-Volterra in equal steps of Tsit5."""
    counts = [10, 100, 1000, 10_000]
    adjoints = {"unroll": dfx.RecursiveCheckpointAdjoint(), "replay": Replay()}
    curves = {name: [] for name in adjoints}
    p = (jnp.array(RATES), jnp.array(START))
    for count in counts:

        def value(p, adjoint=None, count=count):
            adjoint = dfx.ForwardMode() if adjoint is None else adjoint
            return end_in_steps(rates_field, p[0], p[1], count, 10.0 / max(count, 100), adjoint, dfx.Tsit5()).sum()

        calls = {"solve": jax.jit(value)}
        calls |= {name: jax.jit(jax.grad(lambda p, a=a: value(p, a))) for name, a in adjoints.items()}
        seconds = in_turn({name: lambda call=call: call(p) for name, call in calls.items()}, 20)
        for name, values in curves.items():
            values.append(seconds[name] / seconds["solve"])
    title = "Lotka-Volterra, Tsit5 in equal steps"
    return [Panel(title, "steps", "time of gradient / solve", counts, curves, log="x")]


def reversible() -> list[Panel]:
    return [_memory(), _coupling()]


def _memory() -> Panel:
    """XLA's figure of temporary memory, for 100 numbers of state in steps of the midpoint method."""
    counts = [100, 1000, 10_000]
    adjoints = {"unroll": dfx.RecursiveCheckpointAdjoint(), "replay": Replay(), "reversible": Reversible()}

    def megabytes(adjoint, count):
        def value(rate):
            def field(t, y, rate):
                return rate * jnp.stack([y[1], -y[0]])

            return end_in_steps(field, rate, jnp.ones((2, 50)), count, 0.01, adjoint, dfx.Midpoint()).sum()

        compiled = jax.jit(jax.grad(value)).lower(jnp.array(1.0)).compile()
        memory = compiled.memory_analysis()
        assert memory is not None  # XLA has it on the CPU
        return memory.temp_size_in_bytes / 2**20

    curves = {name: over(counts, lambda n, a=a: megabytes(a, n)) for name, a in adjoints.items()}
    return Panel("100 states, midpoint method", "steps", "temporary memory (MiB)", counts, curves)


def _coupling() -> Panel:
    """Of the four rates of Lotka-Volterra, T = 10 s; NaN (not drawn) where the states did not come back to the start."""
    couplings = [0.92, 0.94, 0.96, 0.97, 0.98, 0.99, 0.999, 1.0]
    rates, start = jnp.array(RATES), jnp.array(START)

    def gradient(adjoint, tolerance, solver=None):
        def value(rates):
            return (end(rates_field, rates, start, 10.0, adjoint, solver, tolerance) ** 2).sum()

        return jax.jit(jax.grad(value))(rates)

    exact = gradient(Replay(), 1e-13, dfx.Dopri8())
    curves = {
        f"fixed, {t:.0e}": over(couplings, lambda c, t=t: relative(gradient(Reversible(c), t), exact))
        for t in (1e-6, 1e-8)
    }
    chosen = {"chosen by step, 1e-06": Reversible(), "replay, 1e-06": Replay()}
    guides = {name: [relative(gradient(adjoint, 1e-6), exact)] * len(couplings) for name, adjoint in chosen.items()}
    return Panel("Lotka-Volterra, Tsit5", "coupling", ERROR, couplings, curves, guides, log="y")
