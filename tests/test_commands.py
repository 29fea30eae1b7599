"""`implicitexp list` and `show`."""

import pytest
import yaml

from implicitexp import __main__ as cli
from implicitexp.configuration import folders
from implicitexp.errors import ConfigError

SHIPPED = folders.shipped()


@pytest.mark.parametrize(
    ("word", "group"), [("problems", "problem"), ("solvers", "solver"), ("schedules", "optimizer/schedule")]
)
def test_list_names_every_file(word, group, capsys):
    assert cli.dispatch(["list", word]) == 0
    printed = capsys.readouterr().out
    for path in (SHIPPED / group).glob("*.yaml"):
        assert f"  {path.stem} " in printed


def test_list_says_which_kinds(capsys):
    cli.dispatch(["list"])
    lines = capsys.readouterr().out.replace("\n                      ", " ").splitlines()
    of = {line.split()[0]: line for line in lines if line.startswith("  ")}
    assert "[integral, ode, root]" in of["brachistochrone"]
    assert "[ode]" in of["tsit5"]
    with pytest.raises(ConfigError, match="did you mean solvers"):
        cli.dispatch(["list", "solver"])


def test_show_is_the_resolved_configuration_with_the_files_comments(capsys):
    """Every line of it is YAML; a comment stands beside each key that has one in its file, whatever its package."""
    overrides = ["problem=brachistochrone", "optimizer/schedule=cosine", "problem.P=[3,1]", "steps=50"]
    assert cli.dispatch(["show", *overrides]) == 0
    printed = capsys.readouterr().out
    config, _ = cli.Composer().checked(overrides)
    assert yaml.safe_load(printed) == config
    comments = {line.split(":")[0].strip(): line.partition("  # ")[2] for line in printed.splitlines()}
    assert comments["seed"] == "of parameters, minibatches and noise"  # config.yaml
    assert comments["rtol"].startswith("relative tolerance")  # a group's own package
    assert comments["gravity"] == "m/s²"  # _global_
    assert comments["decay_steps"].startswith("updates until")  # a schedule inside the optimizer
    assert "decay_steps: 50" in printed


def test_show_refuses_what_a_run_refuses():
    with pytest.raises(ConfigError, match="did you mean ode"):
        cli.dispatch(["show", "problem=odee"])


def test_results_show_themselves_in_a_notebook(tmp_path):
    """As tables of text that is escaped, with the figure inside the page."""
    from runs import a_run

    result = a_run(tmp_path / "<run>", steps=3, check_every=3)
    page = result._repr_html_()
    assert "gradient error, last" in page
    assert "&lt;run&gt;" in page
    assert "<run>" not in page
    assert 'src="data:image/png;base64,' in page
