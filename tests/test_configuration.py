"""conf/ against the classes it describes, and configuration parsing: whatever is typed is either valid or refused."""

import importlib
import inspect
import re

import pytest
import yaml
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from implicitexp.__main__ import parse
from implicitexp.composing import Composer
from implicitexp.configuration import folders, manual, rules, validation
from implicitexp.errors import ConfigError

CONF = folders.shipped()
FILES = sorted(path for path in CONF.rglob("*/*.yaml") if path.relative_to(CONF).parts[0] != "hydra")
OWN_NODES = ("solver", "gradient", "optimizer", "problem")  # groups whose files instantiate a class

# Arguments that YAML cannot say: a function over parameters, and printing from inside compiled code.
NOT_IN_YAML = {"optax.adamw": {"mask"}, "optax.scale_by_zoom_linesearch": {"verbose"}}


@pytest.fixture(scope="module")
def composer():
    return Composer()


def parameters(target: str) -> dict[str, inspect.Parameter]:
    module, _, name = target.rpartition(".")
    return dict(inspect.signature(getattr(importlib.import_module(module), name)).parameters)


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


LBFGS_DEFAULTS = {"initial_guess_strategy": "one"}  # of its line search; that line search alone has another

# For solvers that do not fit a root: a problem that they fit.
FITS = {
    **dict.fromkeys(("anderson", "newton_fixed_point", "picard"), "fixed_point_ridge"),
    **dict.fromkeys(("clenshaw_curtis", "gauss_kronrod", "gauss_legendre", "romberg", "tanh_sinh"), "integral_pendulum"),
    **dict.fromkeys(("dopri5", "dopri8", "euler", "fixed_step", "heun", "implicit_euler", "kvaerno3", "kvaerno5",
                     "leapfrog", "midpoint", "tsit5"), "ode_exponential"),
}  # fmt: skip
OF_KIND = {"ode": "ode_exponential", "integral": "integral_pendulum"}
FITS |= {name: OF_KIND[kinds[0]] for name, kinds in manual.strategy_kinds(CONF).items() if kinds[0] in OF_KIND}
CASES = [(group, name) for group in OWN_NODES for name in options(group)]


@pytest.mark.parametrize(("group", "name"), CASES, ids=lambda x: x)
def test_every_field_of_every_class_stands_in_its_yaml(composer, group, name):
    problem = name if group == "problem" else FITS.get(name, "root_kepler")
    config, _ = composer.checked([f"problem={problem}", *([] if group == "problem" else [f"{group}={name}"])])
    nodes = [(key, node) for key, node in validation.nodes(group, config[group]) if "learning_rate" not in key]
    assert nodes
    for key, node in nodes:
        target = node["_target_"]
        known = parameters(target)
        assert set(node) - {"_target_"} == set(known) - NOT_IN_YAML.get(target, set()), key
        if target.startswith("implicitexp.problems."):
            continue
        assert set(node) - {"_target_"} <= set(rules.of(target)), f"{target} has a field without a rule"
        for field, value in node.items():
            default = known[field].default if field in known else None
            if isinstance(default, int | float | str):
                assert value == LBFGS_DEFAULTS.get(field, default), f"{key}.{field} is not what {target} has by default"


def test_every_rule_is_about_a_field():
    """The table of rules is a table of fields, too."""
    targets = {"implicitexp.solvers.Auto", "implicitexp.strategies.PerKind"}
    for path in CONF.rglob("*.yaml"):
        targets |= set(re.findall(r"_target_: ([\w.]+)$", path.read_text(), flags=re.MULTILINE))
    fields = {target: set(parameters(target)) for target in targets if "problems" not in target}
    for table in (*rules.OF_TARGET.values(), *rules.OF_ONE.values()):
        described = [fields[target] for target in fields if set(table) & set(rules.of(target))]
        assert set(table) <= set().union(*described)


