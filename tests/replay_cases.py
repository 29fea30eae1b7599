"""Solves of one equation by Diffrax, as functions of all that can be differentiated, for the adjoints that plug into it."""

from typing import Any

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp

PARAMS = {
    "args": {"rate": 0.9, "forcing": 0.4},
    "closed": 1.3,
    "held": 0.8,
    "y0": {"x": [1.1, 0.3], "s": 0.5},
    "t0": 0.1,
    "t1": 1.7,
    "ts": [0.1, 0.25, 0.3, 0.9, 0.95, 1.7],
    "dt0": 0.13,
    "shift": 0.2,
}


class Held(eqx.Module):
    """A vector field with an array leaf of its own, a number that it closes over and a function among its arguments."""

    weight: Any
    closed: Any

    def __call__(self, t, y, args):
        x, s = y["x"], y["s"]
        turned = jnp.stack(
            [-args["rate"] * x[0] + x[1] * s, -self.closed * x[0] * x[1] + args["wave"](t) * args["forcing"]]
        )
        return {"x": turned, "s": self.weight * jnp.sin(t * x[0]) - 0.2 * s**2}


def params(**changes):
    """PARAMS as arrays, with changes."""
    leaves = {**PARAMS, **changes}
    return jax.tree.map(jnp.asarray, leaves, is_leaf=lambda x: isinstance(x, list | float))


def solve(p, adjoint, solver, controller, saveat, **options):
    """`controller(p)` and `saveat(p, closed)` are made inside, so that they may depend on what is differentiated."""
    closed = p["closed"]
    if options.pop("lambda_field", False):
        weight = p["held"]
        field = lambda t, y, args: Held(weight, closed)(t, y, args)  # noqa: E731
    else:
        field = Held(p["held"], closed)
    return dfx.diffeqsolve(
        dfx.ODETerm(field),
        solver,
        p["t0"],
        p["t1"],
        options.pop("dt0", p["dt0"]),
        p["y0"],
        args={**p["args"], "wave": jnp.cos, "name": "wave"},
        stepsize_controller=controller(p),
        saveat=saveat(p),
        adjoint=adjoint,
        **{"max_steps": 200, **options},
    )


def weighted(tree):
    """A number that depends on every entry that is finite, and on each in another way."""
    total = 0.0
    for n, x in enumerate(jax.tree.leaves(tree)):
        finite = jnp.isfinite(x)
        weights = jnp.cos(1.0 + n + jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)
        total = total + jnp.sum(jnp.where(finite, weights * jnp.sin(jnp.where(finite, x, 0)), 0))
    return total


def fixed(p):
    return dfx.ConstantStepSize()


def fixed_root(p):
    """Constant steps beside a solver that takes its tolerances from the controller: steps that are all accepted."""
    return dfx.PIDController(rtol=1e-4, atol=1e-6, dtmin=p["dt0"], dtmax=p["dt0"])


def adaptive(p):
    return dfx.PIDController(rtol=1e-4, atol=1e-6)


def second_order(p):
    return dfx.PIDController(rtol=1e-4, atol=1e-6, pcoeff=0.3, icoeff=0.4, dcoeff=0.1, dtmax=p["dt0"] * 2)


def stepped(p):
    return dfx.StepTo(jnp.linspace(p["t0"], p["t1"], 9))


def clipped(p):
    inner = dfx.PIDController(rtol=1e-4, atol=1e-6)
    return dfx.ClipStepSizeController(inner, step_ts=p["ts"][2:4], jump_ts=p["ts"][4:5] + p["shift"])


def end(p):
    return dfx.SaveAt(t1=True)


def times(p):
    return dfx.SaveAt(ts=p["ts"])


def all_forms(p):
    return dfx.SaveAt(t0=True, t1=True, ts=p["ts"], steps=True)


def dense(p):
    return dfx.SaveAt(dense=True)


def several(p):
    shift, closed = p["shift"], p["closed"]

    def first(t, y, args):
        return y["x"][0] * jnp.cos(t * shift) + args["rate"]

    def second(t, y, args):
        return {"a": closed * t * y["s"], "b": y["x"]}

    subs = {
        "one": dfx.SubSaveAt(t0=True, ts=p["ts"][1:4], fn=first),
        "two": [dfx.SubSaveAt(steps=2, t1=True, fn=second), dfx.SubSaveAt(ts=p["ts"], steps=3, t1=True)],
    }
    return dfx.SaveAt(subs=subs)


SAVED = (times, all_forms, several, dense)  # `all_forms` has the end alone, too
EXPLICIT = (dfx.Euler(), dfx.Heun(), dfx.Midpoint(), dfx.Ralston(), dfx.Bosh3(), dfx.Dopri5(), dfx.Dopri8())
IMPLICIT = (dfx.ImplicitEuler(), dfx.Kvaerno3(), dfx.Kvaerno5())


def gradient(p, adjoint, solver, controller=adaptive, saveat=end, **options):
    """Gradient of a number made of all that a solve returns, the times of its outputs included."""

    def loss(p):
        sol = solve(p, adjoint, solver, controller, saveat, **options)
        out = (sol.ys, sol.ts)
        if sol.interpolation is not None:
            inside = jnp.linspace(p["t0"], p["t1"], 5)
            out = jax.vmap(sol.interpolation.evaluate)(inside), sol.evaluate(p["ts"][3]), sol.derivative(p["ts"][1])
        return weighted(out)

    return jax.jit(jax.grad(loss))(p)


def difference(a, b):
    """The largest difference of two gradients, relative to the norm of each leaf, or to a tenth of the largest leaf's."""
    a, b = (jax.tree.leaves(tree) for tree in (a, b))
    size = max(float(jnp.linalg.norm(jnp.ravel(y))) for y in b)
    errors = (
        float(jnp.linalg.norm(jnp.ravel(x - y))) / max(float(jnp.linalg.norm(jnp.ravel(y))), 0.1 * size)
        for x, y in zip(a, b, strict=True)
    )
    return max(errors)
