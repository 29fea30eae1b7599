"""Programs for the gradient of a fixed point: ours, those of Optimistix and JAXopt, and the floors."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
from jaxtyping import Array, PyTree

from benchmarks.peers import jaxopt_programs
from benchmarks.peers.cases import Program
from implicitexp.adjoints import Auto, Iterated, Reuse
from implicitexp.solvers.anderson import AndersonAcceleration

MAX_STEPS = 10_000
Solve = Callable[[Callable, Array, PyTree], Array]  # T, z0, args -> the fixed point


def by_optimistix(solver: Any, adjoint: Any) -> Solve:
    def solve(step, start, args):
        sol = optx.fixed_point(step, solver, start, args, adjoint=adjoint, max_steps=MAX_STEPS, throw=False)
        return sol.value

    return solve


def ways(tolerance: float) -> dict[tuple[str, str, str], Solve]:
    """(role, library, name) -> how it solves and differentiates, all to this tolerance, where it takes one."""
    plain, anderson = optx.FixedPointIteration(tolerance, tolerance), AndersonAcceleration(tolerance, tolerance)
    auto = optx.ImplicitAdjoint(linear_solver=Auto())
    gmres, bicgstab = (
        optx.ImplicitAdjoint(linear_solver=kind(tolerance, tolerance)) for kind in (lx.GMRES, lx.BiCGStab)
    )
    return {
        ("ours", "implicitexp", "FixedPointIteration, Iterated()"): by_optimistix(plain, Iterated()),
        ("ours", "implicitexp", "Anderson, Iterated()"): by_optimistix(anderson, Iterated()),
        ("ours", "implicitexp", "Anderson, ImplicitAdjoint with Auto()"): by_optimistix(anderson, auto),
        ("ours", "implicitexp", "FixedPointIteration, ImplicitAdjoint with Auto()"): by_optimistix(plain, auto),
        ("ours", "implicitexp", "Anderson, Reuse()"): by_optimistix(anderson, Reuse()),
        ("jax", "Optimistix", "FixedPointIteration, ImplicitAdjoint()"): by_optimistix(plain, optx.ImplicitAdjoint()),
        ("jax", "Optimistix", "FixedPointIteration, ImplicitAdjoint with GMRES"): by_optimistix(plain, gmres),
        ("jax", "Optimistix", "FixedPointIteration, ImplicitAdjoint with BiCGStab"): by_optimistix(plain, bicgstab),
        ("jax", "JAXopt", "FixedPointIteration"): jaxopt_programs.fixed_point(
            "FixedPointIteration", tolerance, MAX_STEPS
        ),
        ("jax", "JAXopt", "AndersonAcceleration"): jaxopt_programs.fixed_point(
            "AndersonAcceleration", tolerance, MAX_STEPS
        ),
        ("jax", "JAXopt", "FixedPointIteration, normal CG to the tolerance"): jaxopt_programs.fixed_point(
            "FixedPointIteration", tolerance, MAX_STEPS, to_tolerance=True
        ),
    }


def programs(loss: Callable[..., Any], tolerance: float, small: bool, leave_out: tuple[str, ...] = ()) -> list[Program]:
    """`loss(solve, *args)`, differentiated by its first argument after `solve`."""
    found = [
        Program(role, library, name, jax.grad(functools.partial(loss, solve)))  # pyright: ignore[reportArgumentType]
        for (role, library, name), solve in ways(tolerance).items()
        if name not in leave_out
    ]
    return [found[0], found[5]] if small else found


def floors(loss: Callable, step: Callable, start: Array, args: PyTree, tolerance: float) -> list[Program]:
    """A forward solve by either method; then a vjp by z for each iteration that a Krylov method needs to the tolerance, and one
    by the parameters."""
    methods = {
        "the plain": optx.FixedPointIteration(tolerance, tolerance),
        "Anderson's": AndersonAcceleration(tolerance, tolerance),
    }
    z = optx.fixed_point(step, methods["Anderson's"], start, args, max_steps=MAX_STEPS).value
    count = _krylov_steps(step, z, args, tolerance)
    name = f"iteration, {count} vjps by z, one by the parameters"
    return [
        Program("floor", "floor", f"{which} {name}", jax.grad(functools.partial(loss, _by_hand(method, count))))
        for which, method in methods.items()
    ]


def _by_hand(method: Any, count: int) -> Solve:
    """w <- (dT/dz)^T w + c, so many times."""

    def solve(step, start, args):
        @jax.custom_vjp
        def found(args):
            return optx.fixed_point(step, method, start, args, max_steps=MAX_STEPS, throw=False).value

        def forward(args):
            z = found(args)
            return z, (z, args)

        def backward(saved, cotangent):
            z, args = saved
            by_z = jax.vjp(lambda z: step(z, args), z)[1]
            w = jax.lax.fori_loop(0, count, lambda _, w: by_z(w)[0] + cotangent, cotangent)
            return jax.vjp(lambda args: step(z, args), args)[1](w)

        found.defvjp(forward, backward)
        return found(args)

    return solve


def _krylov_steps(step: Callable, z: Array, args: PyTree, reach: float) -> int:
    """Products until GMRES without restart has the residual `reach`, for a right-hand side of ones."""
    from scipy.sparse.linalg import LinearOperator, gmres

    pull = jax.jit(jax.vjp(lambda z: step(z, args), z)[1])
    taken = []

    def product(w):
        return w - np.asarray(pull(jnp.asarray(w.reshape(z.shape), z.dtype))[0], np.float64).ravel()

    operator: Any = LinearOperator((z.size, z.size), matvec=product, dtype=np.float64)  # pyright: ignore[reportCallIssue]
    restart = min(100, z.size)
    gmres(operator, np.ones(z.size), rtol=reach, restart=restart, callback=taken.append, callback_type="pr_norm")
    return len(taken)
