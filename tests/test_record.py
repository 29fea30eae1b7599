"""What is written down: JSON without NaN, hashes, recipes, devices."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from implicitexp import device, recipe, record, solvers, strategies
from implicitexp.errors import ConfigError


def test_json_has_null_for_what_is_not_finite():
    tree = {
        "a": math.nan,
        "b": [np.float32(1.5), np.inf],
        "c": jnp.array([1.0, -jnp.inf]),
        "d": True,
        "e": None,
        "f": 3,
        "g": "x",
    }
    assert json.loads(json.dumps(record.finite(tree), allow_nan=False)) == {
        "a": None, "b": [1.5, None], "c": [1.0, None], "d": True, "e": None, "f": 3, "g": "x",
    }  # fmt: skip


def test_a_reader_never_sees_half_a_file(tmp_path):
    path = tmp_path / "result.json"
    record.write_atomically(path, "old")
    record.write_atomically(path, "new" * 100_000)
    assert path.read_text() == "new" * 100_000
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_the_hash_is_of_what_changes_numbers():
    one = {"seed": 0, "optimizer": {"learning_rate": 0.1}, "tracker": {"uri": "a"}, "log_every": 1}
    assert record.config_hash(one) == record.config_hash(one | {"tracker": None, "log_every": 5})
    assert record.config_hash(one) != record.config_hash(one | {"seed": 1})


@pytest.mark.parametrize("size", [1000, 1001])
def test_long_parameters_stand_in_a_file(size):
    params = {"w": jnp.arange(size - 1.0), "b": jnp.array(5.0)}
    flat = record.flat_or_file(params, "params.npz")
    assert flat == {"file": "params.npz", "size": 1001} if size == 1001 else len(flat) == 1000 and flat[0] == 5.0


@pytest.mark.parametrize(("tree", "name"), [({"a": {"b": 1.0}}, "a.b"), ([1.0], "0"), (1.0, "params")])
def test_leaves_have_names(tree, name):
    assert list(record.named_leaves(tree)) == [name]


def test_a_recipe_builds_what_its_node_says():
    node = {"_target_": "optax.sgd", "learning_rate": {"_target_": "optax.linear_schedule", "init_value": 1.0, "end_value": 0.0,
                                                       "transition_steps": 10}}  # fmt: skip
    optimizer = recipe.from_node(node).build()
    updates, _ = optimizer.update(jnp.array(2.0), optimizer.init(jnp.array(0.0)))
    assert updates == -2.0
    with pytest.raises(ConfigError, match="module.name"):
        recipe.from_node({"_target_": "sgd"})


def test_a_partial_recipe_is_a_function():
    made = recipe.from_node({"_target_": "optax.adam", "_partial_": True, "b1": 0.5}).build()
    assert isinstance(made(learning_rate=0.1), optax.GradientTransformation)


def test_precision_and_device_are_as_they_were_afterwards():
    before = jax.config.jax_enable_x64
    with device.configured("cpu", "float64") as chosen:
        assert jnp.zeros(()).dtype == jnp.float64
        assert chosen.platform == "cpu"
        assert device.describe(device.current()).startswith("cpu")
    assert jax.config.jax_enable_x64 == before


def test_a_missing_device_is_refused_with_advice():
    with (
        pytest.raises(ConfigError, match="device=gpu is not available: JAX sees cpu here. Use device=auto"),
        device.configured("gpu"),
    ):
        pass


@pytest.mark.parametrize(
    ("made", "name"),
    [
        (solvers.GaussKronrod(), "gauss_kronrod"),
        (solvers.Tsit5(), "tsit5"),
        (strategies.FiniteDifference(), "finite_difference"),
    ],
)
def test_solvers_and_strategies_are_named_as_on_the_command_line(made, name):
    assert record.described(made)["name"] == name
    assert json.loads(json.dumps(record.described(made)))["options"] == {
        name: value
        for name, value in vars(made).items()
        if value is None or isinstance(value, bool | int | float | str)
    }
