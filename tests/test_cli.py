"""The command line: what runs, and how it ends, as processes of their own. What is refused: `test_messages.py`."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import hydra
import pytest
from command_line import CONSOLE, MODULE, process

import implicitexp
from implicitexp.configuration import folders

SECONDS_TO_REFUSE = 2.0  # for the whole process; measured 0.9 to 1.2 s on two busy cores
SECONDS_TO_HELP = 1.0  # measured 0.4 to 0.7 s


def test_run_in_python_gives_what_the_command_line_writes(here, tmp_path):
    """While Hydra is in use for something else, too: composing has no global state."""
    given = ["+problem=root_kepler", "problem.target=2", "tracker=none", "steps=2", f"hydra.run.dir={tmp_path}/a"]
    with hydra.initialize_config_dir(str(folders.shipped()), version_base="1.3"):
        done = implicitexp.run(given, config_dir=here / "conf")
    assert done.exit_status == 0
    assert done.folder == tmp_path / "a"
    assert done.status == json.loads((tmp_path / "a" / "result.json").read_text())["status"] == "finished"


def without_jax(folder: Path) -> dict[str, str]:
    """Variables under which importing JAX fails: what still works has not imported it."""
    (folder / "barrier" / "jax").mkdir(parents=True, exist_ok=True)
    (folder / "barrier" / "jax" / "__init__.py").write_text("raise SystemExit('JAX was imported')")
    return {"PYTHONPATH": str(folder / "barrier")}


@pytest.mark.parametrize("command", [MODULE, CONSOLE], ids=["module", "console script"])
def test_a_wrong_configuration_ends_in_two_seconds(tmp_path, command):
    """No traceback, nothing written, before JAX is imported. The better of two, since others use this machine."""
    variables = without_jax(tmp_path)
    work = tmp_path / "work"
    work.mkdir()
    runs = [process(command, "+problem=root_kepler solver=tsit5", work, **variables) for _ in range(2)]
    for done, _ in runs:
        assert done.returncode == 2
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1
        assert "auto, bisection, chord, dogleg, levenberg_marquardt, newton" in done.stderr
    assert list(work.iterdir()) == []
    assert min(seconds for _, seconds in runs) < SECONDS_TO_REFUSE


def test_help_lists_everything_without_a_problem(place, tmp_path):
    variables = without_jax(tmp_path)
    runs = [process(MODULE, f"--help --config-dir {place}/conf", tmp_path, **variables) for _ in range(2)]
    for done, _ in runs:
        assert done.returncode == 0, done.stderr
        assert re.search(r"^  kepler +Kepler of my own$", done.stdout, flags=re.MULTILINE)
        assert re.search(r"^  root_kepler +Kepler's equation", done.stdout, flags=re.MULTILINE)
    assert min(seconds for _, seconds in runs) < SECONDS_TO_HELP


def test_hydra_answers_its_own_flags(tmp_path):
    done, _ = process(
        CONSOLE, "+problem=root_kepler +gradient=adjoint steps=7 --cfg job", tmp_path, **without_jax(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    assert "steps: 7" in done.stdout
    assert "implicitexp.strategies.Adjoint" in done.stdout
    done, _ = process(CONSOLE, "+problem=odee --cfg job", tmp_path)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


@pytest.mark.slow
def test_a_run_leaves_a_complete_folder_where_it_says(tmp_path):
    done, _ = process(CONSOLE, "+problem=root_kepler steps=2 check_every=2 tracker=none", tmp_path)
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").glob("*/*")
    assert {"config.yaml", "metrics.jsonl", "result.json", "params.npz"} <= {path.name for path in folder.iterdir()}
    assert folder.name in re.sub(r"[│\s]", "", done.stdout)  # the table folds long paths
    assert json.loads((folder / "result.json").read_text())["problem"] == "root_kepler"


@pytest.mark.slow
def test_exit_status_of_a_failed_run_and_of_a_bug(here, tmp_path):
    line = f"--config-dir conf tracker=none optimizer=sgd optimizer.learning_rate=0.1 hydra.run.dir={tmp_path}/a"
    done, _ = process(MODULE, f"{line} problem=cliff steps=60", here)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    done, _ = process(MODULE, f"{line}/b problem=buggy", here)
    assert done.returncode == 1
    assert "undefined_name" in done.stderr
    assert not (tmp_path / "a" / "b").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_an_interrupted_run_is_recorded_as_killed(tmp_path, number, status):
    line = f"problem=root_kepler steps=100000000 tracker=none hydra.run.dir={tmp_path}/run"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    running = subprocess.Popen([*MODULE, *line.split()], cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    log = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and log.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    running.send_signal(number)
    assert running.wait(60) == status
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "killed"


@pytest.mark.slow
def test_compare_has_a_row_for_every_strategy(tmp_path):
    done, _ = process(MODULE, f"problem=root_kepler task=compare tracker=none hydra.run.dir={tmp_path}/run", tmp_path)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "run" / "result.json").read_text())["strategies"]
    shipped = {path.stem for path in (folders.shipped() / "gradient").glob("*.yaml")} - {"per_kind"}
    assert {row["gradient"]["name"] for row in rows} == shipped
