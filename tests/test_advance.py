"""Many updates in one call: which of their metrics are kept, and that this changes no bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import ADAM, Cliff

from implicitexp import prepare, problems, solvers, strategies
from implicitexp.experiment import ROWS, advance, most


def numbers(*values):
    return (jnp.array(x, jnp.int32) for x in values)


@pytest.fixture(scope="module")
def kepler():
    return prepare.prepare(problems.Kepler(), solvers.Newton(), strategies.Implicit(), ADAM)


def steps(rows):
    return np.asarray(rows.steps)[: int(rows.count)].tolist()


@pytest.mark.parametrize(
    ("count", "every", "kept"),
    [
        (0, 1, []),
        (1, 1, [0]),
        (1, 5, [0]),
        (4, 1, [0, 1, 2, 3]),
        (10, 4, [0, 4, 8, 9]),
        (9, 4, [0, 4, 8]),
        (9, 100, [0, 8]),
    ],
)
def test_the_first_the_last_and_every_nth_are_kept(kepler, count, every, kept):
    experiment, state, key = kepler
    after, rows, done = advance(experiment, state, key, *numbers(count, every))
    assert steps(rows) == kept
    assert int(done) == int(after.step) == count


def test_a_second_call_goes_on_at_the_next_multiple(kepler):
    experiment, state, key = kepler
    state, _, _ = advance(experiment, state, key, *numbers(10, 4))
    state, rows, _ = advance(experiment, state, key, *numbers(7, 4))
    assert steps(rows) == [10, 12, 16]


def test_what_is_kept_changes_no_bit(kepler):
    experiment, state, key = kepler
    one, all_rows, _ = advance(experiment, state, key, *numbers(20, 1))
    two, rows, _ = advance(experiment, state, key, *numbers(20, 6))
    assert jax.tree.all(jax.tree.map(np.array_equal, one, two))
    for name, x in rows.metrics.items():
        np.testing.assert_array_equal(x[: int(rows.count)], all_rows.metrics[name][np.array(steps(rows))])


def test_the_largest_call_fills_the_rows(kepler):
    experiment, state, key = kepler
    state, _, _ = advance(experiment, state, key, *numbers(1, 3))  # so that the first is no multiple
    _, rows, done = advance(experiment, state, key, *numbers(most(3), 3))
    assert int(done) == most(3)
    assert int(rows.count) <= ROWS
    assert steps(rows)[-1] == most(3)


def test_an_update_with_a_fault_is_the_last_row():
    experiment, state, key = prepare.prepare(Cliff(), solvers.Newton(), strategies.Implicit(), ADAM)
    state, rows, done = advance(experiment, state, key, *numbers(200, 1000))
    assert int(state.fault) > 0
    assert steps(rows) == [0, int(state.step)]
    assert int(done) == int(state.step) + 1
    assert not np.isfinite(rows.metrics["loss"][1])
