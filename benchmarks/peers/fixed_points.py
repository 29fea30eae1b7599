"""Cases 11 to 13: a large deep equilibrium, a batch of small ones in a classifier, and a slow contraction."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx

from benchmarks.peers.cases import Case, Foreign, Program
from benchmarks.peers.fixed_point_programs import Solve, by_optimistix, floors, programs
from benchmarks.peers.fixed_point_truth import affine_reference, classifier_reference, tanh_reference
from implicitexp.problems import DeepEquilibrium
from implicitexp.problems.digit_images import apply, classified

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
    return Case(
        11,
        f"DEQ z = tanh(W z + b), n = {n}, 1e-8",
        tolerance,
        (args,),
        [
            *programs(loss, tolerance, small),
            *floors(loss, tanh_step, jnp.zeros(n), args, tolerance),
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
            *floors(classifier_loss, batch_step, jnp.zeros_like(drive), inner, tolerance),
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
    return Case(
        13,
        f"fixed point, contraction 0.99, n = {n}, 1e-8",
        tolerance,
        (args,),
        [
            *programs(loss, tolerance, small),
            *floors(loss, affine_step, jnp.zeros(n), args, tolerance),
        ],
        lambda: affine_reference(matrix, shift),
    )
