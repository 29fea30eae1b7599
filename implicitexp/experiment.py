"""An experiment: problem, solver, gradient strategy and optimizer as one immutable pytree, and its update.

Every Python float in it becomes an array, so that learning rate, tolerances and constants are data of the compiled
program. The optimizer is built from its recipe inside the traced function.
"""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree, Scalar

from implicitexp.problems.base import AbstractProblem
from implicitexp.recipe import Recipe
from implicitexp.solvers.base import all_finite, dtype_of
from implicitexp.solving import Solve, zero_tap

BATCH_AXIS = ("batch",)  # of a mesh
ROWS = 256  # of metrics, that one call of `advance` can keep; a constant, so that the cadence of logging changes no bit

FAULTS = (
    "none",
    "a solve did not converge",
    "an adjoint solve did not converge",
    "the loss is not finite",
    "the gradient is not finite",
    "the optimizer's update is not finite",
)
UPDATE_FAULT = FAULTS.index("the optimizer's update is not finite")


ENDS = ("none", "target_loss", "patience")  # why a training ended before its last update


class Stopping(eqx.Module):
    """When a training ends early: decided by the losses of the updates alone, so that no cadence changes it."""

    target_loss: Any = None  # the loss of an update is not above it; its parameters stay as they are
    patience: Any = None  # updates without a new smallest loss

    def watch(self, state: "State", loss: Array, fault: Array) -> tuple[Array, Array, Array]:
        """-> an index into ENDS, the smallest loss so far, the updates since then. Without either limit: as they were."""
        if self.target_loss is None and self.patience is None:
            return state.end, state.best, state.waited
        best = jnp.minimum(state.best, jnp.where(fault == 0, loss, jnp.inf).astype(state.best.dtype))
        waited = jnp.where(best < state.best, 0, state.waited + 1).astype(jnp.int32)
        end = jnp.array(0, jnp.int32)
        if self.patience is not None:
            end = jnp.where(waited >= self.patience, ENDS.index("patience"), end)
        if self.target_loss is not None:
            end = jnp.where(loss <= self.target_loss, ENDS.index("target_loss"), end)
        return end, best, waited


class Experiment(eqx.Module):
    """What is trained and how; immutable, its numbers are data. Make one with `Experiment.of`."""

    problem: AbstractProblem
    solver: Any
    gradient: Any
    optimizer: Recipe
    clip_norm: Any = None  # largest norm of a gradient; None: not clipped
    stopping: Stopping = Stopping()
    mesh: Mesh | None = eqx.field(static=True, default=None)  # of devices that share each minibatch

    @classmethod
    def of(
        cls,
        problem,
        solver,
        gradient,
        optimizer: Recipe,
        clip_norm: float | None = None,
        stopping: Stopping = Stopping(),
        mesh: Mesh | None = None,
    ) -> "Experiment":
        """The experiment with its numbers as arrays of the process's precision."""
        return cls(*(as_data(x) for x in (problem, solver, gradient, optimizer, clip_norm, stopping)), mesh=mesh)

    def numbers(self) -> dict[str, Any]:
        """Every number by its path: `solver.rtol`, `optimizer.learning_rate`, `problem.duration`."""
        leaves = jax.tree_util.tree_leaves_with_path(eqx.filter(self, eqx.is_inexact_array))
        return {_dotted(path): leaf for path, leaf in leaves}

    def transformation(self) -> optax.GradientTransformationExtraArgs:
        """The optimizer, built."""
        inner = self.optimizer.build()
        if self.clip_norm is not None:
            inner = optax.chain(optax.clip_by_global_norm(self.clip_norm), inner)
        return optax.with_extra_args_support(inner)

    def loss(self, params: PyTree, batch: PyTree, tap: Any = None) -> tuple[Scalar, dict[str, Scalar], PyTree]:
        """-> loss, what else the problem wants logged, what it wants to remember."""
        out = self.problem.loss(params, batch, Solve(self.solver, self.gradient, tap))
        if not isinstance(out, tuple):
            return out, {}, None
        return out[0], out[1], out[2] if len(out) > 2 else None


class State(eqx.Module):
    """What an update changes. `fault` is an index into FAULTS, `end` into ENDS; after either, nothing changes any more."""

    params: PyTree
    optimizer: PyTree
    step: Int[Array, ""]
    fault: Int[Array, ""]
    end: Int[Array, ""]
    best: Float[Array, ""]  # the smallest loss so far
    waited: Int[Array, ""]  # updates since then
    memory: PyTree = None  # the problem's own: starting guesses, say


