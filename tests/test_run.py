"""The runner: reproducible to the bit, complete records whatever happens, optimizers as data."""

import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import ADAM, CHECK, COST, SCHEMA, Cliff, Drawn, a_run

import implicitexp
from implicitexp import problems, recipe, solvers, strategies
from implicitexp.errors import ConfigError
from implicitexp.experiment import Experiment
from implicitexp.training import Training


def test_the_record_of_a_run_is_complete(tmp_path):
    result = a_run(tmp_path / "run")
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result.status == "finished"
    assert result.exit_status == 0
    assert set(written) == SCHEMA
    assert written["schema"] == 1
    assert written["steps"] == 30
    for when in ("first", "last"):
        assert set(written["gradient_check"][when]) == CHECK
    assert set(written["cost"]) == COST
    assert set(written["reference"]) >= {"how", "uncertainty", "gradient"}
    assert written["loss"]["last"] < written["loss"]["first"]
    assert written["gradient_check"]["first"]["relative_error"] < 1e-5
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert names == {"config.yaml", "metrics.jsonl", "result.json", "params.npz", "run.png", "answer.png"}
    with np.load(tmp_path / "run" / "params.npz", allow_pickle=False) as file:
        assert file["eccentricity"] == written["params"][0] == float(result.params["eccentricity"])


def test_metrics_are_a_line_a_logged_step_and_checks_are_in_their_lines(tmp_path):
    a_run(tmp_path, log_every=7, check_every=10)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [0, 7, 10, 14, 20, 21, 28, 30]
    checked = [line["step"] for line in lines if "grad/relative_error" in line]
    assert checked == [0, 10, 20, 30]
    assert all("evaluate/eccentricity" in line for line in lines if line["step"] in checked)
    assert lines[-1]["time/train_s"] > 0
    assert lines[-1]["time/check_s"] > 0


def test_the_same_configuration_gives_the_same_bits_whatever_the_cadence(tmp_path):
    one = a_run(tmp_path / "a", Drawn(), steps=12, log_every=1, check_every=5)
    two = a_run(tmp_path / "b", Drawn(), steps=12, log_every=10, check_every=12)
    other = a_run(tmp_path / "c", Drawn(), steps=12, seed=1, check_every=12)
    for a, b, c in zip(*(jax.tree.leaves(r.params) for r in (one, two, other)), strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)
    losses = {line["step"]: line["loss"] for line in one.history}
    assert len(set(losses.values())) == len(losses)
    assert all(losses[line["step"]] == line["loss"] for line in two.history)


@pytest.mark.parametrize("steps", [0, 1])
def test_few_updates(tmp_path, steps):
    result = a_run(tmp_path, steps=steps)
    assert result.status == "finished"
    assert result.steps == steps
    assert (result.loss["first"] == result.loss["last"]) == (steps == 0)


def test_the_plain_update_is_sgd(tmp_path):
    result = a_run(tmp_path, optimizer={"_target_": "optax.sgd", "learning_rate": 0.1}, steps=1)
    first = result.gradient_check["first"]["value"][0]
    assert result.params["eccentricity"] == pytest.approx(0.1 - 0.1 * first, rel=1e-6)


@pytest.mark.parametrize(
    "optimizer",
    [
        {"_target_": "optax.lbfgs"},
        {"_target_": "optax.chain", "_args_": [{"_target_": "optax.clip_by_global_norm", "max_norm": 0.1}, ADAM]},
        pytest.param({"_target_": "optax.adamw", "learning_rate": {
            "_target_": "optax.warmup_cosine_decay_schedule", "init_value": 0.0, "peak_value": 0.05, "warmup_steps": 3,
            "decay_steps": 30}}, marks=pytest.mark.slow),
        pytest.param({"_target_": "optax.rmsprop", "learning_rate": 0.01}, marks=pytest.mark.slow),
    ],
    ids=lambda node: node["_target_"],
)  # fmt: skip
def test_any_optax_optimizer_trains(tmp_path, optimizer):
    result = a_run(tmp_path, optimizer=optimizer)
    assert result.loss["last"] < 0.2 * result.loss["first"]


def test_numbers_of_the_optimizer_are_data():
    node = {"_target_": "optax.sgd", "learning_rate": 0.1}
    parts = (problems.Kepler(), solvers.Auto(rtol=1e-6), strategies.Implicit(), recipe.from_node(node))
    numbers = Experiment.of(*parts).numbers()
    assert {"optimizer.named.learning_rate", "problem.target", "solver.rtol"} <= set(numbers)


def test_clipping_bounds_the_step(tmp_path):
    sgd = {"_target_": "optax.sgd", "learning_rate": 1.0}
    result = a_run(tmp_path, optimizer=sgd, steps=1, clip_norm=0.01)
    assert abs(float(result.params["eccentricity"]) - 0.1) == pytest.approx(0.01, rel=1e-4)


def test_training_ends_at_the_target(tmp_path):
    """At the first update whose loss is not above it, and with the parameters that have this loss."""
    whole = a_run(tmp_path / "whole", log_every=1, check_every=30)
    losses = [line["loss"] for line in whole.history if "loss" in line]
    result = a_run(tmp_path / "early", log_every=1, check_every=30, target_loss=losses[7])
    assert (result.status, result.steps, result.error) == ("finished", 7, None)
    assert result.loss["last"] == pytest.approx(losses[7], rel=1e-6)


class Rising(problems.Kepler):
    """Its loss is smallest at the first parameters, and gradient descent goes up."""

    def loss(self, params, batch, solve):
        value = super().loss(params, batch, solve)
        return 2 * jax.lax.stop_gradient(value) - value

    exact_loss = implicitexp.AbstractProblem.exact_loss


