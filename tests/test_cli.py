"""The command line: what is refused, and how; what runs, as processes of their own."""

import json
import os
import re
import shlex
import signal
import subprocess
import time
from pathlib import Path

import hydra
import own_problems
import pytest
from command_line import CONSOLE, MODULE, process

import implicitexp
from implicitexp import __main__ as cli
from implicitexp.configuration import folders
from implicitexp.errors import ConfigError

SECONDS_TO_REFUSE = 2.0  # for the whole process; measured 0.9 to 1.2 s on two busy cores
SECONDS_TO_HELP = 1.0  # measured 0.4 to 0.7 s


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with modules and configurations of a user's own."""
    folder = tmp_path_factory.mktemp("own")
    own_problems.written(folder)
    return folder


@pytest.fixture(scope="module")
def composers(place):
    """Composers by their --config-dir, shared since each remembers what it has composed."""
    return {None: cli.Composer(), "conf": cli.Composer(place / "conf")}


@pytest.fixture
def here(place, monkeypatch):
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    return place


def refusal(composers, line: str) -> str:
    """The message for a command line, from all that runs before JAX is imported; fails where nothing is refused."""

    def before_jax():
        command = cli.parse(shlex.split(line))
        given = command.flags.config_dir
        shared = given in composers and command.flags.config_name is None and command.flags.config_path is None
        composer = composers[given] if shared else cli.prepared(shlex.split(line))[1]
        composer.checked_jobs(command)

    with pytest.raises(ConfigError) as caught:
        before_jax()
    return str(caught.value)


