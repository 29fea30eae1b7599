"""JAXopt's solvers, with its implicit derivatives. It is no longer maintained, and works with JAX 0.12 (0.8.5).

Imported when a program is traced: without it the others run all the same.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any

from jaxtyping import Array, PyTree


def _jaxopt() -> Any:
    return importlib.import_module("jaxopt")


def root(fn: Callable, start: Array, args: PyTree, tolerance: float, max_steps: int) -> Array:
    """fn(y, args) = 0 by Broyden's method, the one root finder there that can be compiled."""
    return _jaxopt().Broyden(fn, tol=tolerance, maxiter=max_steps).run(start, args).params


def fixed_point(name: str, tolerance: float, max_steps: int, to_tolerance: bool = False) -> Callable:
    """(T, start, args) -> the fixed point, by the solver of that name. Its derivative is solved for by conjugate gradients on
    the normal equations, to JAXopt's own tolerance or to this one."""

    def solve(step: Callable, start: Array, args: PyTree) -> Array:
        jaxopt, options = _jaxopt(), {}
        if to_tolerance:
            options["implicit_diff_solve"] = functools.partial(jaxopt.linear_solve.solve_normal_cg, tol=tolerance)
        return getattr(jaxopt, name)(step, tol=tolerance, maxiter=max_steps, **options).run(start, args).params

    return solve
