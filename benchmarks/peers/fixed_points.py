"""Cases 11 to 13: a large deep equilibrium, a batch of small ones in a classifier, and a slow contraction."""

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
from benchmarks.peers.cases import Case, Foreign, Program
from benchmarks.peers.fixed_point_truth import affine_reference, classifier_reference, tanh_reference
from implicitexp.adjoints import Auto, Iterated, Shine
from implicitexp.problems import DeepEquilibrium
from implicitexp.problems.digit_images import apply, classified
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
    gmres, bicgstab = (
        optx.ImplicitAdjoint(linear_solver=kind(tolerance, tolerance)) for kind in (lx.GMRES, lx.BiCGStab)
    )
    return {
        ("ours", "implicitexp", "FixedPointIteration, Iterated()"): by_optimistix(plain, Iterated()),
        ("ours", "implicitexp", "Anderson, Iterated()"): by_optimistix(anderson, Iterated()),
        ("ours", "implicitexp", "Anderson, ImplicitAdjoint with Auto()"): by_optimistix(
            anderson, optx.ImplicitAdjoint(linear_solver=Auto())
        ),
        ("ours", "implicitexp", "Anderson, Shine()"): by_optimistix(anderson, Shine()),
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
    return [found[0], found[4]] if small else found


def floor(step: Callable, start: Array, args: PyTree, tolerance: float, reach: float) -> tuple[Solve, str]:
    """Anderson's forward solve; then a vjp by z for each iteration that a Krylov method needs to `reach`, and one by the
    parameters. -> how it solves, and a name."""
    anderson = AndersonAcceleration(tolerance, tolerance)
    z = optx.fixed_point(step, anderson, start, args, max_steps=MAX_STEPS).value
    count = _krylov_steps(step, z, args, reach)

    @jax.custom_vjp
    def solve(args):
        return optx.fixed_point(step, anderson, start, args, max_steps=MAX_STEPS, throw=False).value

    def forward(args):
        z = solve(args)
        return z, (z, args)

    def backward(saved, cotangent):
        z, args = saved
        by_z = jax.vjp(lambda z: step(z, args), z)[1]
        w = jax.lax.fori_loop(0, count, lambda _, w: by_z(w)[0] + cotangent, cotangent)
        return jax.vjp(lambda args: step(z, args), args)[1](w)

    solve.defvjp(forward, backward)
    return lambda step, start, args: solve(args), f"Anderson's solve, {count} vjps by z, one by the parameters"


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


# -- case 11 --------------------------------------------------------------------------------------------------------------


def tanh_step(z, args):
    matrix, shift = args
    return jnp.tanh(matrix @ z + shift)


def _sum_of_squares(step: Callable) -> Callable:
    def loss(solve, args):
        return jnp.sum(solve(step, jnp.zeros_like(args[1]), args) ** 2)

    return loss


def large(small: bool) -> Case:
    """Case 11."""
    n, tolerance = (6 if small else 1000), 1e-8
    rng = np.random.default_rng(11)
    matrix = rng.normal(size=(n, n))
    matrix *= 0.9 / np.linalg.norm(matrix, 2)
    shift = rng.normal(size=n)
    args = (jnp.asarray(matrix), jnp.asarray(shift))
    loss = _sum_of_squares(tanh_step)
    solve, name = floor(tanh_step, jnp.zeros(n), args, tolerance, tolerance)
    return Case(
        11,
        f"DEQ z = tanh(W z + b), n = {n}, 1e-8",
        tolerance,
        (args,),
        [
            *programs(loss, tolerance, small),
            Program("floor", "floor", name, jax.grad(functools.partial(loss, solve))),
        ],
        lambda: tanh_reference(matrix, shift),
        [Foreign("torch", "TorchDEQ", f"{by}, IFT", "torch_deq", f"large_{by}") for by in ("anderson", "fixed_point")],
        {"matrix": matrix, "shift": shift, "tolerance": np.array(tolerance)},
    )


# -- case 12 --------------------------------------------------------------------------------------------------------------


def batch_step(z, args):
    matrix, drive = args
    return jnp.tanh(z @ matrix.T + drive)


def vmapped(solve: Solve) -> Solve:
    """An image at a time: a dense matrix of n unknowns each, instead of one of batch times n."""

    def batched(step, start, args):
        matrix, drive = args
        return jax.vmap(lambda z, d: solve(tanh_step, z, (matrix, d)))(start, drive)

    return batched


def classifier_loss(solve, params, pixels, labels):
    drive = apply(params["features"], pixels)
    z = solve(batch_step, jnp.zeros_like(drive), (params["recurrence"], drive))
    return classified(apply(params["readout"], z), labels)[0]


def classifier(small: bool) -> Case:
    """Case 12. The recurrence is taken as the job's layer has it, its norm limited, and is a parameter itself."""
    tolerance = 1e-5
    job = DeepEquilibrium(width=4, batch_size=3) if small else DeepEquilibrium(batch_size=256)
    params = job.init(jax.random.key(0))
    scale = 0.9 / np.linalg.norm(np.asarray(params["recurrence"]), 2)
    params["recurrence"] = params["recurrence"] * jnp.asarray(scale, jnp.float32)
    drawn = job.batch(jax.random.key(1))
    pixels, labels = drawn["images"].reshape(len(drawn["images"]), -1), drawn["labels"]
    drive = apply(params["features"], pixels)
    inner = (params["recurrence"], drive)
    solve, name = floor(batch_step, jnp.zeros_like(drive), inner, tolerance, tolerance)
    unknowns = drive.size
    arrays = {"recurrence": params["recurrence"], "pixels": pixels, "labels": labels, "tolerance": tolerance}
    arrays |= {f"{layer}_{key}": params[layer][key] for layer in ("features", "readout") for key in ("w", "b")}
    dense = "FixedPointIteration, ImplicitAdjoint()"
    by_image = vmapped(by_optimistix(optx.FixedPointIteration(tolerance, tolerance), optx.ImplicitAdjoint()))
    return Case(
        12,
        f"DEQ classifier, batch {len(labels)}, n = {drive.shape[1]}, 1e-5",
        tolerance,
        (params, pixels, labels),
        [
            *programs(classifier_loss, tolerance, small, () if small else (dense,)),
            Program("jax", "Optimistix", f"{dense}, vmapped", jax.grad(functools.partial(classifier_loss, by_image))),
            Program("floor", "floor", name, jax.grad(functools.partial(classifier_loss, solve))),
        ],
        lambda: classifier_reference(params, pixels, labels),
        [
            Foreign("torch", "TorchDEQ", f"{by}, IFT", "torch_deq", f"classifier_{by}")
            for by in ("anderson", "fixed_point")
        ],
        {name: np.asarray(x) for name, x in arrays.items()},
        (f"Optimistix's {dense} on the whole batch: not run, a dense matrix of {unknowns:,} unknowns.",),
    )


# -- case 13 --------------------------------------------------------------------------------------------------------------


def affine_step(z, args):
    matrix, shift = args
    return matrix @ z + shift


def slow(small: bool) -> Case:
    """Case 13: an affine T, symmetric, its eigenvalues spread over -0.99 to 0.99."""
    n, tolerance = (4 if small else 100), 1e-8
    rng = np.random.default_rng(13)
    basis = np.linalg.qr(rng.normal(size=(n, n)))[0]
    matrix = (basis * np.linspace(-0.99, 0.99, n)) @ basis.T
    shift = rng.normal(size=n)
    args = (jnp.asarray(matrix), jnp.asarray(shift))
    loss = _sum_of_squares(affine_step)
    solve, name = floor(affine_step, jnp.zeros(n), args, tolerance, tolerance)
    return Case(
        13,
        f"fixed point, contraction 0.99, n = {n}, 1e-8",
        tolerance,
        (args,),
        [
            *programs(loss, tolerance, small),
            Program("floor", "floor", name, jax.grad(functools.partial(loss, solve))),
        ],
        lambda: affine_reference(matrix, shift),
    )
