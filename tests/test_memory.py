"""What a problem remembers from update to update: it reaches the next batch, and nothing else depends on it."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import ADAM

import implicitexp
from implicitexp import prepare, solvers, strategies
from implicitexp.experiment import advance

ROWS = 5
COLD = 3.0  # the guess for what was not drawn yet; the roots are near 1


class Remembering(implicitexp.AbstractProblem):
    """y³ + y = p x_i for one row i a time; the root of the last time that the row was drawn is the next guess."""

    warm: bool = eqx.field(static=True, default=True)
    breaks: bool = eqx.field(static=True, default=False)

    def init(self, key):
        return jnp.array(2.0)

    def batch(self, key):
        row = jax.random.randint(key, (), 0, ROWS)
        return {"row": row, "x": 1 + row / ROWS}

    def memory(self):
        return jnp.full(ROWS, COLD) if self.warm else None

    def recall(self, memory, batch):
        return batch | {"guess": memory[batch["row"]]}

    def remember(self, memory, batch, found):
        return memory.at[batch["row"]].set(found)

    def loss(self, params, batch, solve):
        equation = implicitexp.Root(lambda y, args: y**3 + y - args, batch.get("guess", COLD))
        y = solve(equation, params * batch["x"]).value
        loss = jnp.where(params < 1.9, jnp.nan, y) if self.breaks else y  # Adam pushes p below 1.9 in some updates
        return loss, {"y": y}, y


def updated(problem, *counts):
    """The state after so many calls of `advance`, and the metrics of all updates."""
    experiment, state, key = prepare.prepare(problem, solvers.Newton(), strategies.Implicit(), ADAM)
    rows = []
    for count in counts:
        state, kept, _ = advance(experiment, state, key, jnp.asarray(count, jnp.int32), jnp.array(1, jnp.int32))
        rows.append({name: np.asarray(x[: int(kept.count)]) for name, x in kept.metrics.items()})
    return state, {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}


def test_a_row_starts_from_what_was_found_the_last_time_that_it_was_drawn(float64):
    warm, seen = updated(Remembering(), 30)
    cold, unseen = updated(Remembering(warm=False), 30)
    assert cold.memory is None
    assert set(np.asarray(warm.memory)) <= {COLD, *seen["y"]}
    assert np.sum(np.asarray(warm.memory) != COLD) == len(set(np.asarray(warm.memory)) - {COLD}) > 1
    assert seen["solver/steps"].sum() < 0.8 * unseen["solver/steps"].sum()
    np.testing.assert_allclose(warm.params, cold.params, rtol=1e-6)  # the solver's tolerance, 1e-8, through 30 updates
    np.testing.assert_allclose(seen["grad/norm"], unseen["grad/norm"], rtol=1e-6)


@pytest.mark.slow
def test_cutting_a_run_changes_no_bit_of_its_memory():
    whole, _ = updated(Remembering(), 20)
    parts, _ = updated(Remembering(), 7, 1, 12)
    np.testing.assert_array_equal(whole.memory, parts.memory)
    np.testing.assert_array_equal(whole.params, parts.params)


def test_an_update_that_fails_leaves_the_memory():
    state, seen = updated(Remembering(breaks=True), 20)
    assert int(state.fault) > 0
    assert set(np.asarray(state.memory)) <= {np.float32(COLD), *seen["y"][:-1]}


def test_a_memory_is_not_differentiated(float64):
    problem = Remembering()
    batch = problem.recall(problem.memory(), {"row": jnp.array(1), "x": jnp.array(1.2)})
    solve = implicitexp.solving.Solve(solvers.Newton(), strategies.Implicit())
    moved = jax.jit(jax.grad(lambda guess: problem.loss(jnp.array(2.0), batch | {"guess": guess}, solve)[0]))
    assert float(moved(batch["guess"])) == 0.0


@pytest.mark.slow
def test_checks_start_where_the_update_does(tmp_path, float64):
    """The cost of a warm solve is that of the update, and the verdict stands on it."""
    from runs import a_run

    run = a_run(tmp_path, Remembering(), solver=solvers.Newton(), steps=30, check_every=15, precision="float64")
    assert run.status == "finished"
    last = run.content["gradient_check"]["last"]
    assert last["relative_error"] + last["uncertainty"] < 1e-6
