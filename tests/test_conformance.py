"""`implicitexp check`: a sound problem passes, and each fault is found by the check that is meant for it, with advice."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import implicitexp
from implicitexp import commands, problems
from implicitexp.conformance import CHECKS, conformance
from implicitexp.errors import ConfigError


class Sound(implicitexp.AbstractProblem):
    """y^3 = a, with a the sum of two parameters: loss (y - 2)^2."""

    target: float = 2.0

    def init(self, key):
        return {"a": jnp.array(2.0), "b": jnp.array(1.5)}

    def solution(self, params, solve):
        return solve(implicitexp.Root(lambda y, a: y**3 - a, 1.0), params["a"] + params["b"]).value

    def loss(self, params, batch, solve):
        return (self.solution(params, solve) - self.target) ** 2

    def exact_loss(self, params, batch):
        return (jnp.cbrt(params["a"] + params["b"]) - self.target) ** 2


class Impure(Sound):
    """Noise that is drawn where nobody can repeat it."""

    def loss(self, params, batch, solve):
        return super().loss(params, batch, solve) + np.random.default_rng().random()


class Branching(Sound):
    """A Python `if` on a value."""

    def loss(self, params, batch, solve):
        return super().loss(params, batch, solve) if params["a"] > 0 else jnp.zeros(())


class Unmapped(Sound):
    """Right for one parameter, wrong under vmap: the callback sees all lanes at once, and answers for the first."""

    def loss(self, params, batch, solve):
        shape = jax.ShapeDtypeStruct((), params["a"].dtype)
        first = jax.pure_callback(lambda a: np.full(np.shape(a), np.ravel(a)[0]), shape, jax.lax.stop_gradient(params["a"]),
                                  vmap_method="expand_dims")  # fmt: skip
        return super().loss(params, batch, solve) + first

    exact_loss = implicitexp.AbstractProblem.exact_loss


class Pinned(Sound):
    """A constant that stays float32."""

    def loss(self, params, batch, solve):
        return super().loss({name: x.astype(jnp.float32) for name, x in params.items()}, batch, solve)


class Unused(Sound):
    """A parameter that nothing depends on."""

    def init(self, key):
        return super().init(key) | {"c": jnp.array(1.0)}


class Cut(Sound):
    """A derivative that was stopped on the way to the solver."""

    def solution(self, params, solve):
        return super().solution(params | {"a": jax.lax.stop_gradient(params["a"])}, solve)


class Inexact(Sound):
    """A closed form of another problem."""

    def exact_loss(self, params, batch):
        return super().exact_loss(params, batch) + 0.1 * params["a"]


class Restless(Sound):
    """A minibatch that depends on more than its key."""

    def batch(self, key):
        return jnp.asarray(np.random.default_rng().random(3))


class Vector(Sound):
    """A loss that is no scalar."""

    def loss(self, params, batch, solve):
        return jnp.stack([super().loss(params, batch, solve)] * 2)


class Solverless(Sound):
    """No solver in it at all."""

    def loss(self, params, batch, solve):
        return self.exact_loss(params, batch)


class Words(Sound):
    """An evaluation that is no number."""

    name: str = eqx.field(static=True, default="x")

    def evaluate(self, params, solve):
        return {"all": jnp.zeros(2)}


FAULTY = [
    (Impure(), "purity", "randomness comes through `batch`"),
    (Branching(), "jit", "jnp.where"),
    (Unmapped(), "vmap", "whole arrays"),
    (Pinned(), "both precisions", "float32"),
    (Unused(), "nothing dropped", "['c']"),
    (Cut(), "nothing dropped", "stop_gradient"),
    (Inexact(), "exact_loss", "mend"),
    (Restless(), "batch", "jax.random"),
    (Vector(), "shapes", "scalar"),
    (Solverless(), "equations", "solve(equation, args)"),
    (Words(), "evaluate", "dictionary of scalars"),
]
FAST = ("shapes", "equations", "batch", "evaluate", "purity", "exact_loss")


@pytest.mark.slow
@pytest.mark.parametrize("problem", [Sound(), problems.Exponential()], ids=lambda p: type(p).__name__)
def test_a_sound_problem_passes(problem):
    findings = conformance(problem)
    assert [finding.check for finding in findings] == list(CHECKS)
    assert [finding for finding in findings if finding.status == "failed"] == []


@pytest.mark.parametrize(
    ("problem", "check", "words"),
    [
        pytest.param(*row, id=type(row[0]).__name__, marks=[] if row[1] in FAST else [pytest.mark.slow])
        for row in FAULTY
    ],
)
def test_a_fault_is_found_by_its_check(problem, check, words):
    (finding,) = conformance(problem, only=(check,))
    assert finding.status == "failed", finding
    assert words in f"{finding.what} {finding.advice}", finding


def test_the_command_prints_a_table_and_ends_with_one(capsys):
    commands.print_findings("mine", conformance(Vector(), only=("shapes", "batch")))
    printed = capsys.readouterr().out
    assert "take a mean or a sum" in printed
    assert "1 of 2 checks failed" in printed


def test_what_does_not_fit_the_class_is_refused():
    with pytest.raises(ConfigError, match="unexpected keyword argument 'x'. It takes mean_anomaly, target"):
        commands.check(["implicitexp.problems.Kepler", "target=abc", "x=1"])