# Command line -> what its message must say: the key, the bad value, the valid ones, the nearest match.
REFUSED = {
    "": ["problem is missing", "problem=NAME", "brachistochrone", "root_kepler"],
    "problem=odee": ["problem=odee", "did you mean ode?", "root_kepler"],
    "problem=null": ["problem=null", "root_kepler"],
    "problem=[ode,root_kepler]": ["problem=[ode,root_kepler]", "root_kepler"],
    "sovler=newton problem=ode": ["sovler=newton", "did you mean solver?", "optimizer"],
    "problem=ode solver=newtn": ["solver=newtn", "did you mean newton?", "tsit5"],
    "problem=ode gradient=adjiont": ["gradient=adjiont", "did you mean adjoint?", "unroll"],
    "problem=ode optimizer=adamm": ["optimizer=adamm", "did you mean adam?", "lbfgs"],
    "problem=ode device=cuda": ["device=cuda", "auto, cpu, gpu"],
    "problem=ode tracker=wandb": ["tracker=wandb", "mlflow, none"],
    "problem=ode experiment=quik": ["experiment=quik", "did you mean quick?"],
    "problem=ode steps=-3": ["steps=-3", "a whole number 0 or more"],
    "problem=ode steps=abc": ["steps=abc", "a whole number"],
    "problem=ode steps=1.5": ["steps=1.5", "a whole number"],
    "problem=ode steps=true": ["steps=true", "a whole number"],
    "problem=ode steps=null": ["steps=null", "a whole number"],
    "problem=ode stepps=4": ["stepps=4", "did you mean steps?", "log_every"],
    "problem=ode rtol=1e-3": ["rtol=1e-3", "did you mean solver.rtol?"],
    "problem=ode optimizer.lr=1e-3": ["optimizer.lr=1e-3", "learning_rate"],
    "problem=ode solver.rtol=0": ["solver.rtol=0", "above 0"],
    "problem=ode solver.rtol=nan": ["solver.rtol=nan", "above 0"],
    "problem=ode solver.rtl=1": ["solver.rtl=1", "did you mean rtol?", "max_steps"],
    "problem=ode solver=euler solver.rtol=1": ["solver.rtol=1", "dt0"],
    "problem=ode solver.when_not_converged=go": ["when_not_converged=go", "keep, stop"],
    "problem=brachistochrone problem.P=[1,-1]": ["problem.P=[1,-1]", "above 0", "-1"],
    "problem=brachistochrone problem.P=[1,2,3]": ["problem.P=[1,2,3]", "2 numbers"],
    "problem=brachistochrone problem.P=3": ["problem.P=3", "a list"],
    "problem=brachistochrone problem.P=[1,a]": ["problem.P=[1,a]", "a number"],
    "problem=brachistochrone problem.formulation=rot": ["formulation=rot", "did you mean root?", "direct, ode, root"],
    "problem=root_kepler problem.eccentricity=1.5": ["problem.eccentricity=1.5", "from 0 to 0.99"],
    "problem=brachistochrone problem.formulation=root solver=tsit5": ["solver=tsit5", "an ODE", "a root", "newton"],
    "problem=root_kepler solver=tsit5": ["solver=tsit5", "root_kepler", "auto, bisection, chord, dogleg"],
    "problem=ode solver=newton": ["solver=newton", "problem=ode", "dopri8, euler, fixed_step"],
    "problem=ode gradient=unroll gradient.last=3": ["gradient.last=3", "an ODE", "gradient=adjoint"],
    "problem=root_kepler gradient=unroll gradient.last=0": ["gradient.last=0", "1 or more"],
    "problem=ode gradient.linear_solver=lux": ["linear_solver=lux", "did you mean lu?", "gmres"],
    "problem=integral_pendulum solver=gauss_kronrod solver.order=22": ["solver.order=22", "15, 21, 31"],
    "problem=ode precision=float16": ["precision=float16", "float32, float64"],
    "problem=ode task=comparee": ["task=comparee", "did you mean compare?"],
    "problem=ode optimizer.learning_rate=0": ["optimizer.learning_rate=0", "above 0"],
    "problem=ode optimizer.b1=2": ["optimizer.b1=2", "1 or less"],
    "problem=ode optimizer=lbfgs optimizer.linesearch.tol=-1": ["linesearch.tol=-1", "0 or more"],
    "problem=ode check_every=0": ["check_every=0", "1 or more"],
    "problem=ode patience=0": ["patience=0", "1 or more", "null"],
    "problem=ode target_loss=low": ["target_loss=low", "a number"],
    "problem=ode optimizer/schedule=cosin": ["optimizer/schedule=cosin", "did you mean cosine?", "warmup_cosine"],
    "problem=ode optimizer/schedule=cosine optimizer.learning_rate.decay_steps=0": ["decay_steps=0", "1 or more"],
    "problem=ode optimizer=muon optimizer.preconditioning=none": ["preconditioning=none", "frobenius"],
    "problem=ode device=mesh task=compare": ["device=mesh", "one device", "device=auto"],
    "problem=ode clip_norm=0": ["clip_norm=0", "above 0"],
    "problem=ode seed=-1": ["seed=-1"],
    "problem=ode reference.target=0": ["reference.target=0"],
    "problem=ode reference=5": ["reference=5", "target"],
    "problem=ode +foo=1": ["+foo=1", "no key 'foo'"],
    "problem=ode +steps=5": ["+steps=5", "leave the + away"],
    "problem=ode +solver.foo=1": ["+solver.foo=1", "rtol"],
    "problem=ode ~steps": ["steps is missing"],
    "problem=ode ~solver": ["solver is missing"],
    "problem=ode ~foo": ["foo"],
    "problem=ode steps=1,2": ["steps=1,2", "-m"],
    "problem=ode steps=[1": ["steps=[1", "cannot be read"],
    "problem=ode steps": ["steps", "NAME=VALUE"],
    "problem=ode steps=${foo}": ["steps", "foo"],
    "problem=ode hints.kinds=[root]": ["hints.kinds", "not for the command line"],
    "problem=ode hydra.rundir=x": ["hydra.rundir"],
    "problem=ode hydra.searchpath=[file:///none]": ["hydra.searchpath", "/none"],
    "problem=ode problem._target_=implicitexp.problems.Keplr": ["implicitexp.problems.Keplr", "did you mean Kepler?"],
    "problem=ode optimizer._target_=optax.adamz": ["optax.adamz", "did you mean adam"],
    "problem=ode optimizer.learning_rate={_target_:optax.nope}": ["optimizer.learning_rate._target_=optax.nope"],
    "problem=ode solver.ode={_target_:implicitexp.solvers.Tsit6}": ["solver.ode._target_", "did you mean Tsit5?"],
    "problem=ode --frobnicate": ["--frobnicate", "--config-dir"],
    "problem=ode --resolve": ["--resolve", "--cfg"],
    "problem=ode --config-dir nonexist": ["--config-dir nonexist", "no such folder"],
    "problem=ode --config-name nonexist": ["nonexist"],
    "problem=root_kepler gradient=per_kind gradient.ode.rtol=0": ["gradient.ode.rtol=0", "above 0"],
    "problem=root_kepler solver=per_kind solver.root.max_steps=0": ["solver.root.max_steps=0", "1 or more"],
    "--config-dir conf problem=keplerr": ["problem=keplerr", "did you mean kepler?", "root_kepler"],
    "--config-dir conf problem=kepler problem.taget=2": ["problem.taget=2", "did you mean target?"],
    "--config-dir conf problem=kepler problem.target=far": ["problem.target=far", "a number"],
    "--config-dir conf problem=tab": ["conf/problem/tab.yaml", "line 3", "not YAML"],
    "--config-dir conf problem=latin": ["conf/problem/latin.yaml", "UTF-8"],
    "--config-dir conf problem=list": ["problem=list", "keys and values"],
    "--config-dir conf problem=mandatory": ["problem.mean_anomaly=???", "problem.mean_anomaly=VALUE"],
    "--config-dir conf problem=classless": ["problem", "_target_: module.Name"],
    "--config-dir conf problem=dangling": ["problem.target", "foo.bar"],
    "--config-dir conf problem=toplevel": ["stepss", "did you mean steps?"],
    "--config-dir conf problem=badhints": ["rot", "did you mean root?"],
    "--config-dir conf problem=misspelt": ["own.Keppler", "own.py", "did you mean Kepler?"],
    "--config-dir conf problem=nomodule": ["my_modul.Kepler", "no module 'my_modul'"],
    "--config-dir conf problem=syntax": ["own_syntax.Kepler", "own_syntax.py, line 1"],
    "problem=ode sort_by=los": ["sort_by=los", "did you mean loss?"],
    "experiment=compare_all": ["experiment=compare_all", "a sweep over problem", "add -m"],
    "experiment=residual_or_ode steps=1": ["experiment=residual_or_ode", "problem.layer, seed", "add -m"],
    "-m experiment=brachistochrone_all problem=root_kepler": ["formulation", "eccentricity"],
    "-m experiment=compare_all steps=-1": ["steps=-1", "0 or more"],
    "-m problem=root_kepler hydra/launcher=loca": ["hydra/launcher=loca", "did you mean local?", "basic"],
    "-m problem=root_kepler hydra.launcher.n_jobs=2": ["n_jobs", "hydra/launcher=local"],
    "-m problem=root_kepler hydra/launcher=local hydra.launcher.n_jobs=0": ["hydra.launcher.n_jobs=0", "1 or more"],
    "-m problem=root_kepler,odee": ["problem=odee", "did you mean ode?"],
    "-m +problem=root_kepler gradient=unroll,implicit solver.rtol=0,1e-3": ["solver.rtol=0", "above 0"],
    "-m problem=root_kepler,ode solver=newton": ["solver=newton", "problem=ode"],
    "-m problem=root_kepler steps=range(1,3) seed=-1": ["seed=-1"],
    "-m problem=root_kepler solver.rtol=interval(0,1) seed=-1": ["seed=-1"],
}  # fmt: skip


