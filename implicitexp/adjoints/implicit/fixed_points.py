"""Adjoints for Optimistix: `optx.root_find(..., adjoint=Iterated())`, and so `fixed_point`, `least_squares`, `minimise`.

At a solution f(y, theta) = 0 a parameter moves it by dy = -(df/dy)^-1 df. These classes differ in what stands for the inverse: a
solve of the linear system to a tolerance (`Iterated`, `Reuse`), or an approximation of it (`OneStep`, `Neumann`, `Phantom`,
`Shine`). f is fn for a root, fn - y for a fixed point, the gradient of the objective for least squares and a minimum.

Forward and reverse mode, `jit`, `vmap`, `scan` and second derivatives all work; in a second derivative each inverse is replaced
in the same way. A solve that fails puts NaN into its own lane of a batch and leaves the others alone, where
`optx.ImplicitAdjoint` ends the program (lineax#117). Whether the *forward* solve has converged is for `Solution.result` to say:
these derivatives belong to the y that it returns. Complex unknowns are refused. `Solution.aux` is a constant, as with
Optimistix's own adjoint; `Truncated` differentiates it.
"""

import abc
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Float

from implicitexp.adjoints.implicit.inverses import PreconditionerName, Scaled, check, inverse_at
from implicitexp.adjoints.implicit.iterated import Acceleration, AdjointIteration, unit
from implicitexp.adjoints.implicit.krylov import directions, smallest_residual
from implicitexp.adjoints.implicit.linear import LOOSE, SINGULAR
from implicitexp.adjoints.implicit.optimistix_private import Inputs, Solved, at_solution, forgotten, keeping

SHARE = 0.01  # of the forward solver's rtol: what the adjoint equation of its fixed point adds is below its own error

Vector = Float[Array, " n"]
Product = Callable[[Vector], Vector]
Record = Callable[[Any, Any], None] | None
Preconditioner = PreconditionerName | float | int | Array | None


class AbstractInverseAdjoint(optx.AbstractAdjoint):
    """What these adjoints share: at the solution, A dy = -df with A = df/dy, and the transposed system in reverse mode.

    `solve` stands for the inverse; it sees A or its transpose, and B^-1 or its transpose for a B that is near to A.
    """

    preconditioner: eqx.AbstractVar[Any]
    otherwise: eqx.AbstractClassVar[str]  # what B is when none is given, but for a fixed point, where it is -1

    @abc.abstractmethod
    def solve(self, apply: Product, inverse: Product, b: Vector, reach: Any) -> Vector:
        """x with A x = b, or what stands for it; `reach` is the tolerance where none is given."""

    def chosen(self, inputs: Inputs) -> Any:
        """What B is: a name, or a number that B^-1 is. f of a fixed point is T(y) - y, so that B = -1 is near to A."""
        if self.preconditioner is not None:
            return self.preconditioner
        return -1 if inputs.kind == "fixed_point" else self.otherwise

    def apply(self, primal_fn, rewrite_fn, inputs, tags):
        del tags
        inputs = Inputs(*inputs)
        if any(jnp.iscomplexobj(x) for x in jax.tree.leaves((inputs.y0, inputs.structures[0]))):
            raise ValueError(
                f"{type(self).__name__} takes real unknowns: split complex ones into real and imaginary parts."
            )
        chosen = self.chosen(inputs)
        if isinstance(chosen, str) and chosen == "solver":
            inputs = keeping(inputs)
        y, outcome = at_solution(primal_fn, rewrite_fn, inputs, self)
        return y, forgotten(inputs, outcome)

    def tangent(self, at: Solved, moved: Vector) -> Vector:
        """dy for df = `moved`; linear, with a transpose of its own."""
        inverse = inverse_at(at, self.chosen(at.inputs), type(self).__name__)
        reach = _reach(at.inputs, at.y.dtype)
        return jax.lax.custom_linear_solve(
            jax.linearize(at.f, at.y)[1],
            -moved,
            lambda apply, b: self.solve(apply, inverse.forward, b, reach),
            lambda apply, b: self.solve(apply, inverse.transposed, b, reach),
        )


