"""`device=mesh`: the minibatch shared among devices, and among processes, gives the numbers of one device."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from runs import ADAM, Drawn, a_run

from implicitexp import device, prepare, problems, solvers, strategies
from implicitexp.errors import ConfigError
from implicitexp.experiment import advance

ROUNDING = 1e-5  # relative, in float32: sums over the minibatch in another order, through a few updates
SECONDS = 400  # for two processes that compile at the same time


@pytest.mark.slow
def test_a_mesh_gives_the_numbers_of_one_device(tmp_path):
    alone = a_run(tmp_path / "alone", Drawn(), steps=5, log_every=1, check_every=5)
    with device.configured("mesh", "float32") as mesh:
        shared = a_run(tmp_path / "shared", Drawn(), steps=5, log_every=1, check_every=5, mesh=mesh)
    assert shared.device == "mesh of 2: cpu"
    one, two = ([line["loss"] for line in run.history if "loss" in line] for run in (alone, shared))
    np.testing.assert_allclose(one, two, rtol=ROUNDING)
    np.testing.assert_allclose(alone.params["eccentricity"], shared.params["eccentricity"], rtol=ROUNDING)
    assert shared.gradient_check["last"]["relative_error"] < ROUNDING


def test_each_device_computes_a_part():
    """The compiled program adds up gradients between devices, and its minibatch has half of the rows on each."""
    with device.configured("mesh", "float32") as mesh:
        parts = (Drawn(rows=6), solvers.Auto(), strategies.Implicit(), ADAM)
        experiment, state, key = prepare.prepare(*parts, mesh=mesh)
        one = jnp.array(1, jnp.int32)
        program = advance.lower(experiment, state, key, one, one).compile().compiled.as_text()
    assert "all-reduce" in program
    assert "f32[3]" in program
    assert "f32[6]" not in program.replace("f32[6]{0} parameter", "")


@pytest.mark.parametrize(
    ("problem", "words"),
    [(problems.Kepler(), ["Kepler.batch", "device=auto"]), (Drawn(rows=7), ["multiple of 2", "7"])],
    ids=["no minibatch", "odd"],
)
def test_what_cannot_be_shared_is_refused(problem, words):
    with device.configured("mesh", "float32") as mesh, pytest.raises(ConfigError) as refusal:
        prepare.prepare(problem, solvers.Auto(), strategies.Implicit(), ADAM, mesh=mesh)
    assert all(word in str(refusal.value) for word in words), str(refusal.value)


def test_a_coordinator_needs_to_know_the_processes(monkeypatch):
    monkeypatch.setenv("JAX_COORDINATOR_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("JAX_NUM_PROCESSES", "two")
    with pytest.raises(ConfigError, match="JAX_NUM_PROCESSES and JAX_PROCESS_ID must be whole numbers"):
        device.mesh()


@pytest.mark.slow
def test_two_processes_are_one_mesh(tmp_path):
    """As on two hosts: the first keeps the record, the second writes nothing, and the numbers are those of one device."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    (tmp_path / "conf" / "problem").mkdir(parents=True)
    (tmp_path / "conf" / "problem" / "drawn.yaml").write_text("_target_: runs.Drawn\n")
    command = [sys.executable, "-m", "implicitexp", f"--config-dir={tmp_path}/conf", "problem=drawn", "steps=3",
               "check_every=3", "log_every=1", "tracker=none"]  # fmt: skip
    fast = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # to compile, on one device
    here = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "XLA_FLAGS": fast, "JAX_PLATFORMS": "cpu", "PYTHONPATH": here}

    def run(folder, *more, **extra):
        line = [*command, f"hydra.run.dir={tmp_path / folder}", *more]
        return subprocess.Popen(line, env=environment | extra, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    hosts = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    both = [run(f"shared{i}", "device=mesh", **hosts, JAX_PROCESS_ID=str(i)) for i in range(2)]
    outputs = [process.communicate(timeout=SECONDS) for process in both]
    assert [process.returncode for process in both] == [0, 0], outputs
    with run("alone", "device=cpu") as one:
        assert one.wait(SECONDS) == 0
    shared, alone = (json.loads((tmp_path / name / "result.json").read_text()) for name in ("shared0", "alone"))
    assert shared["device"] == "mesh of 2: cpu"
    assert not (tmp_path / "shared1").exists()
    np.testing.assert_allclose(shared["params"], alone["params"], rtol=1e-3, atol=ROUNDING)
