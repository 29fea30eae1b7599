"""From configured objects to an experiment that is known to work: everything that tracing alone can find out.

Nothing is compiled and nothing is written here; whatever is wrong is a `ConfigError` that names class and method.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from implicitexp import solvers, tracing
from implicitexp.equations import KINDS
from implicitexp.errors import ConfigError
from implicitexp.experiment import Evaluation, Experiment, State, start, update
from implicitexp.problems.base import AbstractProblem
from implicitexp.recipe import Recipe, from_node
from implicitexp.recipe import name_of as name_of_target
from implicitexp.strategies.base import KIND_WORDS

CONCRETE = (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError)


def prepare(
    problem: AbstractProblem, solver: Any, gradient: Any, optimizer: Any, seed: int = 0, **limits: Any
) -> tuple[Experiment, State, jax.Array]:
    """-> the experiment, its first state, and the key from which all minibatches are drawn.

    `optimizer`: a configuration node (`{"_target_": "optax.adam", "learning_rate": 1e-3}`) or a `Recipe`; `limits`:
    `clip_norm`, `stopping` and `mesh` of the experiment.

    **Raises** `ConfigError` (or its `Unsupported`) for whatever cannot work.
    """
    experiment, _, key = objects(problem, solver, gradient, optimizer, seed, **limits)
    first = jax.random.split(jax.random.key(seed))[0]
    experiment = buildable(experiment, first)
    return experiment, start(experiment, first), key


def objects(
    problem: AbstractProblem, solver: Any, gradient: Any, optimizer: Any, seed: int = 0, **limits: Any
) -> tuple[Experiment, PyTree, jax.Array]:
    """-> the experiment, the first parameters, and the key of minibatches: all that a check of the gradient needs."""
    if not isinstance(problem, AbstractProblem):
        raise ConfigError(f"problem must be an implicitexp.AbstractProblem, not {type(problem).__name__}.")
    recipe = optimizer if isinstance(optimizer, Recipe) else from_node(optimizer)
    key_params, key_batches = jax.random.split(jax.random.key(seed))
    experiment = Experiment.of(problem, solver, gradient, recipe, **limits)
    params = first_params(experiment.problem, key_params)
    batch = first_batch(experiment.problem, key_batches)
    check_loss(experiment.problem, params, batch)
    check_pairs(experiment, params, batch)
    if experiment.mesh is not None:
        check_mesh(experiment.problem, batch, experiment.mesh.size)
    return experiment, params, key_batches


def check_mesh(problem: AbstractProblem, batch: PyTree, devices: int) -> None:
    """The minibatch can be cut into equal parts along its first axis, one a device."""
    sizes = {x.shape[0] if x.shape else 0 for x in jax.tree.leaves(batch)}
    if not sizes:
        raise ConfigError(
            f"device=mesh shards the minibatch, and {name_of(problem, 'batch')} gives none; use device=auto."
        )
    if bad := sorted(n for n in sizes if n % devices or n == 0):
        raise ConfigError(
            f"device=mesh: the first axis of each leaf of {name_of(problem, 'batch')} must be a multiple of {devices}, "
            f"the number of devices, but is {bad[0]}; choose another batch size, or device=auto."
        )


def name_of(problem: Any, method: str) -> str:
    """`Kepler.loss`, with its module where that is not ours."""
    cls = type(problem)
    prefix = "" if cls.__module__.startswith("implicitexp.") else f"{cls.__module__}."
    return f"{prefix}{cls.__name__}.{method}"


def first_params(problem: AbstractProblem, key: jax.Array) -> PyTree:
    """`init`, checked: a pytree of floating point arrays, at least one, without NaN."""
    params, name = problem.init(key), name_of(problem, "init")
    leaves = jax.tree.leaves(params)
    bad = [x for x in leaves if not (isinstance(x, np.ndarray | jax.Array) and jnp.issubdtype(x.dtype, jnp.floating))]
    if bad or not leaves:
        found = f"{type(bad[0]).__name__} {bad[0]!r}"[:80] if bad else "nothing"
        raise ConfigError(
            f"{name} must return a pytree of floating point arrays, but has {found} in it; return e.g. "
            f"jnp.array(0.1) or {{'name': jnp.zeros(3)}}."
        )
    if any(bool(jnp.any(~jnp.isfinite(x))) for x in leaves):
        raise ConfigError(f"{name} returns parameters that are not finite.")
    return jax.tree.map(jnp.asarray, params)


def first_batch(problem: AbstractProblem, key: jax.Array) -> PyTree:
    """The shape of `batch`, which must be a function that JAX can trace."""
    return eqx.filter_eval_shape(problem.batch, key)


def check_loss(problem: AbstractProblem, params: PyTree, batch: PyTree) -> None:
    """`loss` returns a real floating point scalar, or that, a dictionary of scalars, and what is to be remembered."""
    name = name_of(problem, "loss")
    recorder: Any = tracing.Recorder([])
    out = jax.eval_shape(lambda p, b: problem.loss(p, b, recorder), params, batch)
    loss, extra = out[:2] if isinstance(out, tuple) and len(out) in (2, 3) else (out, {})
    if not (isinstance(loss, jax.ShapeDtypeStruct) and loss.shape == () and jnp.issubdtype(loss.dtype, jnp.floating)):
        shape = getattr(loss, "shape", None)
        hint = "; take a mean or a sum" if shape else ""
        raise ConfigError(f"{name} must return a scalar (or a scalar and a dictionary), but returns {out}{hint}.")
    if not isinstance(extra, dict) or any(getattr(x, "shape", ()) != () for x in extra.values()):
        raise ConfigError(f"{name} must return scalars in its dictionary of metrics, but returns {extra}.")


def check_pairs(experiment: Experiment, params: PyTree, batch: PyTree) -> None:
    """Solver and strategy fit the kinds of equation that the loss solves, which are found by tracing it."""
    found = tracing.uses(experiment.problem, params, batch, experiment.solver)
    kinds = {use.kind for use in found if use.pinned is None}
    taken = solvers.kinds_of(experiment.solver)
    if kinds and taken != KINDS and not kinds & set(taken):
        raise ConfigError(
            f"solver={type(experiment.solver).__name__} solves {KIND_WORDS[taken[0]]}, but "
            f"{name_of(experiment.problem, 'loss')} solves {' and '.join(KIND_WORDS[k] for k in sorted(kinds))}; use "
            f"solver=auto or one of that kind."
        )
    for use in found:
        experiment.gradient.cell(use.kind, solvers.for_kind(use.pinned or experiment.solver, use.kind))


def buildable(experiment: Experiment, key: jax.Array) -> Experiment:
    """The experiment, whose optimizer is known to build and to update inside a traced function.

    A few Optax factories branch on their numbers, which then cannot be data: they are made part of the program.
    """
    try:
        _trace_update(experiment, key)
    except CONCRETE:
        fixed = jax.tree.map(lambda x: float(x) if eqx.is_inexact_array(x) else x, experiment.optimizer)
        experiment = eqx.tree_at(lambda e: e.optimizer, experiment, fixed)
        _trace_update(experiment, key)
    return experiment


def _trace_update(experiment: Experiment, key: jax.Array) -> None:
    def begin(experiment, key):
        try:
            return start(experiment, key)
        except CONCRETE:
            raise
        except (TypeError, ValueError, AttributeError) as error:
            raise ConfigError(
                f"optimizer: {name_of_target(experiment.optimizer.target)} cannot be used: {error}."
            ) from error

    state = eqx.filter_eval_shape(begin, experiment, key)
    eqx.filter_eval_shape(update, experiment, state, key)


def refuse_bad_start(experiment: Experiment, at: Evaluation) -> None:
    """NaN at the first parameters is an error of the experiment, not of its training."""
    init, loss = name_of(experiment.problem, "init"), name_of(experiment.problem, "loss")
    broken = [name for name in ("solver", "adjoint") if float(at.metrics[f"{name}/converged"]) < 1]
    advice = {
        "solver": "a solve did not converge: start elsewhere, or raise solver.max_steps",
        "adjoint": "an adjoint solve did not converge: use another gradient, or raise its max_steps",
    }
    why = "; ".join(advice[name] for name in broken) or "look for log, sqrt or a division at the edge of their domain"
    if not np.isfinite(at.loss):
        raise ConfigError(f"{loss} is {float(at.loss)} at the parameters that {init} gives: {why}.")
    if not all(np.all(np.isfinite(x)) for x in jax.tree.leaves(at.gradient)):
        raise ConfigError(f"the gradient of {loss} is not finite at the parameters that {init} gives: {why}.")