class Iterated(AbstractInverseAdjoint):
    """The adjoint equation by a fixed point iteration of its own: w <- w - B^-T (A^T w - c), for a fixed point
    w <- (dT/dy)^T w + c, matrix-free (B. Christianson 1994, "Reverse accumulation and attractive fixed points",
    Optimization Methods and Software 3(4)).

    `rtol`, `atol`: relative to c's norm; None for eps^(3/4), or a hundredth of a fixed point solver's own `rtol` if that is more.
    `max_steps`: None for 1000, or 10,000 without acceleration.
    `accelerate`: "anderson" or None. Where it does not converge, the derivative is NaN. `record(residual, steps)`, a function
    of the host, is called after each adjoint solve, the residual being relative.

    `preconditioner`: what B is. None: -1 for a fixed point, for others "last". "last" or "start": the Jacobian at the solution
    or at y0, factored; "solver": what the solver itself holds (see `Shine`); "identity", or a number that B^-1 is.
    """

    rtol: Any = None
    atol: Any = None
    max_steps: int | None = eqx.field(static=True, default=None)
    accelerate: Acceleration = eqx.field(static=True, default="anderson")
    preconditioner: Preconditioner = None
    record: Record = eqx.field(static=True, default=None)
    otherwise: ClassVar[str] = "last"

    def __check_init__(self):
        check(self.preconditioner)
        if self.accelerate not in ("anderson", None):
            raise ValueError(f"accelerate={self.accelerate!r} is not 'anderson' or None.")

    def solve(self, apply, inverse, b, reach):
        b, size = unit(b)
        rtol, atol = (reach if t is None else t for t in (self.rtol, self.atol))
        iteration = AdjointIteration(rtol, atol, self.max_steps, self.accelerate)

        def step(w: Vector) -> Vector:
            return w - inverse(apply(w) - b)

        noise = 0 if isinstance(inverse, Scaled) else None
        w, converged, steps, _ = iteration(step, b, noise, start=inverse(b))
        if self.record is not None:
            jax.debug.callback(self.record, jnp.linalg.norm(apply(w) - b), steps)
        return jnp.where(converged, w * size, jnp.nan)


class OneStep(AbstractInverseAdjoint):
    """The derivative of one step of the iteration, from the solution on, which is held: A^-1 becomes B^-1 (J. Bolte,
    E. Pauwels and S. Vaiter 2023, "One-step differentiation of iterative algorithms", NeurIPS).

    For a fixed point dy = dT/dtheta, with a relative error of at most |dT/dy|; for Newton's method it is the implicit
    derivative with the last Jacobian. `preconditioner`: as `Neumann`'s.
    """

    preconditioner: Preconditioner = None
    otherwise: ClassVar[str] = "solver"

    def __check_init__(self):
        check(self.preconditioner)

    def solve(self, apply, inverse, b, reach):
        del apply, reach
        return inverse(b)


class Neumann(AbstractInverseAdjoint):
    """The first `terms` terms of A^-1 = sum over k of (1 - B^-1 A)^k B^-1: its error is (1 - B^-1 A)^terms A^-1, for a fixed
    point (dT/dy)^terms A^-1. One term is `OneStep`.

    `preconditioner`: what B is. None: -1 for a fixed point, which is the Neumann series of (1 - dT/dy)^-1; for others what the
    solver holds (see `Shine`), since no f but T(y) - y is near to a multiple of y. Or a name or a number, as for `Iterated`.
    """

    terms: int = eqx.field(static=True)
    preconditioner: Preconditioner = None
    otherwise: ClassVar[str] = "solver"

    def __check_init__(self):
        check(self.preconditioner)
        if self.terms < 1:
            raise ValueError(f"Neumann needs at least one term, not {self.terms}; OneStep() is Neumann(1).")

    def solve(self, apply, inverse, b, reach):
        del reach
        return _damped(apply, inverse, b, self.terms, 1)


class Phantom(AbstractInverseAdjoint):
    """The derivative of `steps` damped steps from the solution on: A^-1 becomes d sum over k < steps of
    (1 - d B^-1 A)^k B^-1, d being the damping (Z. Geng et al. 2021, "On training implicit models", NeurIPS, equation 13).

    Its error is (1 - d B^-1 A)^steps A^-1. A damping below one makes the series of a T with eigenvalues below -1 converge, and
    costs steps elsewhere. `preconditioner`: as `Neumann`'s.
    """

    steps: int = eqx.field(static=True)
    damping: Any = 0.5
    preconditioner: Preconditioner = None
    otherwise: ClassVar[str] = "solver"

    def __check_init__(self):
        check(self.preconditioner)
        if self.steps < 1:
            raise ValueError(f"Phantom needs at least one step, not {self.steps}.")

    def solve(self, apply, inverse, b, reach):
        del reach
        return _damped(apply, inverse, b, self.steps, self.damping)


