"""Shell completion: what TAB offers, asked as the shells ask, and through the functions that they are given."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from command_line import CONSOLE, environment, process

from implicitexp import __main__ as cli

SECONDS = 1.0  # for a question of the shell's, as a process; measured 0.33 s

# A line -> what is offered for its last word.
OFFERED = {
    "implicitexp problem=ro": "problem=root problem=root_kepler",
    "implicitexp +problem=ro": "+problem=root +problem=root_kepler",
    "/a/path/implicitexp problem=root_k": "problem=root_kepler",
    "implicitexp show problem=root_k": "problem=root_kepler",
    "implicitexp pro": "problem=",
    "implicitexp sh": "show",
    "implicitexp problem=ode solver=t": "solver=tsit5",  # not tanh_sinh, which is for integrals
    "implicitexp problem=brachistochrone problem.formulation=root solver=": (
        "solver=auto solver=bisection solver=chord solver=dogleg solver=levenberg_marquardt solver=newton solver=per_kind"
    ),
    "implicitexp problem=ode gradient=re": "gradient=replay gradient=reversible",  # not reuse, which is for roots
    "implicitexp problem=root gradient=re": "gradient=reuse",
    "implicitexp problem=ode sol": "solver. solver=",
    "implicitexp problem=ode solver.rt": "solver.rtol=",
    "implicitexp problem=ode optimizer/schedule=co": "optimizer/schedule=constant optimizer/schedule=cosine",
    "implicitexp problem=odee ste": "steps=",
    "implicitexp -m problem=root_kepler,fixed_point_": "problem=root_kepler,fixed_point_ridge",
    "implicitexp -m problem=root,ode hydra/launcher=l": "hydra/launcher=local",
    "implicitexp problem=ode task=": "task=compare task=train",
    "implicitexp problem=ode optimizer.nesterov=": "optimizer.nesterov=false optimizer.nesterov=true",
    "implicitexp problem=brachistochrone problem.formulation=": (
        "problem.formulation=direct problem.formulation=ode problem.formulation=root"
    ),
    "implicitexp problem=brachistochrone problem.P=": "problem.P=[2.0,1.0]",
    "implicitexp --config-dir conf problem=kep": "problem=kepler",
    "implicitexp --config-dir conf problem=kepler problem.ta": "problem.target=",
    "implicitexp --config-dir co": "conf/",
    "implicitexp --con": "--config-dir",
    "implicitexp list sch": "schedules",
    "implicitexp dashboard po": "port=",
    "implicitexp check own.K": "",
    "implicitexp problem=ode hydra.run.dir=": "",  # it has ${...} in it, which a shell would expand
    "implicitexp problem=ode seed='": "",
    "implicitexp --config-dir absent problem=": "",
    "implicitexp --config-dir conf problem=tab problem.": "",
}


@pytest.mark.parametrize("line", OFFERED)
def test_what_is_offered(line, place, monkeypatch, capsys):
    monkeypatch.chdir(place)
    monkeypatch.setenv("COMP_LINE", f"{line} and more behind the cursor")
    monkeypatch.setenv("COMP_POINT", str(len(line)))
    assert cli.dispatch(["-sc", "query=bash"]) == 0
    printed = capsys.readouterr()
    assert printed.out.split() == OFFERED[line].split()
    assert printed.err == ""


def test_nothing_slow_is_imported_for_it(tmp_path):
    """In a second, under a barrier where JAX would be; the better of two, since others use this machine."""
    (tmp_path / "jax").mkdir()
    (tmp_path / "jax" / "__init__.py").write_text("raise SystemExit('JAX was imported')")
    variables = {"PYTHONPATH": str(tmp_path), "COMP_LINE": "implicitexp problem=ode solver=t"}
    runs = [process(CONSOLE, "-sc query=bash", tmp_path, **variables) for _ in range(2)]
    assert {(done.returncode, done.stdout, done.stderr) for done, _ in runs} == {(0, "solver=tsit5\n", "")}
    assert min(seconds for _, seconds in runs) < SECONDS


# The script that a user's shell reads, and its function called as TAB calls it.
SHELLS = {
    "bash": """
        eval "$(implicitexp -sc install=bash)"
        COMP_LINE="implicitexp +problem=ro"; COMP_POINT=${#COMP_LINE}; COMP_CWORD=1
        complete -p implicitexp > /dev/null && hydra_bash_completion
        echo "${COMPREPLY[@]}" """,
    "zsh": """
        autoload -Uz compinit bashcompinit && compinit -u -D && bashcompinit
        eval "$(implicitexp -sc install=bash)"
        COMP_LINE="implicitexp +problem=ro"; COMP_POINT=${#COMP_LINE}; COMP_CWORD=1
        emulate ksh -c hydra_bash_completion
        echo $COMPREPLY""",
    "fish": """
        implicitexp -sc install=fish | source
        echo (complete -C "implicitexp +problem=ro")""",
}


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_itself_offers_it(shell, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    variables = environment(PATH=f"{Path(CONSOLE[0]).parent}:{os.environ['PATH']}")
    done = subprocess.run([shell, "-c", SHELLS[shell]], cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("+problem=root +problem=root_kepler\n", "")
