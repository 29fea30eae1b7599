"""An ODE in a time that runs forward, the accepted steps of its solve, and the solution inside them.

A continuous adjoint that goes back over a solve needs y(s) everywhere. Three ways to have it, by what the forward solve
kept of each step:
- `stages`: its interpolation, so nothing is done twice; the most memory (`max_steps` times the stages);
- `steps`: the state it began with: each step is done once more;
- `times`: when it began: the steps are done twice more, once to set a state every `stride` steps, and chunk by chunk
  for what is inside them. Diffrax's dense output for a batch of 128 digits is 2 GB, and takes seconds to fill.
"""

import math
from collections.abc import Callable
from typing import Any, Literal

import diffrax as dfx
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from implicitexp.adjoints.continuous.extension import Swept, interpolation, outruns_its_interpolation

STAGES = 8  # states that a step's interpolation keeps, about: balances the two buffers of `times`
# Bytes. Stages are those of an implicit method: up to there, filling the buffer costs less than the steps that it saves. Each
# lane of a vmap keeps the states: above that the memory costs more than doing the steps once more.
KEEP_STAGES, KEEP_STEPS = 2**20, 2**18
SWEEPS = (
    2  # gradient of an oscillator by Dopri8 at 1e-10: 26, 4.7, 1.9 times kappa times the solve's error with 0, 1, 2
)

Store = Literal["stages", "steps", "times"]


class Flow(eqx.Module):
    """dy/ds = the sum of `parts`, each a function (theta, s, y) -> dy/ds; `theta`: what it is differentiated by.

    Several parts are what a solver with several tableaus treats differently (implicit and explicit).
    """

    parts: tuple[Callable, ...]
    theta: list[Array]

    def slope(self, theta: list[Array], s: Any, y: PyTree) -> PyTree:
        slopes = [part(theta, s, y) for part in self.parts]
        return jax.tree.map(lambda *xs: sum(xs[1:], xs[0]), *slopes)

    def terms(self) -> Any:
        """As Diffrax's solvers take it."""
        return as_terms([eqx.Partial(part, self.theta) for part in self.parts])


def as_terms(fields: list[Callable]) -> Any:
    """Functions (s, y) -> dy/ds as Diffrax's terms."""

    def term(field: Callable) -> dfx.ODETerm:
        return dfx.ODETerm(lambda s, y, _: field(s, y))

    terms = [term(field) for field in fields]
    return terms[0] if len(terms) == 1 else dfx.MultiTerm(*terms)


class Mesh(eqx.Module):
    """The accepted steps of a forward solve: step i goes from times[i] to ends[i]; from `intervals` on it is padding.

    ends[i] is times[i + 1], but where the field jumps, just before the jump, times[i + 1] being just after.
    """

    times: Float[Array, " max_steps_and_one"]  # padding: inf
    ends: Float[Array, " max_steps"]
    intervals: Int[Array, ""]
    states: PyTree | None = None  # `steps`: y at times[i]
    infos: PyTree | None = None  # `stages`: what interpolates inside step i

    @classmethod
    def of(cls, times: Array, intervals: Array, jumps: Array | None = None, **kept: PyTree) -> "Mesh":
        """`times`: sorted, with anything after the first `intervals` + 1; `jumps`: where the field jumps."""
        times = jnp.where(jnp.arange(times.size) <= intervals, times, jnp.inf)
        ends = times[1:]
        if jumps is not None and jumps.size:
            after = jnp.nextafter(jumps, jnp.asarray(jnp.inf, jumps.dtype))
            before = jnp.nextafter(jumps, jnp.asarray(-jnp.inf, jumps.dtype))
            at = jnp.clip(jnp.searchsorted(after, ends), 0, jumps.size - 1)
            ends = jnp.where((after[at] == ends) | (jumps[at] == ends), before[at], ends)
        return cls(times, ends, jnp.asarray(intervals, jnp.int32), **kept)

    def interval(self, s: Array) -> Array:
        """i with times[i] < s <= times[i + 1]."""
        return (jnp.searchsorted(self.times, s) - 1).astype(jnp.int32)


class Chunk(eqx.Module):
    """The inside of the steps start, start + 1, ..."""

    start: Int[Array, ""]
    infos: PyTree


