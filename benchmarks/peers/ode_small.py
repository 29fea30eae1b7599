"""Cases 1 and 2: Lotka and Volterra's equations, at a usual tolerance and at a tight one."""

import functools

import diffrax as dfx
import jax.numpy as jnp
import numpy as np
from scipy.integrate import solve_ivp

from benchmarks.peers import ode_programs as ode
from benchmarks.peers.cases import Case, Foreign, Reference

RATES, START, END = (1.5, 1.0, 3.0, 1.0), (1.0, 1.0), 10.0


def field(t, y, rates):
    """Written so that the cotangents of y and rates are a few products."""
    a, b, c, d = rates
    return jnp.stack([a * y[0] - b * y[0] * y[1], d * y[0] * y[1] - c * y[1]])


def usual(small: bool) -> Case:
    """Case 1."""
    return _case(1, "Lotka-Volterra, Tsit5, 1e-6", dfx.Tsit5(), 1e-6, "dopri5", small)


def tight(small: bool) -> Case:
    """Case 2."""
    return _case(2, "Lotka-Volterra, Dopri8, 1e-10", dfx.Dopri8(), 1e-10, "dopri8", small)


def _case(number: int, title: str, solver: dfx.AbstractSolver, tolerance: float, method: str, small: bool) -> Case:
    problem = ode.InitialValue(field, END / 10 if small else END, solver, tolerance)
    args = (jnp.array(RATES), jnp.array(START))
    names = ("Replay()",) if small else tuple(ode.OURS)
    theirs = ode.diffrax(problem, *(["RecursiveCheckpointAdjoint()"] if small else []), forward=not small)
    return Case(
        number,
        title,
        tolerance,
        args,
        [*ode.ours(problem, *names), *theirs, ode.explicit_floor(problem, args)],
        lambda: reference(problem.end),
        [
            Foreign("torch", "torchdiffeq", f"odeint_adjoint, {method}", "torch_ode", "lotka_volterra_adjoint"),
            Foreign("torch", "torchdiffeq", f"odeint, {method}", "torch_ode", "lotka_volterra"),
            Foreign("native", "CVODES", "adjoint (Adams)", "cvodes", "lotka_volterra"),
        ],
        {
            "rates": np.array(RATES),
            "start": np.array(START),
            "end": np.array(problem.end),
            "tolerance": np.array(tolerance),
            "method": np.array(method),
        },
        ("torchdiffeq has no Tsit5: dopri5, of the same order.",) if method == "dopri5" else (),
    )


@functools.cache
def reference(end: float) -> Reference:
    """By SciPy: the six tangents beside the state, DOP853 at 1e-13 against Radau at 1e-11."""
    rates, start = np.array(RATES), np.array(START)

    def augmented(t, z):
        (x, y), tangents = z[:2], z[2:].reshape(2, 6)
        a, b, c, d = rates
        jacobian = np.array([[a - b * y, -b * x], [d * y, d * x - c]])
        by_rates = np.array([[x, -x * y, 0, 0, 0, 0], [0, 0, -y, x * y, 0, 0]])
        slope = np.array([a * x - b * x * y, d * x * y - c * y])
        return np.concatenate([slope, (jacobian @ tangents + by_rates).ravel()])

    first = np.concatenate([start, np.eye(2, 6, 4).ravel()])

    def by(method: str, tolerance: float) -> np.ndarray:
        z = solve_ivp(augmented, (0, end), first, method, rtol=tolerance, atol=tolerance).y[:, -1]
        return 2 * z[:2] @ z[2:].reshape(2, 6)

    return Reference.of_two(by("DOP853", 1e-13), by("Radau", 1e-11))
