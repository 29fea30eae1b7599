"""ForwardSensitivity: tangents in the error test or not, in batches, in both modes, and its refusals."""

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from implicitexp.adjoints.continuous.forward_sensitivity import ForwardSensitivity
from implicitexp.errors import Unsupported

STEPPED = 1e-7  # at tolerance 1e-8: the errors of the steps add up
PID = dfx.PIDController(rtol=1e-8, atol=1e-8)


def value(rates, adjoint, controller=PID, solver=dfx.Tsit5(), **options):
    """y_i' = -rates_i y_i from 1 to t = 1."""
    y0 = jnp.ones_like(rates)
    term = dfx.ODETerm(lambda t, y, rates: -rates * y)
    sol = dfx.diffeqsolve(
        term, solver, 0.0, 1.0, None, y0, rates, stepsize_controller=controller, adjoint=adjoint, **options
    )
    return jnp.sum(sol.ys[0] ** 2), sol.stats["num_steps"]


def exact_gradient(rates):
    return -2 * np.exp(-2 * rates)


RATES = np.array([0.3, 1.0, 2.0, 0.0, -0.5])  # a parameter that is zero has no size of its own


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    "adjoint",
    [
        ForwardSensitivity(),
        pytest.param(ForwardSensitivity(batch=1), marks=pytest.mark.slow),
        ForwardSensitivity(batch=2),  # the last one is padded
        pytest.param(ForwardSensitivity(batch=9), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_batches_of_tangents(adjoint):
    gradient, _ = jax.jit(jax.grad(lambda r: value(r, adjoint), has_aux=True))(jnp.array(RATES))
    np.testing.assert_allclose(gradient, exact_gradient(RATES), rtol=STEPPED)


@pytest.mark.slow
def test_batches_bound_the_memory(float64):
    """40 tangents of 40 numbers: in batches of 4, less than a half of the memory."""

    def memory(adjoint):
        gradient = jax.grad(lambda r: value(r, adjoint)[0])
        return jax.jit(gradient).lower(jnp.ones(40)).compile().memory_analysis().temp_size_in_bytes

    assert memory(ForwardSensitivity(batch=4)) < memory(ForwardSensitivity()) / 2


@pytest.mark.slow
def test_forward_mode_costs_one_tangent(float64):
    """`jvp` works above the number of parameters that `grad` is refused for."""
    rates, adjoint = jnp.linspace(0.0, 1.0, 300), ForwardSensitivity()
    _, tangent, _ = jax.jit(lambda r: jax.jvp(lambda r: value(r, adjoint), (r,), (jnp.ones_like(r),), has_aux=True))(
        rates
    )
    np.testing.assert_allclose(tangent, np.sum(exact_gradient(np.asarray(rates))), rtol=STEPPED)
    with pytest.raises(Unsupported, match=r"300 numbers.*max_parameters=300, batch=32"):
        jax.grad(lambda r: value(r, adjoint)[0])(rates)


@pytest.mark.slow
def test_the_limit_is_an_option(float64):
    rates = jnp.linspace(0.0, 1.0, 6)
    with pytest.raises(Unsupported, match="refused above 5"):
        jax.grad(lambda r: value(r, ForwardSensitivity(max_parameters=5))[0])(rates)
    gradient = jax.grad(lambda r: value(r, ForwardSensitivity(max_parameters=6))[0])(rates)
    np.testing.assert_allclose(gradient, exact_gradient(np.asarray(rates)), rtol=STEPPED)


def equilibrium(adjoint):
    """Lotka-Volterra at its equilibrium: the state does not move, its tangents turn. dL/da = 2 - 2 cos 10."""

    def loss(a):
        def field(t, y, a):
            x, y = y
            return a * x - x * y, -a * y + x * y

        x, y = dfx.diffeqsolve(
            dfx.ODETerm(field), dfx.Tsit5(), 0.0, 10.0, None, (1.0, 1.0), a, stepsize_controller=PID, adjoint=adjoint
        ).ys
        return x[0] + y[0]

    return jax.jit(jax.grad(loss))(jnp.array(1.0)) / (2 - 2 * np.cos(10.0)) - 1


@pytest.mark.slow
def test_the_error_test_sees_the_tangents_or_not(float64):
    """At the equilibrium the state alone lets the steps grow without bound."""
    assert abs(equilibrium(ForwardSensitivity())) < 1e-6
    assert abs(equilibrium(ForwardSensitivity(in_error_test=False))) > 1


@pytest.mark.slow
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_scale_of_a_parameter(scale, float64):
    """A parameter in other units has another tangent; the absolute tolerance means the same."""

    def relative(scale):
        gradient = jax.jit(jax.grad(lambda r: value(r / scale, ForwardSensitivity())[0]))(jnp.array(RATES[:3] * scale))
        return gradient * scale / exact_gradient(RATES[:3]) - 1

    # The factor of the units is rounded; the steps are the same.
    np.testing.assert_allclose(relative(scale), relative(1.0), atol=1e-11)


def test_what_is_refused():
    with pytest.raises(ValueError, match="batch=0"):
        ForwardSensitivity(batch=0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Complex dtype")
def test_complex_parameters_are_refused_in_reverse_mode(float64):
    def loss(w):
        term = dfx.ODETerm(lambda t, y, w: 1j * w * y)
        sol = dfx.diffeqsolve(
            term, dfx.Tsit5(), 0.0, 1.0, None, 1.0 + 0j, w, stepsize_controller=PID, adjoint=ForwardSensitivity()
        )
        return sol.ys[0].real

    with pytest.raises(Unsupported, match="real and imaginary"):
        jax.grad(loss)(1.3 + 0.2j)
    np.testing.assert_allclose(jax.grad(loss)(1.3), -np.sin(1.3), rtol=STEPPED)


@pytest.mark.slow
def test_without_a_bound_on_the_steps(float64):
    gradient = jax.grad(lambda r: value(r, ForwardSensitivity(), max_steps=None)[0])(jnp.array(RATES))
    np.testing.assert_allclose(gradient, exact_gradient(RATES), rtol=STEPPED)
