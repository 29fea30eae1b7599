"""Case 14: ten thousand integrals of one variable, with twenty parameters each."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import quadax

import implicitexp
from benchmarks.peers.cases import ROUNDING, Case, Program, Reference
from implicitexp import solvers
from implicitexp.adjoints import FrozenMesh, Leibniz

TOLERANCE = 1e-8
SHARPNESS = 5.0  # of a peak: its width is a fifth
INTERVALS = 50
ORDER = 21


def integrand(x, heights, places):
    """A sum of peaks a / (1 + s^2 (x - c)^2), whose integral is a sum of arc tangents."""
    return jnp.sum(heights / (1 + SHARPNESS**2 * (x - places) ** 2))


def by_quadax(adjoint: quadax.AbstractAdjoint) -> Callable:
    def integral(heights, places):
        return quadax.quadgk(
            integrand,
            jnp.array([-1.0, 1.0]),
            (heights, places),
            epsabs=TOLERANCE,
            epsrel=TOLERANCE,
            max_ninter=INTERVALS,
            order=ORDER,
            adjoint=adjoint,
        )[0]

    return integral


def by_solve() -> Callable:
    solver = solvers.GaussKronrod(rtol=TOLERANCE, atol=TOLERANCE)

    def integral(heights, places):
        equation = implicitexp.Integral(lambda x, args: integrand(x, *args), -1.0, 1.0)
        return implicitexp.solve(equation, (heights, places), solver=solver, gradient=implicitexp.Implicit()).value

    return integral


def gradient(integral: Callable) -> Callable:
    def loss(heights, places):
        return jnp.sum(jax.vmap(integral)(heights, places) ** 2)

    return jax.grad(loss, argnums=(0, 1))


def _each(integral: Callable) -> Callable:
    """The same gradient: the loss is a sum over the integrals."""
    return jax.vmap(jax.grad(lambda *p: integral(*p) ** 2, argnums=(0, 1)))


def integrals(small: bool) -> Case:
    """Case 14."""
    count, peaks = (3, 2) if small else (10_000, 10)
    rng = np.random.default_rng(14)
    heights, places = rng.normal(size=(count, peaks)), rng.uniform(-1, 1, size=(count, peaks))
    ways = {
        ("ours", "implicitexp", "solve, Implicit()"): by_solve(),
        ("ours", "implicitexp", "quadgk, FrozenMesh()"): by_quadax(FrozenMesh()),
        ("ours", "implicitexp", "quadgk, Leibniz()"): by_quadax(Leibniz()),
        ("jax", "Quadax", "DirectAdjoint()"): by_quadax(quadax.DirectAdjoint()),
    }
    programs = [Program(*who, gradient(way)) for who, way in ways.items()]  # pyright: ignore[reportArgumentType]
    programs.append(
        Program("jax", "Quadax", "LeibnizAdjoint(), vmap of grad", _each(by_quadax(quadax.LeibnizAdjoint())))
    )
    args = (jnp.asarray(heights), jnp.asarray(places))
    return Case(
        14,
        f"{count:,} integrals, {2 * peaks} parameters each, 1e-8",
        TOLERANCE,
        args,
        [*programs, _floor(args)],
        lambda: reference(heights, places),
        remarks=(
            "Quadax's LeibnizAdjoint raises an AssertionError under grad of vmap, so that it is measured as vmap of grad.",
        ),
    )


def _floor(args: tuple) -> Program:
    """The integral itself, and one vjp of the rule on as many nodes as the mean integral has at the end."""
    value = jax.jit(jax.vmap(lambda a, c: by_quadax_with_info(a, c)[1]))(*args)
    nodes = int(np.ceil(np.mean(np.asarray(value)))) * ORDER
    x = jnp.linspace(-1, 1, nodes)

    def one(heights, places):
        total = by_quadax_with_info(heights, places)[0]
        rule = jax.vjp(lambda *p: jnp.mean(jax.vmap(lambda x: integrand(x, *p))(x)), heights, places)[1]
        return rule(2 * total)

    return Program("floor", "floor", f"the integrals, one vjp of a rule with {nodes} nodes", jax.vmap(one))


def by_quadax_with_info(heights, places):
    """-> the integral, how many intervals it took."""
    value, info = quadax.quadgk(
        integrand,
        jnp.array([-1.0, 1.0]),
        (heights, places),
        full_output=True,
        epsabs=TOLERANCE,
        epsrel=TOLERANCE,
        max_ninter=INTERVALS,
        order=ORDER,
    )
    return value, info.info["ninter"]


def reference(heights: np.ndarray, places: np.ndarray) -> Reference:
    """The closed form; uncertain by rounding, of which the sum over peaks makes some."""
    left, right = SHARPNESS * (-1 - places), SHARPNESS * (1 - places)
    by_height = (np.arctan(right) - np.arctan(left)) / SHARPNESS
    by_place = heights * (1 / (1 + left**2) - 1 / (1 + right**2))
    total = 2 * np.sum(heights * by_height, axis=1, keepdims=True)
    gradient = np.concatenate([(total * by_height).ravel(), (total * by_place).ravel()])
    return Reference(gradient, ROUNDING)
