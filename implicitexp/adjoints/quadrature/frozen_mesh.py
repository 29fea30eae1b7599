"""The derivative of a quadrature with its mesh held fixed."""

from collections.abc import Callable

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from implicitexp.adjoints.implicit.linear_map import linear_map

from . import quadax_private as private
from .call import AbstractQuadratureAdjoint, Call, Held
from .operators import Flat, Inputs, Integrand, Maps, derivative, replaced


class FrozenMesh(AbstractQuadratureAdjoint):
    """Differentiate the sum that Quadax returned: the rule on the mesh that it ended with, each interval at its fraction of
    the interval that was asked for, so that the nodes move with the limits and the breakpoints.

    Use as `quadax.quadgk(..., adjoint=FrozenMesh())`, and in `quadcc`, `quadts`, `adaptive_quadrature`, `romberg`,
    `tanhsinh` and the cubatures. The number is that of `quadax.DirectAdjoint`, which is exact for the program; its error
    for the problem is that of the rule on the derivative of the integrand, on a mesh that was made for the integrand.

    Kept for the backward pass are the inputs and the mesh (two fractions and an integer for each of `max_ninter` intervals):
    neither values of the integrand nor anything of the adaptive loop. Backwards the nodes of the used intervals are evaluated
    again, `chunk_size` intervals at a time, so that for N intervals of k nodes and p numbers the cost is N k products with the
    transposed Jacobian of the integrand, and the memory p + `chunk_size` k values.

    Forward and reverse mode, `jit`, `vmap`, `scan`, and derivatives of any order. Differentiated are the limits and
    breakpoints (which may be infinite: then they do not move), the arrays in `args`, and what the integrand closes over. Where
    Quadax did not reach its tolerance (`info.status`), this is the derivative of the sum that it returned nevertheless; with
    `extrapolate=True` of the extrapolated value. A node at which the integrand is not finite counts zero, as in Quadax.

    A jump of the integrand that is no breakpoint makes the derivative wrong when the jump or a limit moves; see
    `quadax.DirectAdjoint`, and `implicitexp.Integral(..., breaks=...)`.
    """

    chunk_size: int = eqx.field(static=True, default=1)

    def __check_init__(self):
        if isinstance(self.chunk_size, bool) or not isinstance(self.chunk_size, int) or self.chunk_size < 1:
            raise ValueError(f"chunk_size={self.chunk_size!r}: give the number of intervals at a time, at least 1")

    def kept(self, ops, state):
        return ops.frozen(state)

    def derivative(self, call, inputs, held, moving, tangents, like):
        if call.ops.rebuild is None:  # Romberg's method has levels, and no mesh
            return derivative(_Levels(call), None, _scaled(call), inputs, held, moving, tangents, like)
        mesh = Mesh(call, self.chunk_size)
        if call.ops.mesh_is_primal:
            return derivative(mesh, None, mesh.block, inputs, held, moving, tangents, like)
        return _extrapolated(mesh, inputs, held, moving, tangents, like)


