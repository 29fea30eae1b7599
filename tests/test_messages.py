"""Every error message has a row in `messages`, and every row provokes its message."""

import ast
import functools
import re
import shlex
from pathlib import Path

import jaxtyping
import pytest
from messages import CALLS, COMMANDS, ELSEWHERE, RUNS

import implicitexp
from implicitexp import __main__ as cli
from implicitexp import errors
from implicitexp.errors import ConfigError

ROOT = Path(__file__).parents[1]
RAISED = {name for name, cls in vars(errors).items() if isinstance(cls, type)} | {"ValueError", "TypeError"}
PASSED_ON = "{}"  # what Hydra, YAML or another message of ours says, without a word more


def template(message: ast.expr) -> str:
    """`f"{key} is missing."` -> `{} is missing.`"""
    if isinstance(message, ast.Constant):
        return str(message.value)
    parts = message.values if isinstance(message, ast.JoinedStr) else [message]
    text = "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in parts)
    return text if re.search("[a-z]", text.replace("{}", "")) else PASSED_ON


ADJOINTS = ROOT / "implicitexp" / "adjoints"  # which other libraries take: their refusals stand in their own tests


@functools.cache
def in_the_source(adjoints: bool = True) -> set[str]:
    """The messages of all exceptions that are made in the package, raised at once or handed back to be raised."""
    found = set()
    for path in [*ROOT.glob("implicitexp/**/*.py"), *ROOT.glob("hydra_plugins/**/*.py")]:
        if ADJOINTS in path.parents and not adjoints:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and getattr(node.func, "id", getattr(node.func, "attr", None)) in RAISED
                and node.args
            ):
                found.add(template(node.args[0]))
    return found


def test_every_message_has_a_row():
    rows = {*COMMANDS, *RUNS, *CALLS, *ELSEWHERE}
    assert in_the_source(adjoints=False) - rows == set()
    assert rows - in_the_source() == set()


def test_a_message_without_a_row_would_be_seen():
    made = ast.parse('raise ConfigError(f"{key}={value}: must be " f"{words}.")', mode="exec").body[0]
    assert isinstance(made, ast.Raise)
    assert isinstance(made.exc, ast.Call)
    assert template(made.exc.args[0]) == "{}={}: must be {}."
    assert len(in_the_source()) > 80


def pattern(message: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in message.split("{}")), re.DOTALL)


def holds(said: str, message: str, parts: list[str]) -> None:
    """What was said is this message, and names what it must."""
    assert pattern(message).search(said)
    assert [part for part in parts if part not in said] == []
    if message == PASSED_ON:
        assert [other for other in in_the_source() if other != PASSED_ON and pattern(other).search(said)] == []


@pytest.fixture(scope="module")
def composers(place):
    """Composers by their --config-dir, shared since each remembers what it has composed."""
    return {None: cli.Composer(), "conf": cli.Composer(place / "conf")}


def rows(table):
    return [pytest.param(line, message, parts, id=line) for message, of in table.items() for line, parts in of.items()]


def before_jax(argv: list[str], composers) -> None:
    """All of a command line that runs before JAX is imported."""
    if "-sc" in argv or argv[:1] in (["list"], ["check"], ["dashboard"]):
        cli.dispatch(argv)
        return
    command = cli.parse(argv)
    shared = command.flags.config_dir in composers and command.flags.config_name is None
    composer = composers[command.flags.config_dir] if shared else cli.prepared(argv)[1]
    composer.checked_jobs(command)


@pytest.mark.parametrize(("line", "message", "parts"), rows(COMMANDS))
def test_a_command_line_is_refused_with_one_message_that_helps(composers, here, monkeypatch, line, message, parts):
    """And nothing is written."""
    monkeypatch.setattr("sys.argv", ["implicitexp/__main__.py"])
    before = sorted(here.rglob("*"))
    with pytest.raises(ConfigError) as caught:
        before_jax(shlex.split(line), composers)
    said = str(caught.value)
    holds(said, message, parts)
    assert "\n" not in said
    assert "HYDRA_FULL_ERROR" not in said
    assert sorted(path for path in here.rglob("*") if "__pycache__" not in path.parts) == before


@pytest.mark.parametrize(("line", "message", "parts"), rows(RUNS))
def test_an_own_problem_is_refused_with_class_and_method(here, line, message, parts):
    with pytest.raises(ConfigError) as caught:
        implicitexp.run([*f"problem={line}".split(), "tracker=none", "steps=1"], config_dir="conf")
    holds(str(caught.value), message, parts)
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("call", "message", "parts"), [(call, message, parts) for message, of in CALLS.items() for call, parts in of]
)
def test_a_call_is_refused_with_what_would_work(call, message, parts, monkeypatch):
    """With the tests' type checks off: users do not have them."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises((ConfigError, ValueError)) as caught:
        call()
    holds(str(caught.value), message, parts)


def test_the_tests_that_have_the_other_messages_exist():
    for test in ELSEWHERE.values():
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / "tests" / file).read_text()
