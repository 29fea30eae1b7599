"""The derivative of an integral: the rule on the mesh of the value, or an integral with an error control of its own.

The integral of 1 / ((x - a)^2 + w^2) from 0 to 1, a peak of width w that moves with a = 0.3; by Gauss-Kronrod, 21 nodes.
"""

import jax
import jax.numpy as jnp
from panels import Panel, over, relative
from problems import peak

import implicitexp
from implicitexp.solvers import GaussKronrod
from implicitexp.strategies import FrozenMesh, Leibniz

ERROR = "relative error"
AT = 0.3


def integral(a, strategy, width, tolerance):
    equation = implicitexp.Integral(lambda x, args: 1 / ((x - args[0]) ** 2 + args[1] ** 2), 0.0, 1.0)
    solver = GaussKronrod(rtol=tolerance, atol=0.0)
    return implicitexp.solve(equation, (a, width), solver=solver, gradient=strategy).value


def errors(strategy):
    """-> the errors of value and gradient, of width and tolerance."""
    both = jax.jit(lambda width, tolerance: jax.value_and_grad(integral)(jnp.array(AT), strategy, width, tolerance))

    def of(width, tolerance):
        value, gradient = both(jnp.array(width), tolerance)
        return relative(value, peak(AT, width)), relative(gradient, jax.grad(peak)(AT, width))

    return of


def frozen_mesh() -> list[Panel]:
    tolerances = [10.0 ** (-k / 2) for k in range(2, 23)]
    of = errors(FrozenMesh())
    curves = {
        "value": over(tolerances, lambda t: of(1e-2, t)[0]),
        "gradient": over(tolerances, lambda t: of(1e-2, t)[1]),
    }
    title = "FrozenMesh(): a peak of width 0.01 that moves"
    return [Panel(title, "rtol", ERROR, tolerances, curves, {"equal": tolerances})]


def leibniz() -> list[Panel]:
    widths = [10.0 ** (-k / 2) for k in range(1, 11)]
    tolerance = 1e-6
    frozen, leibniz = errors(FrozenMesh()), errors(Leibniz())
    curves = {
        "value": over(widths, lambda w: frozen(w, tolerance)[0]),
        "gradient, frozen_mesh": over(widths, lambda w: frozen(w, tolerance)[1]),
        "gradient, leibniz": over(widths, lambda w: leibniz(w, tolerance)[1]),
    }
    title = "Leibniz() and FrozenMesh(): rtol = 1e-6, a peak that moves"
    return [Panel(title, "width of the peak", ERROR, widths, curves, {"rtol": [tolerance] * len(widths)})]
