"""Cases 5 to 7: stiff problems, of few and of many parameters."""

import dataclasses
from collections.abc import Callable
from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

import implicitexp
from benchmarks.peers import ode_programs as ode
from benchmarks.peers.cases import Case, Foreign, Program, Reference
from implicitexp import solvers

TOO_WIDE = (
    "BacksolveAdjoint(), Backsolve() and Interpolating(): not run, their implicit steps have matrices of {rows:,} rows and "
    "more; ForwardMode(): not run, {rows:,} tangents."
)
FEW = ("Replay()", "Gauss()"), ("RecursiveCheckpointAdjoint()", "DirectAdjoint()")


def framework(problem: ode.InitialValue) -> list[Program]:
    """`implicitexp.solve` with our Kvaerno5, whose stages are Newton's: both gradients of an ODE, with their defaults."""
    solver = solvers.Kvaerno5(rtol=problem.tolerance, atol=problem.tolerance)

    def by(strategy):
        def loss(theta, start):
            equation = implicitexp.ODE(problem.field, start, 0.0, problem.end)
            return problem.loss(implicitexp.solve(equation, theta, solver=solver, gradient=strategy).value)

        return jax.grad(loss, argnums=(0, 1))

    strategies = {"Adjoint()": implicitexp.Adjoint(), "Implicit()": implicitexp.Implicit()}
    return [
        Program("ours", "implicitexp", f"solve, Kvaerno5, {name}", by(strategy))
        for name, strategy in strategies.items()
    ]


def with_newton(problem: ode.InitialValue, args: tuple) -> ode.InitialValue:
    """The problem with our Kvaerno5's root finder in Diffrax's: what its users can have, too, if they know."""
    solver = solvers.Kvaerno5(rtol=problem.tolerance, atol=problem.tolerance)
    return problem.changed(solver=solver.stepper(args[1]))


@dataclasses.dataclass(frozen=True)
class _Stiff:
    """What the three cases share: all programs for a problem."""

    problem: ode.InitialValue
    args: tuple
    ours: tuple[str, ...] = ("Replay()", "Gauss()", "Interpolating()", "Backsolve()")
    theirs: tuple[str, ...] = tuple(ode.DIFFRAX)
    forward: bool = True

    def programs(self, small: bool) -> list[Program]:
        newton = with_newton(self.problem, self.args)
        if small:
            return [*ode.ours(self.problem, "Replay()"), ode.implicit_floor(self.problem, self.args)]
        better = [
            dataclasses.replace(program, name=f"{program.name}, Newton stages")
            for program in [*ode.diffrax(newton, "RecursiveCheckpointAdjoint()"), ode.implicit_floor(newton, self.args)]
        ]
        return [
            *ode.ours(self.problem, *self.ours),
            *framework(self.problem),
            *ode.diffrax(self.problem, *self.theirs, forward=self.forward),
            ode.implicit_floor(self.problem, self.args),
            *better,
        ]


# -- case 5 ---------------------------------------------------------------------------------------------------------------

LOG_RATES = np.log([0.04, 3e7, 1e4])


def kinetics(t, y, log_rates):
    k1, k2, k3 = jnp.exp(log_rates)
    slow, fast, back = k1 * y[0], k2 * y[1] ** 2, k3 * y[1] * y[2]
    return jnp.stack([back - slow, slow - fast - back, fast])


def robertson(small: bool) -> Case:
    """Case 5. Differentiated by the logarithms of the rates, which are nine decades apart, and by the start."""
    end, tolerance = (10.0 if small else 1e5), 1e-8
    problem = ode.InitialValue(kinetics, end, dfx.Kvaerno5(), tolerance)
    args = (jnp.asarray(LOG_RATES), jnp.array([1.0, 0.0, 0.0]))
    return Case(
        5,
        "Robertson to 1e5, Kvaerno5, 1e-8",
        tolerance,
        args,
        _Stiff(problem, args).programs(small),
        lambda: _robertson_reference(end),
        [
            Foreign("native", "CVODES", "adjoint (BDF)", "cvodes", "robertson"),
            Foreign("native", "CasADi", "its CVODES, reverse mode", "casadi_ode", "robertson"),
        ],
        {
            "log_rates": LOG_RATES,
            "start": np.array([1.0, 0, 0]),
            "end": np.array(end),
            "tolerance": np.array(tolerance),
        },
    )