class Evaluation(eqx.Module):
    """Loss and gradient at one point, with the statistics of all solves on the way."""

    loss: Float[Array, ""]
    gradient: PyTree
    metrics: dict[str, Array]
    fault: Int[Array, ""]
    found: PyTree = None  # what the problem wants to remember


def as_data(tree: PyTree) -> PyTree:
    """Python floats become arrays, so that `filter_jit` takes them for data and not for part of the program."""
    return jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, float) else x, tree)


def _dotted(path: Any) -> str:
    return ".".join(str(getattr(k, "name", getattr(k, "key", getattr(k, "idx", k)))) for k in path)


def start(experiment: Experiment, key: PRNGKeyArray) -> State:
    """The state before the first update."""
    params = experiment.problem.init(key)
    zero = jnp.array(0, jnp.int32)
    infinite = jnp.array(jnp.inf, dtype_of(params))
    state = State(
        params, experiment.transformation().init(params), zero, zero, zero, infinite, zero, experiment.problem.memory()
    )
    # Types that are weak at the start are strong after an update: without this `advance` is compiled twice.
    state = jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), state)
    return placed(state, experiment.mesh)


def placed(tree: PyTree, mesh: Mesh | None, *axes: str) -> PyTree:
    """On all devices of the mesh: whole on each, or cut along the first axis (`axes`: the mesh's own axis)."""
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, PartitionSpec(*axes))
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, sharding), tree)


def batch_at(experiment: Experiment, key: PRNGKeyArray, step: Int[Array, ""], memory: PyTree = None) -> PyTree:
    """The data of that update: a function of seed and step only, with what is remembered of them."""
    batch = experiment.problem.batch(jax.random.fold_in(key, step + 1))
    batch = batch if memory is None else experiment.problem.recall(memory, batch)
    return placed(batch, experiment.mesh, *BATCH_AXIS)


@eqx.filter_jit
def evaluate(experiment: Experiment, params: PyTree, batch: PyTree) -> Evaluation:
    """Loss, gradient and the statistics of all solves, by one reverse pass.

    Jitted, as `update` is, so that it is traced once for all programs that contain it.
    """

    def loss(params, tap):
        value, extra, found = experiment.loss(params, batch, tap)
        return value, (extra, found)

    (value, (extra, found)), (gradient, counts) = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)(
        params, zero_tap()
    )
    metrics = {"loss": value, "grad/norm": optax.tree.norm(gradient), **_solver_metrics(counts)}
    metrics |= {name: jnp.asarray(x) for name, x in extra.items()}
    return Evaluation(value, gradient, metrics, _fault(experiment, value, gradient, counts), found)


def _solver_metrics(counts: dict[str, Array]) -> dict[str, Array]:
    """Sums over the solves of one update, in the vocabulary of the record."""
    solves = jnp.maximum(counts["solves"], 1)
    return {
        "solver/solves": counts["solves"],
        "solver/steps": counts["steps"],
        "solver/converged": 1 - counts["unconverged"] / solves,
        "adjoint/steps": counts["adjoint_steps"],
        "adjoint/converged": 1 - counts["adjoint_unconverged"] / solves,
        "adjoint/residual": jnp.sqrt(counts["adjoint_residual"] / solves),
    }


def _fault(experiment: Experiment, loss: Array, gradient: PyTree, counts: dict[str, Array]) -> Int[Array, ""]:
    """The first of FAULTS that holds, 0 for none. With `keep`, solves that fail are only counted."""
    stops = experiment.solver.when_not_converged == "stop"
    holds = [
        (counts["unconverged"] > 0) & stops,
        (counts["adjoint_unconverged"] > 0) & stops,
        ~jnp.isfinite(loss),
        ~all_finite(gradient),
    ]
    fault = jnp.array(0, jnp.int32)
    for number in reversed(range(len(holds))):
        fault = jnp.where(holds[number], number + 1, fault)
    return fault