class Trajectory(eqx.Module):
    """y(s) of a solve by `method` from y0, chunk by chunk."""

    flow: Flow
    method: dfx.AbstractSolver
    mesh: Mesh
    y0: PyTree

    @property
    def is_swept(self) -> bool:
        """Whether an interpolation takes evaluations of the field."""
        return outruns_its_interpolation(self.method)

    def whole(self) -> "Chunk | None":
        """All steps, where the inside of each was kept."""
        return None if self.mesh.infos is None else Chunk(jnp.zeros_like(self.mesh.intervals), self.mesh.infos)

    def prepared(self) -> tuple[PyTree, Array]:
        """-> what `chunk` starts from, and how many steps a chunk has."""
        if self.mesh.states is not None:
            return self.mesh.states, jnp.ones_like(self.mesh.intervals)
        return self._checkpoints()

    def chunk(self, prepared: PyTree, index: Array, stride: Array) -> Chunk:
        """The chunk of that index: steps index * stride, ..."""
        start = index * stride
        return self._replay(jax.tree.map(lambda s: s[index], prepared), start, stride)

    def inside(self, chunk: Chunk, i: Array) -> Any:
        """y(s) in step i of the chunk."""
        info = jax.tree.map(lambda x: x[i - chunk.start], chunk.infos)
        t0, t1 = self.mesh.times[i], self.mesh.ends[i]
        path = interpolation(self.method, t0, t1, info)
        if not self.is_swept:
            return path
        slope = eqx.Partial(self.flow.slope, self.flow.theta)
        for _ in range(SWEEPS):
            path = Swept.of(path, slope, t0, t1, self.method.order(None) or 1)
        return path

    def _sizes(self) -> tuple[int, int]:
        """How many chunks, and the longest one: together they hold every step of the longest solve."""
        steps = self.mesh.times.size - 1
        if self.mesh.states is not None:
            return steps, 1
        chunk = max(1, round(math.sqrt(steps / STAGES)))
        return math.ceil(steps / chunk), chunk

    def _init(self, i: Array, y: PyTree) -> PyTree:
        return self.method.init(self.flow.terms(), self.mesh.times[i], self.mesh.ends[i], y, None)

    def _step_again(self, i: Array, y: PyTree, state: PyTree) -> tuple[PyTree, PyTree, PyTree]:
        jumped = self._jumped(i)
        s0, s1 = self.mesh.times[i], self.mesh.ends[i]
        y, _, info, state, _ = self.method.step(self.flow.terms(), s0, s1, y, None, state, jumped)
        return y, info, state

    def _jumped(self, i: Array) -> Bool[Array, ""]:
        return (i > 0) & (self.mesh.ends[jnp.maximum(i - 1, 0)] != self.mesh.times[i])

    def _checkpoints(self) -> tuple[PyTree, Array]:
        """The state before every `stride`-th step."""
        count, _ = self._sizes()
        n = self.mesh.intervals
        stride = jnp.maximum((n + count - 1) // count, 1)
        slots = jax.tree.map(lambda y: jnp.zeros((count, *y.shape), y.dtype), self.y0)

        def step(i, carry):
            y, state, slots = carry
            where = jnp.where(i % stride == 0, i // stride, count)
            slots = jax.tree.map(lambda s, y: s.at[where].set(y, mode="drop"), slots, y)
            y, _, state = self._step_again(i, y, state)
            return y, state, slots

        zero = jnp.zeros((), n.dtype)
        return jax.lax.fori_loop(zero, n, step, (self.y0, self._init(zero, self.y0), slots))[2], stride

    def _replay(self, y: PyTree, start: Array, stride: Array) -> Chunk:
        """The steps from the state y at `start` on, with what interpolates inside them."""
        state = self._init(start, y)
        shapes = jax.eval_shape(lambda: self._step_again(start, y, state)[1])
        infos = jax.tree.map(lambda x: jnp.zeros((self._sizes()[1], *x.shape), x.dtype), shapes)

        def step(k, carry):
            y, state, infos = carry
            y, info, state = self._step_again(start + k, y, state)
            return y, state, jax.tree.map(lambda all_, x: all_.at[k].set(x), infos, info)

        zero = jnp.zeros((), start.dtype)
        length = jnp.minimum(stride, self.mesh.intervals - start)
        return Chunk(start, jax.lax.fori_loop(zero, length, step, (y, state, infos))[2])


def storage(method: dfx.AbstractSolver, steps: int, info: PyTree, y: PyTree) -> Store:
    """What to keep of a solve of at most that many steps: as much as pays. `info`: shapes of a step's interpolation.

    To do an explicit step again costs less than to write and read what is inside it: Lotka-Volterra by Dopri8, `stages` 1.17 ms,
    `steps` 0.91, `times` 0.92; by Tsit5 0.164, 0.160, 0.170; in 256 lanes 51, 45, 56 ms with 144, 32, 18 MiB.
    """

    def size(tree: PyTree) -> int:
        return steps * sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))

    if isinstance(method, dfx.AbstractImplicitSolver) and size(info) <= KEEP_STAGES:
        return "stages"
    return "steps" if size(y) <= KEEP_STEPS else "times"


def plain(solver: dfx.AbstractSolver) -> dfx.AbstractSolver:
    """The solver with its loop over the stages as a plain one: nothing is backpropagated through it, and forward mode can
    go through it, which it cannot through Diffrax's default."""
    if isinstance(solver, dfx.AbstractWrappedSolver):
        return eqx.tree_at(lambda s: s.solver, solver, plain(solver.solver))
    if isinstance(solver, dfx.AbstractRungeKutta) and solver.scan_kind is None:
        return eqx.tree_at(lambda s: s.scan_kind, solver, "lax", is_leaf=lambda x: x is None)
    return solver