@pytest.mark.parametrize("line", REFUSED, ids=str)
def test_bad_input_is_refused_with_one_message_that_helps(composers, here, line):
    before = sorted(here.rglob("*"))
    message = refusal(composers, line)
    for part in REFUSED[line]:
        assert part in message
    assert "\n" not in message
    assert "HYDRA_FULL_ERROR" not in message
    assert sorted(path for path in here.rglob("*") if "__pycache__" not in path.parts) == before


# What only building and tracing can find out -> class and method, or the class and its arguments.
LATE = {
    "vector": ["own.Vector.loss", "scalar"],
    "nothing": ["own.Nothing.loss", "scalar"],
    "notanumber": ["own.NotANumber.loss", "nan", "own.NotANumber.init"],
    "words": ["own.Words.init", "array"],
    "whole": ["own.Whole.init", "floating point"],
    "picky": ["problem", "own.Picky", "target must be above 2"],
    "abstract": ["problem", "own.Abstract", "loss"],
    "misfit": ["problem", "own.Kepler", "targett", "mean_anomaly, target"],
    "broken": ["problem._target_=own_broken.Kepler", "no licence", "own_broken.py, line 2"],
    "kepler solver=tsit5": ["Tsit5", "own.Kepler.loss", "a root"],
    "kepler device=gpu": ["device=gpu", "cpu"],
    "kepler optimizer._target_=optax.sgd": ["optimizer", "b1", "momentum"],
}


@pytest.mark.parametrize("line", LATE, ids=str)
def test_an_own_problem_is_refused_with_class_and_method(here, line):
    with pytest.raises(ConfigError) as caught:
        implicitexp.run([*f"problem={line}".split(), "tracker=none", "steps=1"], config_dir="conf")
    for part in LATE[line]:
        assert part in str(caught.value)
    assert not (here / "runs").exists()


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
    assert {row["gradient"]["name"] for row in rows} == {
        "unroll",
        "implicit",
        "adjoint",
        "forward",
        "finite_difference",
    }
