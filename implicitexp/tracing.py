"""Which equations a loss solves: found by tracing it, not declared."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from implicitexp import solvers, solving
from implicitexp.equations import AbstractEquation, Solution
from implicitexp.strategies.base import Call, differentiable


class Use(NamedTuple):
    """One call of `solve`: the kind of equation, how many unknowns it has and how many numbers can be differentiated,
    the solver that the call itself pins (or None), and whether it stands inside another equation's function."""

    kind: str
    unknowns: int
    inputs: int
    pinned: Any
    nested: bool


def uses(problem: Any, params: PyTree, batch: PyTree = None, solver: Any = None) -> list[Use]:
    """The equations of `problem.loss`, in the order in which it solves them; nothing is computed.

    **Raises** `Unsupported` where one of them is of the kind of `solver`, and this method cannot solve it.
    """
    found: list[Use] = []
    jax.eval_shape(lambda p, b: problem.loss(p, b, Recorder(found, solver)), params, batch)
    return found


class Recorder:
    """A `solve` that writes down what it is asked for and returns zeros of the right shape."""

    def __init__(self, found: list[Use], solver: Any = None):
        self.found, self.solver = found, solver

    def __call__(self, equation: AbstractEquation, args: PyTree = None, *, solver: Any = None) -> Solution:
        nested = solving.is_inside_equation()
        place = len(self.found)
        equation, args = solving.canonical(equation, args)
        solvers.for_kind(self.solver if solver is None else solver, equation.kind).check(equation, args)
        call = Call(equation, args, None)
        value = shape_of_value(equation, args)
        marks = zip(jax.tree.leaves(call), differentiable(call), strict=True)
        inputs = sum(int(np.size(x)) for x, moving in marks if moving)
        unknowns = sum(int(np.prod(s.shape)) for s in jax.tree.leaves(value))
        self.found.insert(place, Use(equation.kind, unknowns, inputs, solver, nested))
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), value)
        return Solution(zeros, {"converged": jnp.array(True), "steps": jnp.array(0, jnp.int32)})


def shape_of_value(equation: Any, args: PyTree) -> PyTree:
    """The shapes of what `solve` would return."""
    if equation.kind == "integral":
        return jax.eval_shape(equation.integrand, equation.lower, args)
    shapes = jax.eval_shape(lambda y: y, equation.y0)
    if equation.kind == "ode" and equation.ts is not None:
        return jax.tree.map(lambda s: jax.ShapeDtypeStruct((*equation.ts.shape, *s.shape), s.dtype), shapes)
    return shapes