def test_training_ends_when_patience_is_over(tmp_path):
    sgd = {"_target_": "optax.sgd", "learning_rate": 0.01}
    result = a_run(tmp_path, Rising(), optimizer=sgd, patience=3, check_every=30)
    assert (result.status, result.steps) == ("finished", 3)
    assert result.loss["last"] > result.loss["first"]


@pytest.mark.parametrize("policy", ["stop", "keep"])
def test_a_root_that_ceases_to_exist_is_never_passed_off_as_a_value(tmp_path, policy):
    sgd = {"_target_": "optax.sgd", "learning_rate": 0.3}
    solver = solvers.Auto(when_not_converged=policy)
    result = a_run(tmp_path, Cliff(), optimizer=sgd, solver=solver, steps=10, check_every=10, log_every=1)
    updates = [line for line in result.history if "skipped" in line]
    if policy == "stop":
        assert (result.status, result.exit_status) == ("failed", 1)
        assert result.error == {"step": 4, "reason": "a solve did not converge"}
        assert updates[-1]["loss"] != updates[-1]["loss"]  # NaN in the history, null in the file
        assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[4])["loss"] is None
    else:
        assert (result.status, result.steps) == ("finished", 10)
        assert [line["skipped"] for line in updates] == [0.0] * 4 + [1.0] * 6
    assert float(result.params) == pytest.approx(0.2, abs=1e-6)  # as before the fault


def test_an_exception_in_training_leaves_a_complete_record(tmp_path, monkeypatch):
    from implicitexp.checking import Checker

    original = Checker.__call__

    def breaks(self, params, step, reference=None):
        if step >= 20:
            raise RuntimeError("the disk is full")
        return original(self, params, step, reference)

    monkeypatch.setattr(Checker, "__call__", breaks)
    result = a_run(tmp_path, check_every=10)
    written = json.loads((tmp_path / "result.json").read_text())
    assert (written["status"], result.exit_status) == ("failed", 1)
    assert written["error"] == {"step": 20, "reason": "RuntimeError: the disk is full"}
    assert "disk is full" in (tmp_path / "traceback.txt").read_text()
    assert len(written["params"]) == 1


@pytest.mark.parametrize(("number", "exit_status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_with_a_complete_record(tmp_path, monkeypatch, number, exit_status):
    original = Training.advance

    def interrupted(self):
        if self.step > 0:  # in the midst of training, however long compiling took
            os.kill(os.getpid(), number)
        return original(self)

    monkeypatch.setattr(Training, "advance", interrupted)
    result = a_run(tmp_path, steps=10**6, check_every=10**6)
    assert (result.status, result.exit_status) == ("killed", exit_status)
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["error"]["step"] == written["steps"] > 0
    assert written["gradient_check"]["first"]["relative_error"] < 1e-5


def broken(**methods):
    """A problem with these methods instead of Kepler's."""
    return type("Broken", (problems.Kepler,), methods)()


BAD_PROBLEMS = {
    "vector loss": (broken(loss=lambda self, params, batch, solve: jnp.ones(3)), r"Broken\.loss must return a scalar"),
    "nan": (broken(loss=lambda self, params, batch, solve: jnp.log(-1.0) * params["eccentricity"]),
            r"Broken\.loss is nan at the parameters that .*Broken\.init"),
    "init is text": (broken(init=lambda self, key: {"a": "text"}), r"Broken\.init must return a pytree of floating"),
    "init is a number": (broken(init=lambda self, key: 1.0), r"Broken\.init must return a pytree of floating"),
    "no parameters": (broken(init=lambda self, key: {}), r"Broken\.init must return a pytree of floating"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_PROBLEMS)
def test_a_bad_problem_is_refused_by_class_and_method_and_nothing_is_written(tmp_path, name):
    problem, message = BAD_PROBLEMS[name]
    with pytest.raises(ConfigError, match=message):
        a_run(tmp_path / "run", problem)
    assert not (tmp_path / "run").exists()


BAD_PARTS = {
    "solver": ({"solver": solvers.Tsit5()}, "solver=Tsit5 solves an ODE, but Kepler.loss solves a root"),
    "optimizer": ({"optimizer": {"_target_": "optax.adamm"}}, r"optimizer\._target_=optax\.adamm cannot be imported"),
    "argument": (
        {"optimizer": {"_target_": "optax.adam", "learning_speed": 1.0}},
        "does not fit.*It takes learning_rate",
    ),
    "last": ({"gradient": strategies.Unroll(last=2), "problem": problems.Exponential()}, "not defined for an ODE"),
}


@pytest.mark.parametrize("name", BAD_PARTS)
def test_parts_that_do_not_fit_are_refused(tmp_path, name):
    parts, message = BAD_PARTS[name]
    with pytest.raises(ConfigError, match=message):
        a_run(tmp_path / "run", **parts)
    assert not (tmp_path / "run").exists()


def test_a_figure_that_fails_is_a_warning(tmp_path, capsys):
    def figure(self, params, solve):
        raise ValueError("no ink")

    result = a_run(tmp_path, broken(figure=figure), steps=2)
    assert result.status == "finished"
    assert "answer.png could not be drawn: ValueError: no ink" in capsys.readouterr().err


def test_a_table_ends_a_run(tmp_path, capsys):
    a_run(tmp_path / "quiet", steps=2)
    assert capsys.readouterr().out == ""
    a_run(tmp_path / "run", steps=2, progress=True)
    printed = capsys.readouterr().out
    for word in ("loss", "gradient error, first", "ground truth", "closed form", "cost", "record"):
        assert word in printed


def test_results_are_attributes(tmp_path):
    result = a_run(tmp_path, steps=1)
    assert result.loss == result.content["loss"]
    with pytest.raises(AttributeError, match="it has schema"):
        _ = result.accuracy