class Mesh:
    """The sum of the rule over the intervals of a mesh."""

    def __init__(self, call: Call, chunk: int):
        self.call, self.chunk = call, chunk

    def block(self, inputs: Inputs, held: Held, block: private.Mesh) -> Array:
        """The rule on the intervals of one block; what is not used counts zero."""
        fn, interval = self.call.built(inputs, held)
        rule = self.call.options(held)[0]["rule"]
        used = _used(block)
        lower, upper = private.ends_of(self.call.ops, interval, _filled(block, used, private.mesh(held.frozen)))
        values = jax.vmap(lambda a, b: private.apply(rule, fn, a, b))(lower, upper)
        return jnp.sum(jnp.where(used.reshape(-1, *[1] * (values.ndim - 1)), values, 0), axis=0)

    def __call__(self, integrand: Integrand, inputs: Inputs, held: Held) -> PyTree:
        """The sum of `integrand` over the blocks that any lane of a batch uses."""
        mesh = private.mesh(held.frozen)
        count = jnp.sum(_used(mesh))
        blocks = private.Mesh(*(_padded(x, self.chunk) for x in mesh))

        def at(i):
            pieces = (jax.lax.dynamic_slice_in_dim(x, i * self.chunk, self.chunk) for x in blocks)
            return integrand(inputs, held, private.Mesh(*pieces))

        shapes = jax.eval_shape(at, 0)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        end = eqxi.unvmap_max(-(-count // self.chunk))
        return jax.lax.fori_loop(0, end, lambda i, sum: jax.tree.map(jnp.add, sum, at(i)), zeros)

    def extrapolated(self, inputs: Inputs, held: Held) -> Array:
        """What Quadax extrapolated from the sums over its meshes, with the decisions on the way held fixed."""
        fn, interval = self.call.built(inputs, held)
        options, kwargs = self.call.options(held)
        keep = {"checkpoint": True, "chunk_size": self.chunk}
        ops = self.call.ops
        return ops.frozen_solve(options["rule"], fn, interval, held.frozen, kwargs, **keep)


def _used(mesh: private.Mesh) -> Array:
    different = mesh.start != mesh.end
    return jnp.all(different.reshape(different.shape[0], -1), axis=1)


def _filled(block: private.Mesh, used: Array, mesh: private.Mesh) -> private.Mesh:
    """The first interval of the mesh in the place of those that are not used: a real one, where the integrand is finite."""
    return private.Mesh(
        *(jnp.where(used.reshape(-1, *[1] * (x.ndim - 1)), x, y[0]) for x, y in zip(block, mesh, strict=True))
    )


def _padded(x: Array, chunk: int) -> Array:
    return jnp.pad(x, [(0, -x.shape[0] % chunk)] + [(0, 0)] * (x.ndim - 1))


class _Levels:
    """The table of Romberg's method on as many levels as it took, on the interval from 0 to 1."""

    def __init__(self, call: Call):
        self.call = call

    def __call__(self, integrand: Integrand, inputs: Inputs, held: Held) -> PyTree:
        ops = self.call.ops
        options, kwargs = self.call.options(held)
        unit = jnp.asarray([0.0, 1.0], ops.build(*self.call.inputs(inputs, held))[1].dtype)
        flat = Flat(jax.eval_shape(lambda s: integrand(inputs, held, s), unit[0]), unit.dtype)

        def fn(s):
            return flat.vector(integrand(inputs, held, s))

        return flat.tree(ops.frozen_solve(options.get("rule"), fn, unit, held.frozen, kwargs))


def _scaled(call: Call) -> Integrand:
    """The integrand on the interval from 0 to 1, so that the limits are among what it depends on."""

    def integrand(inputs: Inputs, held: Held, s: Array) -> Array:
        fn, interval = call.built(inputs, held)
        width = interval[-1] - interval[0]
        value = fn(interval[0] + s * width)
        return width.astype(jnp.finfo(value.dtype).dtype) * value

    return integrand


def _extrapolated(
    mesh: Mesh, inputs: Inputs, held: Held, moving: tuple[int, ...], tangents: Inputs, like: Array
) -> Array:
    """Quadax returns the sum over the mesh, or what it extrapolated from the sums on the way: each lane the derivative of
    what it returned. The extrapolation is done again, with its decisions held fixed, if any lane needs it."""
    maps = Maps(mesh, None, mesh.block, moving, jax.tree.structure(like))

    def again(residuals):
        inputs, held = residuals
        return lambda at: mesh.extrapolated(replaced(inputs, moving, at), held), [inputs[i] for i in moving]

    def push(residuals, tangents):
        def replayed():
            fn, at = again(residuals)
            return jax.jvp(fn, (at,), (tangents,))[1]

        return _either(residuals[1], replayed, lambda: maps.push(residuals, tangents))

    def pull(residuals, cotangent):
        def replayed():
            fn, at = again(residuals)
            return jax.vjp(fn, at)[1](cotangent)[0]

        return _either(residuals[1], replayed, lambda: maps.pull(residuals, cotangent))

    return linear_map(push, pull, (inputs, held), tangents, like=like)


def _either(held: Held, replayed: Callable[[], PyTree], summed: Callable[[], PyTree]) -> PyTree:
    """`replayed()` where the value was extrapolated, `summed()` where not; neither runs if no lane of a batch needs it."""
    used = private.extrapolated(held.frozen)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(summed))
    first = jax.lax.cond(eqxi.unvmap_any(used), replayed, lambda: zeros)
    second = jax.lax.cond(eqxi.unvmap_any(~used), summed, lambda: zeros)
    return jax.tree.map(lambda x, y: jnp.where(used, x, y), first, second)
