"""The one place that knows what Optimistix (0.1) calls its private things.

An adjoint of Optimistix is handed the whole problem: a function that runs the solver, one whose root the solution is, and a
tuple of inputs in a fixed order, to which it appends the loop. Here these get names; a solver's final state is taken apart;
and `at_solution` is Optimistix's `implicit_jvp`, with a rule of ours in the place of its linear solve, which raises when
one lane of a batch is singular (lineax#117).
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
import lineax as lx
import optimistix as optx
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PyTree
from optimistix._misc import unwrap_jaxpr
from optimistix._root_find import _MinimToRoot, _ToRoot

from implicitexp.errors import Unsupported

Kind = Literal["root", "fixed_point", "least_squares", "minimise"]
PLAIN_LOOP = functools.partial(eqxi.while_loop, kind="lax")

Vector = Float[Array, " n"]


class Inputs(NamedTuple):
    """What an adjoint is handed, in Optimistix's order."""

    fn: Any
    solver: Any
    y0: PyTree
    args: PyTree
    options: Any
    max_steps: Any
    f_struct: PyTree
    aux_struct: PyTree
    tags: Any

    @property
    def kind(self) -> Kind:
        """What is solved: a fixed point that a root finder looks for is a root, and so on."""
        if isinstance(self.solver, optx.AbstractFixedPointSolver):
            return "fixed_point"
        if isinstance(self.solver, optx.AbstractRootFinder | _MinimToRoot):
            return "root"
        return "least_squares" if isinstance(self.solver, optx.AbstractLeastSquaresSolver) else "minimise"

    @property
    def solver_name(self) -> str:
        """What the user calls the solver, which may look for a root by way of least squares."""
        return type(self.solver.solver if isinstance(self.solver, _ToRoot) else self.solver).__name__

    @property
    def structures(self) -> tuple[PyTree, PyTree]:
        """Shapes and types of fn's value and of its aux."""

        def bare(tree: PyTree) -> PyTree:
            return jax.tree.map(lambda x: x.value, tree, is_leaf=lambda x: isinstance(x, eqxi.Static))

        return bare(self.f_struct), bare(self.aux_struct)


class Outcome(NamedTuple):
    """What the run of a solver gives besides the solution, in Optimistix's order: its state is cut into arrays and rest."""

    steps: Any
    result: Any
    arrays: PyTree
    static: Any
    aux: PyTree
    stats: Any

    @property
    def state(self) -> PyTree:
        """The solver's final state."""
        return eqx.combine(self.arrays, unwrap_jaxpr(self.static.value))


def run(primal_fn: Callable, inputs: Inputs) -> tuple[PyTree, Outcome]:
    """Solve, in a loop that is not differentiated in reverse."""
    y, rest = primal_fn((*inputs, PLAIN_LOOP))
    return y, Outcome(*rest)


class Solved(eqx.Module):
    """f(y) = 0 at its solution, both flat vectors: fn for a root, fn - y for a fixed point, else the objective's gradient."""

    inputs: Inputs
    state: PyTree  # the solver's last
    y: Vector
    f: Callable[[Vector], Vector]


@eqx.filter_custom_jvp
def _solved(primal_fn, rewrite_fn, inputs, rule):
    del rewrite_fn, rule
    return jax.tree.map(jnp.asarray, run(primal_fn, inputs))


@_solved.def_jvp
def _solved_jvp(primals, tangents):
    primal_fn, rewrite_fn, inputs, rule = primals
    is_none = {"is_leaf": lambda x: x is None}
    fixed = jax.tree.map(lambda t: t is None, tangents[2], **is_none)
    still, moving = eqx.partition(inputs, fixed, **is_none)
    y, outcome = at_solution(primal_fn, rewrite_fn, inputs, rule)
    flat, unravel = ravel_pytree(y)

    def residual(y, moving):
        value = _zero_at_solution(rewrite_fn, y, outcome, eqx.combine(moving, still))
        return ravel_pytree(value)[0].astype(flat.dtype)

    moved = jax.jvp(lambda m: residual(y, m), (moving,), (tangents[2],))[1]
    if moved.size != flat.size:
        raise ValueError(
            f"{type(rule).__name__} needs as many equations as unknowns, and these are {moved.size} and {flat.size}; use "
            "optimistix.least_squares, or optimistix.ImplicitAdjoint."
        )
    at = Solved(inputs, constant(outcome.state), flat, lambda v: residual(unravel(v), moving))
    return (y, outcome), (unravel(rule.tangent(at, moved)), jax.tree.map(lambda _: None, outcome))


def _zero_at_solution(rewrite_fn: Callable, y: PyTree, outcome: Outcome, inputs: Inputs) -> PyTree:
    """What is zero there. A minimizer that looks for a root minimizes a norm of it, which has no derivative where it is zero
    (Optimistix's own is zero, without a sign): the root itself stands in the norm's aux."""
    if isinstance(inputs.solver, _MinimToRoot):
        _, (value, _) = inputs.fn(y, inputs.args)
        return value
    return rewrite_fn(y, tuple(outcome), inputs)