@pytest.mark.parametrize("path", [CONF / "config.yaml", *FILES], ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_value_has_a_comment(path):
    text = path.read_text()
    assert manual.first_comment(path), "the first line of comment is the one of --help"
    section = ""
    for line in text.splitlines():
        section = line.partition(":")[0] if re.match(r"\w", line) else section
        value = re.match(r" *(?!_target_)[\w@/]+: +[^#\s]", line)
        if value and section not in ("defaults", "hydra") and not (section == "hints" and path.name != "config.yaml"):
            assert "#" in line, line


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_help_has_a_line_for_every_option(path):
    text = manual.text(CONF)
    assert re.search(rf"^  {path.stem} +{re.escape(manual.first_comment(path)[:40])}", text, flags=re.MULTILINE)


def test_help_has_every_value_of_the_top():
    text = manual.text(CONF)
    for key, value in yaml.safe_load((CONF / "config.yaml").read_text()).items():
        if key not in ("defaults", "hints", "hydra"):
            assert re.search(rf"^  {key}[.=]", text, flags=re.MULTILINE), (key, value)


def test_integers_become_floats_where_a_number_is_asked_for(composer):
    config, _ = composer.checked(["problem=root_kepler", "solver.rtol=1", "clip_norm=2"])
    assert isinstance(config["solver"]["rtol"], float)
    assert isinstance(config["clip_norm"], float)


def test_hints_do_not_reach_the_record(composer):
    config, _ = composer.checked(["problem=ode"])
    assert "hints" not in config
    assert config["optimizer"]["learning_rate"]["decay_steps"] == config["steps"]
    assert config["optimizer"]["_target_"] == "optax.adamw"


def test_a_preset_wins_over_a_problem_and_the_command_line_over_both(composer):
    config, _ = composer.checked(["problem=ode", "experiment=quick", "check_every=5"])
    assert (config["steps"], config["check_every"], config["tracker"]) == (20, 5, {})


@pytest.mark.parametrize("group", [*validation.GROUPS, "experiment"])
def test_the_plus_of_our_own_groups_is_optional(group):
    assert parse([f"+{group}=x", f"+{group}=x,y", "-m"]).overrides == [f"{group}=x", f"{group}=x,y"]
    assert parse([f"+{group}.x=1"]).overrides == [f"+{group}.x=1"]


def test_runs_of_the_same_second_have_folders_of_their_own():
    composers = [Composer() for _ in range(3)]
    where = {str(c.checked(["problem=root_kepler"])[1].hydra.run.dir) for c in composers}
    assert len(where) == 3
    assert all(re.fullmatch(r"runs/\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d-[0-9a-f]{6}", folder) for folder in where)


def attempt(call):
    """-> what it returns, and the message of the `ConfigError` that it raises instead; any other exception passes."""
    try:
        return call(), ""
    except ConfigError as error:
        return None, str(error).strip()


KEYS = st.sampled_from([
    *rules.TOP, *(f"solver.{key}" for key in rules.SOLVER), *(f"gradient.{key}" for key in rules.GRADIENT),
    *(f"optimizer.{key}" for key in rules.OPTIMIZER), "problem.target", "problem._target_", "solver._target_", "problem",
    "reference", "hints", "hints.kinds", "hydra.run.dir", "problem.target.x", "stepps", "a.b",
])  # fmt: skip
VALUES = st.one_of(
    st.none().map(lambda _: "null"),
    st.integers().map(str),
    st.floats().map(str),
    st.booleans().map(lambda x: str(x).lower()),
    st.sampled_from(["", "abc", "[1,2]", "[a,[1]]", "{a: 1}", "{_target_: os.getcwd}", "${seed}", "${x}", "???", "1,2",
                     "'a b'", "range(3)", "5.", "1e400", "implicitexp.problems.Kepler", "a.b.c", "\\"]),
    st.text(max_size=8),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(plus=st.sampled_from(["", "", "", "+", "++", "~"]), key=KEYS, value=VALUES)
@example(plus="", key="steps", value="9" * 30)
@example(plus="~", key="seed", value="0")
@example(plus="", key="solver.rtol", value="${solver.rtol}")
def test_an_override_is_valid_or_refused(composer, plus, key, value):
    """Never a traceback: a message, or a complete configuration."""

    def compose():
        (overrides,) = composer.jobs(parse(["problem=root_kepler", f"{plus}{key}={value}"]))
        return composer.checked(overrides)[0]

    config, message = attempt(compose)
    assert message or {key.partition(".")[0] for key in rules.TOP} <= set(config)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.text(max_size=30), max_size=3))
@example(["-m"])
@example(["--config-dir"])
@example(["--info=x"])
@example(["+"])
@example(["=", "a=b=c"])
def test_any_command_line_is_read_or_refused(argv):
    assume("--version" not in argv)  # answered before
    command, message = attempt(lambda: parse(argv))
    assert message or len(command.overrides) <= len(argv)
