"""Case 8: ten thousand steps, in time and in memory."""

import diffrax as dfx
import jax.numpy as jnp
import numpy as np

from benchmarks.peers import ode_programs as ode
from benchmarks.peers.cases import Case

STEP = 0.01  # of time; the field turns by about one in a unit of time
MEMORY_AT = (100, 1000, 10_000)  # steps
TIGHT = 1e-13


def field(t, y, matrix):
    """y' = tanh((A - A^T) y): it neither contracts nor grows, so that a solve backwards is as good as one forwards."""
    return jnp.tanh((matrix - matrix.T) @ y)


def long_solve(small: bool) -> Case:
    """Case 8."""
    steps, size = (20, 3) if small else (10_000, 100)
    problem = _of(steps)
    rng = np.random.default_rng(8)
    args = (jnp.asarray(rng.normal(size=(size, size)) / np.sqrt(2 * size)), jnp.asarray(rng.normal(size=size)))
    ours = ("Replay()",) if small else ("Replay()", "Gauss()", "Backsolve()", "Reversible()")
    theirs = () if small else ("RecursiveCheckpointAdjoint()", "BacksolveAdjoint()")
    programs = ode.ours(problem, *ours) + (ode.diffrax(problem, *theirs) if theirs else [])
    memory = {}
    for library, table, names in (("implicitexp", ode.OURS, ours), ("Diffrax", ode.DIFFRAX, theirs)):
        for name in names:
            memory[library, name] = lambda steps, make=table[name]: _of(steps).gradient(make())
    return Case(
        8,
        f"{steps:,} steps of Tsit5, n = {size}, p = {size**2:,}",
        0.0,
        args,
        [*programs, ode.explicit_floor(problem, args)],
        lambda: ode.tight(problem.changed(solver=dfx.Dopri8()), args, TIGHT),
        remarks=(
            "DirectAdjoint(): not run, it keeps every stage of up to 65,536 steps.",
            "Interpolating(): not run, its n + p states are 10,100.",
        ),
        memory={} if small else memory,
    )


def _of(steps: int) -> ode.InitialValue:
    return ode.InitialValue(field, STEP * steps, dfx.Tsit5(), steps=steps)