def _robertson_reference(end: float) -> Reference:
    """By SciPy: the six tangents beside the state, Radau at 1e-12 against BDF at 1e-11."""
    k1, k2, k3 = np.exp(LOG_RATES)

    def parts(z):
        y = z[:3]
        jacobian = np.array(
            [[-k1, k3 * y[2], k3 * y[1]], [k1, -2 * k2 * y[1] - k3 * y[2], -k3 * y[1]], [0, 2 * k2 * y[1], 0]]
        )
        slow, fast, back = k1 * y[0], k2 * y[1] ** 2, k3 * y[1] * y[2]
        by_rates = np.zeros((3, 6))
        by_rates[:, :3] = [[-slow, 0, back], [slow, -fast, -back], [0, fast, 0]]
        return np.array([back - slow, slow - fast - back, fast]), jacobian, by_rates

    def augmented(t, z):
        slope, jacobian, by_rates = parts(z)
        return np.concatenate([slope, (jacobian @ z[3:].reshape(3, 6) + by_rates).ravel()])

    first = np.concatenate([[1.0, 0, 0], np.eye(3, 6, 3).ravel()])

    def by(method, tolerance):
        z = solve_ivp(augmented, (0, end), first, method, rtol=tolerance, atol=tolerance * 1e-4).y[:, -1]
        return 2 * z[:3] @ z[3:].reshape(3, 6)

    return Reference.of_two(by("Radau", 1e-11), by("BDF", 1e-11))


# -- case 6 ---------------------------------------------------------------------------------------------------------------

DIFFUSION, FEED, REMOVAL = 0.02, 1.0, 3.0


def reaction(t, y, theta):
    """u' = A + u^2 v - (B + 1) u + d u'', v' = B u - u^2 v + d v'', u = 1 and v = 3 at both ends, A and B in each cell."""
    feed, removal = theta
    u, v = jnp.split(y, 2)
    scale = DIFFUSION * (u.size + 1) ** 2

    def spread(w, edge):
        padded = jnp.concatenate([jnp.full(1, edge), w, jnp.full(1, edge)])
        return scale * (padded[2:] - 2 * w + padded[:-2])

    made = u**2 * v
    return jnp.concatenate([feed + made - (removal + 1) * u + spread(u, 1.0), removal * u - made + spread(v, 3.0)])


def brusselator(small: bool) -> Case:
    """Case 6."""
    cells, end, tolerance = (4, 0.5, 1e-6) if small else (64, 10.0, 1e-6)
    x = np.arange(1, cells + 1) / (cells + 1)
    start = np.concatenate([1 + np.sin(2 * np.pi * x), np.full(cells, 3.0)])
    theta = (np.full(cells, FEED), np.full(cells, REMOVAL))
    problem = ode.InitialValue(reaction, end, dfx.Kvaerno5(), tolerance)
    args = jax.tree.map(jnp.asarray, (theta, start))
    return Case(
        6,
        f"Brusselator, {cells} cells, n = p = {2 * cells}, Kvaerno5, 1e-6",
        tolerance,
        args,
        _Stiff(problem, args, *FEW, forward=False).programs(small),
        lambda: ode.tight(with_newton(problem.changed(tolerance=1e-10), args), args, 1e-10),
        [Foreign("native", "CVODES", "adjoint (BDF)", "cvodes", "brusselator")],
        {
            "feed": theta[0],
            "removal": theta[1],
            "start": start,
            "end": np.array(end),
            "tolerance": np.array(tolerance),
            "diffusion": np.array(DIFFUSION),
        },
        (f"{TOO_WIDE.format(rows=4 * cells)} To compile and run Interpolating() once took more than a minute.",),
    )


# -- case 7 ---------------------------------------------------------------------------------------------------------------


def slow_and_fast(size: int) -> tuple[Callable, np.ndarray]:
    """y1' = 1000 (s(y2) - y1), y2' = y1 - y2^3, s the mean of theta_k tanh(a_k y2 + b_k): -> field, theta."""
    rng = np.random.default_rng(7)
    slopes, shifts, theta = rng.normal(size=(3, size))
    a, b = jnp.asarray(slopes), jnp.asarray(shifts)

    def field(t, y, theta):
        s = jnp.mean(theta * jnp.tanh(a * y[1] + b))
        return jnp.stack([1000 * (s - y[0]), y[0] - y[1] ** 3])

    return field, 2 + theta + slopes


def many_parameters(small: bool) -> Case:
    """Case 7."""
    size, end, tolerance = (10, 0.5, 1e-8) if small else (10_000, 10.0, 1e-8)
    field, theta = slow_and_fast(size)
    problem = ode.InitialValue(field, end, dfx.Kvaerno5(), tolerance)
    args: tuple[Any, ...] = (jnp.asarray(theta), jnp.array([1.0, 0.5]))
    stiff = _Stiff(problem, args, *FEW, forward=False)
    return Case(
        7,
        f"n = 2, p = {size:,}, stiff, Kvaerno5, 1e-8",
        tolerance,
        args,
        stiff.programs(small),
        lambda: ode.tight(with_newton(problem.changed(tolerance=1e-11), args), args, 1e-11),
        remarks=(TOO_WIDE.format(rows=size + 2),),
    )