def at_solution(primal_fn: Callable, rewrite_fn: Callable, inputs: Inputs, rule: Any) -> tuple[PyTree, Outcome]:
    """Solve; the derivative is `rule.tangent(at, df)`, with df = (df/dtheta) dtheta, a flat vector linear in df."""
    y, outcome = _solved(primal_fn, rewrite_fn, inputs, constant(rule))
    return y, jax.tree.map(eqxi.nondifferentiable_backward, outcome)


def constant(tree: PyTree) -> PyTree:
    """The same numbers, not differentiated. Eager `jax.grad(f)(0.3)` leaves bare numbers: they become arrays."""
    return jax.tree.map(lambda x: jnp.asarray(jax.lax.stop_gradient(x)) if eqx.is_array(x) else x, tree)


class FactoredNewton(optx.AbstractRootFinder):
    """`optx.Newton`, whose state keeps the factors of its last Jacobian: those of the last step, not of the solution.

    Each step is one of Optimistix's chord method with fresh factors.
    """

    newton: optx.Newton

    @property
    def rtol(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.newton.rtol

    @property
    def atol(self):  # pyright: ignore[reportIncompatibleVariableOverride]
        return self.newton.atol

    @property
    def norm(self):  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.newton.norm

    @property
    def chord(self) -> optx.Chord:
        own = self.newton
        return optx.Chord(own.rtol, own.atol, own.norm, own.kappa, own.linear_solver, own.cauchy_termination)

    def init(self, fn, y, args, options, f_struct, aux_struct, tags):
        state = self.newton.init(fn, y, args, options, f_struct, aux_struct, tags)
        shapes = eqx.filter_eval_shape(lambda y, args: self._factored(fn, y, args, tags)[1], y, args)
        if any(isinstance(x, lx.AbstractLinearOperator) for x in jax.tree.leaves(shapes, is_leaf=_is_operator)):
            raise Unsupported(
                f"Newton's method with {type(self.newton.linear_solver).__name__} keeps no factorization that could be "
                "used again; give it a direct linear solver, such as lineax.LU() or implicitexp.adjoints.SmallDense()."
            )
        return state, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype) if _is_shape(x) else x, shapes)

    def step(self, fn, y, args, options, state, tags):
        jacobian, factors = self._factored(fn, y, args, tags)
        held = eqx.tree_at(lambda s: s.linear_state, state[0], (jacobian, factors), is_leaf=lambda x: x is None)
        y, held, aux = self.chord.step(fn, y, args, options, held, tags)
        return y, (eqx.tree_at(lambda s: s.linear_state, held, None), factors), aux

    def terminate(self, fn, y, args, options, state, tags):
        return self.newton.terminate(fn, y, args, options, state[0], tags)

    def postprocess(self, fn, y, aux, args, options, state, tags, result):
        return self.newton.postprocess(fn, y, aux, args, options, state[0], tags, result)

    def _factored(self, fn, y, args, tags):
        linear = jax.linearize(lambda y: fn(y, args)[0], y)[1]
        jacobian = lx.FunctionLinearOperator(linear, jax.eval_shape(lambda: y), tags)
        return jacobian, constant(self.newton.linear_solver.init(jacobian, {}))


def _is_operator(x: Any) -> bool:
    return isinstance(x, lx.AbstractLinearOperator)


def _is_shape(x: Any) -> bool:
    return isinstance(x, jax.ShapeDtypeStruct)


def keeping(inputs: Inputs) -> Inputs:
    """The same problem, with a solver that keeps its factors where Optimistix's does not."""
    if not isinstance(inputs.solver, optx.Newton):
        return inputs
    return inputs._replace(solver=FactoredNewton(inputs.solver))  # pyright: ignore[reportCallIssue]


def forgotten(inputs: Inputs, outcome: Outcome) -> Outcome:
    """The outcome as the user's own solver would have left it."""
    if not isinstance(inputs.solver, FactoredNewton):
        return outcome
    return outcome._replace(arrays=outcome.arrays[0], static=eqxi.Static(outcome.static.value[0]))


def factors(solver: Any, state: PyTree) -> tuple[Any, PyTree] | None:
    """-> linear solver and its state, of a solver that keeps one: Newton's last Jacobian, or the chord method's first."""
    if isinstance(solver, FactoredNewton):
        return solver.newton.linear_solver, state[1]
    return (solver.linear_solver, state.linear_state[1]) if isinstance(solver, optx.Chord) else None


def inverse_hessian(solver: Any, state: PyTree) -> Callable[[PyTree], PyTree] | None:
    """Products with the inverse Hessian that a quasi-Newton minimiser has gathered, if it gathers the inverse."""
    if not isinstance(solver, optx.AbstractQuasiNewton) or not solver.use_inverse:
        return None
    return state.f_info.hessian_inv.mv
