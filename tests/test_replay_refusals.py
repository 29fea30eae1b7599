"""What `Replay` refuses, each in words that say what would work."""

import diffrax as dfx
import jax
import jax.numpy as jnp
import pytest

from implicitexp.adjoints.discrete.replay import Replay
from implicitexp.errors import Unsupported


def start(solver, adjoint, **options):
    term = options.pop("term", dfx.ODETerm(lambda t, y, args: -args * y))
    y0 = options.pop("y0", jnp.ones(2))

    def value(rate):
        controller = dfx.PIDController(rtol=1e-3, atol=1e-3)
        if isinstance(solver, dfx.Euler):
            controller = dfx.ConstantStepSize()
        sol = dfx.diffeqsolve(
            term, solver, 0.0, 1.0, 0.1, y0, rate, adjoint=adjoint, stepsize_controller=controller, **options
        )
        return jnp.sum(jnp.abs(sol.ys))

    return value


@pytest.mark.parametrize(
    ("solver", "options", "error", "message"),
    [
        (
            dfx.KenCarp3(),
            {"term": dfx.MultiTerm(*[dfx.ODETerm(lambda t, y, a: -a * y)] * 2)},
            Unsupported,
            "KenCarp3 is no",
        ),
        (dfx.HalfSolver(dfx.Heun()), {}, Unsupported, "use Euler, Heun"),
        (dfx.Kvaerno3(), {"y0": jnp.ones(2, jnp.complex64)}, Unsupported, "real state"),
        (dfx.Heun(), {"max_steps": None}, ValueError, "give diffeqsolve a max_steps"),
    ],
)
@pytest.mark.filterwarnings("ignore:Complex dtype support")
def test_refused_in_words(solver, options, error, message):
    with pytest.raises(error, match=message):
        jax.grad(start(solver, Replay(), **options))(1.0)


def test_stochastic_equations_are_refused():
    noise = dfx.VirtualBrownianTree(0.0, 1.0, 1e-2, (2,), jax.random.key(0))
    term = dfx.MultiTerm(dfx.ODETerm(lambda t, y, a: -a * y), dfx.ControlTerm(lambda t, y, a: jnp.eye(2), noise))
    with pytest.raises(Unsupported, match="stochastic"):
        start(dfx.Euler(), Replay(), term=term)(1.0)


@pytest.mark.parametrize("store", ["step", 0, True, 2.5])
def test_stores_that_do_not_exist(store):
    with pytest.raises((ValueError, TypeError)):
        Replay(store)


def test_forward_mode_is_refused():
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(start(dfx.Heun(), Replay()), (1.0,), (1.0,))


def test_without_a_derivative_max_steps_need_no_bound():
    value = start(dfx.Heun(), Replay(), max_steps=None)(1.0)
    assert value == start(dfx.Heun(), dfx.RecursiveCheckpointAdjoint(), max_steps=None)(1.0)