@eqx.filter_jit
def update(experiment: Experiment, state: State, key: PRNGKeyArray) -> tuple[State, dict[str, Array]]:
    """One step of the optimizer. With a fault the parameters stay: for good (`stop`), or for this update (`keep`)."""
    batch = batch_at(experiment, key, state.step, state.memory)
    drawn = experiment.gradient.drawn(jax.random.fold_in(key, state.step))
    experiment = dataclasses.replace(experiment, gradient=drawn)
    at = evaluate(experiment, state.params, batch)

    def trial(params):
        """What a line search tries: without the tap, so that rejected points do not count."""
        return experiment.loss(params, batch)[0]

    changes, optimizer = experiment.transformation().update(
        at.gradient, state.optimizer, state.params, value=at.loss, grad=at.gradient, value_fn=trial
    )
    params = optax.apply_updates(state.params, changes)
    fault = jnp.where((at.fault == 0) & ~all_finite(params), UPDATE_FAULT, at.fault)
    end, best, waited = experiment.stopping.watch(state, at.loss, at.fault)
    end = jnp.where(fault == 0, end, 0)
    good = (fault == 0) & (end == 0)
    memory = None if state.memory is None else experiment.problem.remember(state.memory, batch, at.found)
    params, optimizer, memory = jax.tree.map(
        lambda new, old: jnp.where(good, new, old),
        (params, optimizer, memory),
        (state.params, state.optimizer, state.memory),
    )
    stops = experiment.solver.when_not_converged == "stop"
    step = (state.step + (good | ((end == 0) & ~jnp.array(stops)))).astype(jnp.int32)
    metrics = at.metrics | {"skipped": (~good).astype(at.loss.dtype)}
    fault = fault if stops else jnp.zeros_like(fault)
    return State(params, optimizer, step, fault, end, best, waited, memory), metrics


class Rows(NamedTuple):
    """The metrics of those updates of a call that were kept: the first `count` of ROWS entries."""

    metrics: dict[str, Float[Array, " rows"]]
    steps: Int[Array, " rows"]
    count: Int[Array, ""]

    @classmethod
    def empty(cls, metrics: dict[str, jax.ShapeDtypeStruct]) -> "Rows":
        full = {name: jnp.full(ROWS, jnp.nan, x.dtype) for name, x in metrics.items()}
        return cls(full, jnp.zeros(ROWS, jnp.int32), jnp.array(0, jnp.int32))

    def add(self, step: Int[Array, ""], metrics: dict[str, Array]) -> "Rows":
        """With one more."""
        kept = {name: self.metrics[name].at[self.count].set(x) for name, x in metrics.items()}
        return Rows(kept, self.steps.at[self.count].set(step), self.count + 1)


@eqx.filter_jit
def advance(
    experiment: Experiment, state: State, key: PRNGKeyArray, count: Int[Array, ""], every: Int[Array, ""]
) -> tuple[State, Rows, Int[Array, ""]]:
    """Up to `count` <= `most(every)` updates -> state, metrics, how many were done. After a fault or an end the rest is skipped.

    Metrics are kept of the first update, of those whose step is a multiple of `every`, and of the last: to write all of
    them down, or to ask after each whether it is one of these, is 5 % of an update of a microsecond. `count` and `every`
    are data: however a run is cut into calls and logged, they are the same program, and give the same bits.
    """
    shapes = eqx.filter_eval_shape(update, experiment, state, key)[1]
    nothing = {name: jnp.zeros(x.shape, x.dtype) for name, x in shapes.items()}

    def going(state, done, end):
        return (done < end) & (state.fault == 0) & (state.end == 0)

    def one(carry):
        state, _, done, end = carry
        state, metrics = update(experiment, state, key)
        return state, metrics, done + 1, end

    def until_kept(carry):
        state, rows, done = carry
        ahead = jnp.where(
            done == 0, 0, -state.step % every
        )  # updates before the next one that is kept: counted once, here
        start = (state, nothing, done, jnp.minimum(count, done + ahead + 1))
        after, metrics, all_done, _ = jax.lax.while_loop(lambda c: going(c[0], c[2], c[3]), one, start)
        return after, rows.add(state.step + (all_done - done) - 1, metrics), all_done

    start = (state, Rows.empty(shapes), jnp.array(0, jnp.int32))
    return jax.lax.while_loop(lambda carry: going(carry[0], carry[2], count), until_kept, start)


def most(every: int) -> int:
    """How many updates one call of `advance` can be asked for."""
    return (ROWS - 2) * every


@eqx.filter_jit
def answers(experiment: Experiment, params: PyTree) -> dict[str, Array]:
    """The problem's own numbers: test accuracy and the like."""
    return experiment.problem.evaluate(params, Solve(experiment.solver, experiment.gradient))
