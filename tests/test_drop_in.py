"""The strategies that are adjoints of `implicitexp.adjoints`: truncated ones against their theory, forward mode, refusals.
Those that are exact have rows in test_strategies.py."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from strategy_cases import CASES

from implicitexp import solvers
from implicitexp.equations import ODE, FixedPoint, Root
from implicitexp.errors import Unsupported
from implicitexp.solving import solve
from implicitexp.strategies import Implicit, Unroll
from implicitexp.strategies.approximate import Neumann, OneStep, Phantom, Reuse, Shine
from implicitexp.strategies.over_steps import Interpolating, Replay, Reversible

C = 0.6  # contraction
PRIMAL = 1e-8  # the forward solver's tolerance in float64
STEPPED = 2e-7  # an ODE at that tolerance: the steps' errors add up


def rows(*fast, slow):
    """The first in the tests of all day, the others with the slow ones."""
    return [
        *(pytest.param(x, id=str(x)) for x in fast),
        *(pytest.param(x, id=str(x), marks=pytest.mark.slow) for x in slow),
    ]


def derivative(strategy, solver=None):
    """dy/dp of y = C y + p, which is 1/(1 - C)."""
    equation = FixedPoint(lambda y, p: C * y + p, 0.0)
    return jax.jit(jax.grad(lambda p: solve(equation, p, gradient=strategy, solver=solver).value))(2.0)


THEORY = {
    "one step": (OneStep(), 1.0),
    "neumann 1": (Neumann(terms=1), 1.0),
    "neumann 7": (Neumann(terms=7), (1 - C**7) / (1 - C)),
    "phantom 5": (Phantom(steps=5, damping=0.5), (1 - (1 - 0.5 * (1 - C)) ** 5) / (1 - C)),
    "reuse": (Reuse(), 1 / (1 - C)),
    "shine, refined": (Shine(refine=1), 1 / (1 - C)),
}


@pytest.mark.parametrize("name", THEORY)
def test_the_error_is_that_of_the_theory(name, float64):
    strategy, expected = THEORY[name]
    assert derivative(strategy) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("strategy", rows(Shine(), slow=[OneStep(), Reuse()]))
def test_newtons_last_jacobian_is_the_implicit_derivative(strategy, float64):
    """y^3 + y = p: dy/dp = 1/(3 y^2 + 1)."""
    equation = Root(lambda y, p: y**3 + y - p, 1.0)
    y = float(solve(equation, 5.0).value)
    got = jax.jit(jax.grad(lambda p: solve(equation, p, gradient=strategy).value))(5.0)
    assert got == pytest.approx(1 / (3 * y**2 + 1), rel=PRIMAL)


@pytest.mark.parametrize("strategy", rows(Replay(), slow=[Replay(store=2), Reversible(), Interpolating()]))
def test_growth(strategy, float64):
    """y' = a y: dy(1)/da = e^a."""

    def end(a):
        return solve(ODE(lambda t, y, a: a * y, 1.0, 0.0, 1.0), a, gradient=strategy).value

    assert jax.jit(jax.grad(end))(0.7) == pytest.approx(np.exp(0.7), rel=STEPPED)


@pytest.mark.slow
def test_a_lane_that_blows_up_is_nan(float64):
    def end(a):  # y = 1/(1 - a t)
        keeping = solvers.Tsit5(max_steps=100, when_not_converged="keep")
        return solve(ODE(lambda t, y, a: a * y**2, 1.0, 0.0, 1.0), a, gradient=Replay(), solver=keeping).value

    good, bad = jax.jit(jax.vmap(jax.grad(end)))(jnp.array([0.5, 2.0]))
    assert good == pytest.approx(1 / (1 - 0.5) ** 2, rel=10 * STEPPED)
    assert jnp.isnan(bad)


@pytest.mark.parametrize("strategy", rows(Neumann(terms=7), slow=[Replay(), Interpolating(), Reuse()]))
def test_forward_mode_is_the_same_derivative(strategy, float64):
    kind = strategy.kinds[-1]
    equation, args = CASES[kind].equation(jax.tree.map(jnp.asarray, CASES[kind].params))

    def value(args):
        return solve(equation, args, gradient=strategy).value["x"]

    forward, reverse = jax.jit(jax.jacfwd(value))(args), jax.jit(jax.jacrev(value))(args)
    np.testing.assert_allclose(forward, reverse, rtol=STEPPED, atol=STEPPED)


def test_reversible_has_no_forward_mode(float64):
    with pytest.raises(
        Unsupported, match="Forward mode of reversible is not defined for an ODE; use unroll or forward"
    ):
        jax.jvp(
            lambda a: solve(ODE(lambda t, y, a: a * y, 1.0, 0.0, 1.0), a, gradient=Reversible()).value, (0.7,), (1.0,)
        )


@pytest.mark.parametrize(("strategy", "kind"), [(Replay(), "root"), (OneStep(), "ode"), (Reuse(), "integral")], ids=str)
def test_equations_of_another_kind_are_refused(strategy, kind):
    equation, args = CASES[kind].equation(jax.tree.map(jnp.asarray, CASES[kind].params))
    with pytest.raises(Unsupported, match=f"{strategy.name} is not defined for .*; use implicit or adjoint"):
        solve(equation, args, gradient=strategy)


def test_a_solver_without_an_inverse_is_refused(float64):
    with pytest.raises(Unsupported, match="Picard|FixedPointIteration"):
        derivative(Shine(), solvers.Picard())


NAMES = """
import sys
from implicitexp import adjoints
found = [type(getattr(adjoints, name)).__name__ for name in adjoints.__all__]
assert len(found) == 21, found
loaded = {name.partition(".")[0] for name in sys.modules}
assert not loaded & {"hydra", "omegaconf", "mlflow", "matplotlib"}, loaded
ours = {name for name in sys.modules if name.startswith("implicitexp.")}
assert not [name for name in ours if name.split(".")[1] not in ("adjoints", "solvers", "errors", "equations", "notation")], ours
"""


def test_all_names_are_there_and_need_nothing_of_the_framework():
    done = subprocess.run([sys.executable, "-c", NAMES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("steps", [20, pytest.param(300, marks=pytest.mark.slow)])
def test_implicit_keeps_as_much_whatever_the_number_of_steps(steps, float64):
    """Fewer steps than the states that it keeps, and more, which are done again; a lane of a vmap keeps no more than that."""

    def end(a, strategy):
        solver = solvers.FixedStep("heun", 1 / steps, max_steps=steps + 1)
        return solve(ODE(lambda t, y, a: jnp.cos(a * t) * y, 1.0, 0.0, 1.0), a, gradient=strategy, solver=solver).value

    lanes = jnp.linspace(0.5, 1.5, 3)
    got, expected = (jax.jit(jax.vmap(jax.grad(lambda a, s=s: end(a, s))))(lanes) for s in (Implicit(), Unroll()))
    np.testing.assert_allclose(got, expected, rtol=1e-12)
