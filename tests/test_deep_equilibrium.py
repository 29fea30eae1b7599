"""The deep equilibrium network: what it learns, the spectral norm of its W, and the memory of its warm start."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem_runs import configured, trained

from implicitexp import problems
from implicitexp.problems.deep_equilibrium import spectral_bound
from implicitexp.solving import Solve

SMALL = ("problem.width=8", "problem.batch_size=16")
SOLVED = 1e-6  # ten times float64's tolerances, through a gradient and 40 updates


@pytest.mark.slow
def test_the_equilibrium_is_worth_its_solve():
    """Test accuracy after the updates of the YAML, one seed; `benchmarks/layers.py problem=fixed_point` has three."""
    deep, flat = (
        trained("fixed_point", f"problem.layer={layer}", optimized=True) for layer in ("fixed_point", "feedforward")
    )
    assert deep.found["test_accuracy"] >= 0.97
    assert deep.found["test_accuracy"] > flat.found["test_accuracy"] + 0.005
    used = np.linalg.norm(deep.problem.recurrence(deep.params), 2)
    assert used <= 0.9 * (1 + 1e-5) < np.linalg.norm(deep.params["recurrence"], 2)  # the limit is felt


@pytest.mark.slow
def test_a_warm_start_changes_a_run_by_the_tolerance_only(float64):
    """Without jitter and noise z moves as the parameters do; the run is the same to the solver's tolerance."""
    still = (*SMALL, "problem.jitter=0", "problem.noise=0", "steps=40", "problem.spectral_norm=null")
    cold, warm = (trained("fixed_point", *still, f"problem.warm_start={on}") for on in ("false", "true"))
    np.testing.assert_allclose(warm.losses, cold.losses, rtol=SOLVED)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=SOLVED), warm.params, cold.params)
    assert all(x.dtype == jnp.float64 for x in jax.tree.leaves(warm.params))


def test_the_memory_holds_the_last_state_of_each_row():
    problem = problems.DeepEquilibrium(width=2, batch_size=4, warm_start=True)
    assert problems.DeepEquilibrium().memory() is None
    batch = {"rows": jnp.array([7, 3, 7, 0])}
    found = jnp.arange(8.0).reshape(4, 2)
    memory = problem.remember(problem.memory(), batch, found)
    np.testing.assert_array_equal(memory[jnp.array([0, 3, 7])], found[jnp.array([3, 1, 2])])
    assert float(jnp.sum(jnp.abs(memory))) == float(jnp.sum(found[1:]))
    np.testing.assert_array_equal(problem.recall(memory, batch)["start"], found[jnp.array([2, 1, 2, 3])])


@pytest.mark.slow
def test_solutions_do_not_depend_on_the_start(float64):
    _, problem, solver, gradient = configured("fixed_point", "precision=float64", *SMALL)
    params, batch = problem.init(jax.random.key(0)), problem.batch(jax.random.key(1))
    start = jax.random.normal(jax.random.key(2), (16, 8))

    @jax.jit
    def at(start):
        return jax.value_and_grad(lambda p: problem.loss(p, batch | {"start": start}, Solve(solver, gradient))[0])(
            params
        )

    for a, b in zip(jax.tree.leaves(at(start)), jax.tree.leaves(at(0 * start)), strict=True):
        np.testing.assert_allclose(a, b, atol=SOLVED)


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_the_bound_is_the_spectral_norm_from_above(scale):
    w = scale * jax.random.normal(jax.random.key(3), (64, 64))
    ratio = float(spectral_bound(w)) / np.linalg.norm(np.asarray(w, np.float64), 2)
    assert 1 - 1e-5 < ratio < 64 ** (1 / 256)
    assert float(spectral_bound(scale * jnp.eye(64))) == pytest.approx(scale * 64 ** (1 / 256), rel=1e-5)  # the worst W


@pytest.mark.parametrize(
    ("options", "message"),
    [({"width": 0}, "at least 1"), ({"spectral_norm": 1.0}, "spectral_norm must be between 0 and 1")],
)
def test_networks_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        problems.DeepEquilibrium(**options)
