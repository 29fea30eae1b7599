"""Strategies for some kinds of equation only, and other names of single cells: the YAML against the class, refusals, rows."""

import re

import pytest

from implicitexp import compare, solvers
from implicitexp.composing import Composer
from implicitexp.configuration import folders, manual
from implicitexp.configuration.words import KIND_WORDS
from implicitexp.errors import ConfigError, Unsupported
from implicitexp.launch import shipped_strategies
from implicitexp.strategies import AbstractOfKinds, Adjoint, Forward, Gauss, Implicit, Unroll

SOLVERS = solvers.Auto()
SHIPPED = shipped_strategies()
KINDS = manual.strategy_kinds(folders.shipped())
NAMES = {
    "gauss": ("ode", Adjoint()),
    "backsolve": ("ode", Adjoint(method="backsolve")),
    "forward_sensitivity": ("ode", Forward()),
    "iterated": ("root", Adjoint()),
    "truncated": ("fixed_point", Unroll(last=10)),
    "frozen_mesh": ("integral", Implicit()),
    "leibniz": ("integral", Adjoint()),
}


@pytest.fixture(scope="module")
def composer():
    return Composer()


@pytest.mark.parametrize("name", SHIPPED)
def test_the_file_and_the_class_say_the_same_kinds(name):
    strategy = SHIPPED[name]
    said = list(strategy.kinds) if isinstance(strategy, AbstractOfKinds) else list(KIND_WORDS)
    assert KINDS[name] == said
    for kind, words in KIND_WORDS.items():
        solver = SOLVERS.for_kind(kind)
        if kind in said:
            assert strategy.cell(kind, solver) is not None
        else:
            with pytest.raises(Unsupported, match=f"{name} is not defined for {words}"):
                strategy.cell(kind, solver)


@pytest.mark.parametrize("name", NAMES)
def test_another_name_is_the_same_cell(name):
    kind, original = NAMES[name]
    solver = SOLVERS.for_kind(kind)
    assert SHIPPED[name].cell(kind, solver) == original.cell(kind, solver)


def test_every_other_name_is_in_the_table():
    """`replay` is one as well, where it is defined; it refuses the methods that `implicit` unrolls."""
    assert {*NAMES, "replay"} == {name for name, x in SHIPPED.items() if x.plain() is not x}


def test_options_are_handed_on():
    assert Gauss(rtol=1e-3, max_steps=5).plain() == Adjoint(rtol=1e-3, max_steps=5)
    assert SHIPPED["forward_sensitivity"].per_parameter


def test_names_that_coincide_share_a_row():
    found = compare.twins(SHIPPED)
    assert found == {
        **dict.fromkeys(("gauss", "iterated", "leibniz"), "adjoint"),
        "forward_sensitivity": "forward",
        "frozen_mesh": "implicit",
        "replay": "implicit",
    }
    assert compare.twins({"gauss": Gauss(rtol=1e-3), "adjoint": Adjoint()}) == {}


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["problem=root_kepler", "gradient=replay"], r"gradient=replay is for an ODE, .*solves a root; .*: adjoint, "),
        (["problem=ode", "gradient=iterated"], r"gradient=iterated is for a root and a fixed point, .*replay"),
        (["problem=brachistochrone", "problem.formulation=direct", "gradient=gauss"], r"solves an integral; .*leibniz"),
    ],
)
def test_an_undefined_pair_is_refused_before_anything_slow_is_imported(composer, overrides, says):
    with pytest.raises(ConfigError) as raised:
        composer.checked(overrides)
    assert re.search(says, str(raised.value))


def test_layers_without_a_solver_take_every_strategy(composer):
    assert composer.checked(["problem=ode", "problem.layer=identity", "gradient=iterated"])