class Shine(AbstractInverseAdjoint):
    """The forward solver's own inverse in the place of a solve (Z. Ramzi et al. 2022, "SHINE: SHaring the INverse Estimate from
    the forward pass for bi-level optimization and implicit models", ICLR), and `refine` steps of a Krylov solve from there.

    The inverse is: the factors of the last Jacobian (`optx.Newton`, with a direct linear solver) or of the first (`optx.Chord`);
    Broyden's; that of the differences that Anderson's method keeps; the inverse Hessian of `optx.BFGS`. Newton's is as good as
    its last step was small; the others are good along the last steps and not elsewhere, so that the derivative can be wrong
    without a sign: `refine` lowers the residual in each step, and as many steps as there are unknowns make it exact.

    **Raises** `Unsupported` where the solver holds no inverse.
    """

    refine: int = eqx.field(static=True, default=0)
    record: Record = eqx.field(static=True, default=None)
    preconditioner: Preconditioner = "solver"
    otherwise: ClassVar[str] = "solver"

    def __check_init__(self):
        check(self.preconditioner)
        if self.refine < 0:
            raise ValueError(f"refine is a number of steps, not {self.refine}.")

    def solve(self, apply, inverse, b, reach):
        del reach
        x, steps = inverse(b), jnp.array(0, jnp.int32)
        if self.refine:
            x, steps = smallest_residual(
                apply, inverse, b, x, max_steps=self.refine, memory=self.refine, tolerance=jnp.zeros((), b.dtype)
            )
        if self.record is not None:
            size = jnp.linalg.norm(b)
            jax.debug.callback(self.record, jnp.linalg.norm(apply(x) - b) / jnp.where(size > 0, size, 1), steps)
        return x


class Reuse(AbstractInverseAdjoint):
    """The implicit derivative by a Krylov solve that the forward solver's own inverse preconditions (see `Shine`): exact to
    `rtol` and `atol` (relative to the right-hand side's norm, None: as `Iterated`'s), without a factorization.

    After Newton's method it takes one or two products with the Jacobian. Where it does not converge within `max_steps` (None:
    twice the number of unknowns, at least 100), the derivative is NaN. It keeps 30 directions, up to 128 unknowns all of them.
    `record`: as `Iterated`'s.

    **Raises** `Unsupported` where the solver holds no inverse.
    """

    rtol: Any = None
    atol: Any = None
    max_steps: int | None = eqx.field(static=True, default=None)
    record: Record = eqx.field(static=True, default=None)
    preconditioner: Preconditioner = "solver"
    otherwise: ClassVar[str] = "solver"

    def __check_init__(self):
        check(self.preconditioner)

    def solve(self, apply, inverse, b, reach):
        b, size = unit(b)
        rtol, atol = (jnp.asarray(reach if t is None else t, b.dtype) for t in (self.rtol, self.atol))
        limit = max(2 * b.size, 100) if self.max_steps is None else self.max_steps
        x, steps = smallest_residual(
            apply, inverse, b, jnp.zeros_like(b), max_steps=limit, memory=directions(b.size), tolerance=rtol + atol
        )
        residual = jnp.linalg.norm(apply(x) - b)
        amplified = jnp.linalg.norm(apply(b)) * jnp.linalg.norm(x) * jnp.finfo(b.dtype).eps  # rounding leaves so much
        converged = (residual <= LOOSE * (rtol + atol + amplified)) & (amplified < SINGULAR)
        if self.record is not None:
            jax.debug.callback(self.record, residual, steps)
        return jnp.where(converged, x * size, jnp.nan)


def _reach(inputs: Inputs, dtype: Any) -> Any:
    """eps^(3/4), or where the solution is a fixed point that is no better than its solver's tolerance, a share of that. The
    error of a root by Newton's method, or of a minimum, is not of the size of its tolerance."""
    default = jnp.finfo(dtype).eps ** 0.75
    if inputs.kind != "fixed_point":
        return default
    return jnp.maximum(default, jax.lax.stop_gradient(jnp.asarray(SHARE * inputs.solver.rtol, dtype)))


def _damped(apply: Product, inverse: Product, b: Vector, steps: int, damping: Any) -> Vector:
    """x <- x - damping B^-1 (A x - b), `steps` times from x = 0, whose first step needs no product."""
    damping = jnp.asarray(damping, b.dtype)
    return jax.lax.fori_loop(1, steps, lambda _, x: x - damping * inverse(apply(x) - b), damping * inverse(b))
