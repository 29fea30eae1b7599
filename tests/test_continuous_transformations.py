"""The continuous adjoints for Diffrax under vmap, scan and forward mode, in single precision, and where they fail or refuse."""

import dataclasses
from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from continuous_cases import (
    ADJOINTS,
    CLASSES,
    FORWARDS,
    OVER_STEPS,
    PID,
    SINGLE,
    STEPPED,
    arrays,
    assert_close,
    exact,
    name,
    number,
    rows,
    solve,
)

from implicitexp.adjoints.continuous.backsolve_adjoint import Backsolve
from implicitexp.adjoints.continuous.extension import Swept, extension_of, outruns_its_interpolation
from implicitexp.adjoints.continuous.gauss_adjoint import Gauss
from implicitexp.adjoints.continuous.trajectory import KEEP_STAGES, KEEP_STEPS, storage
from implicitexp.errors import Unsupported

# -- transformations, numbers, failures -------------------------------------------------------------------------------


def blow_up(a, adjoint, **options):
    """y' = a y^2, y(0) = 1: y(1) = 1 / (1 - a), which does not exist for a = 2."""
    return dfx.diffeqsolve(
        dfx.ODETerm(lambda t, y, a: a * y * y), dfx.Tsit5(), 0.0, 1.0, None, 1.0, a, stepsize_controller=PID,
        adjoint=adjoint, throw=False, max_steps=300, **options,
    ).ys[0]  # fmt: skip


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("adjoint", rows(ADJOINTS))
def test_a_lane_that_fails_leaves_the_others_alone(adjoint):
    a = jnp.array([0.5, 2.0, 0.3, -0.4])
    gradient = jax.jit(jax.vmap(jax.grad(lambda a: blow_up(a, adjoint))))(a)
    good = np.array([True, False, True, True])
    np.testing.assert_allclose(gradient[good], 1 / (1 - a[good]) ** 2, rtol=2 * STEPPED)
    assert np.isnan(gradient[1])


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("adjoint", OVER_STEPS + [Backsolve()], ids=name)
def test_a_lane_that_the_loss_does_not_use_is_zero(adjoint):
    a = jnp.array([0.5, 2.0])
    gradient = jax.jit(jax.grad(lambda a: jax.vmap(lambda a: blow_up(a, adjoint))(a)[0]))(a)
    np.testing.assert_allclose(gradient, [4.0, 0.0], rtol=2 * STEPPED)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("adjoint", OVER_STEPS + [Backsolve()], ids=name)
def test_a_backward_solve_that_fails(adjoint):
    """NaN without `throw`, an error with it."""
    short, p = dataclasses.replace(adjoint, max_steps=2), arrays(FORWARDS)
    assert np.isnan(jax.jit(jax.grad(lambda p: solve(p, short, throw=False).ys[0]))(p)["y0"])
    with pytest.raises(Exception, match="backward solve"):
        jax.block_until_ready(jax.grad(lambda p: solve(p, short).ys[0])(p))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("adjoint", rows(CLASSES))
def test_scale_of_the_loss(adjoint):
    """dz/dt = -10 z at 1e-6: the loss times 1e-8 or 1e8 changes nothing but the scale."""
    controller = dfx.PIDController(rtol=1e-6, atol=1e-6)

    @jax.jit
    def gradient(scale):
        def loss(k):
            term = dfx.ODETerm(lambda t, z, k: k * z)
            return (
                scale
                * dfx.diffeqsolve(
                    term, dfx.Tsit5(), 0.0, 1.0, None, 1.0, k, stepsize_controller=controller, adjoint=adjoint
                ).ys[0]
            )

        return jax.grad(loss)(jnp.array(-10.0)) / (scale * np.exp(-10.0)) - 1

    errors = [float(gradient(scale)) for scale in (1e-8, 1.0, 1e8)]
    assert abs(errors[1]) < 0.05  # atol over the solution, 1e-6 / 4.5e-5, is 0.022
    np.testing.assert_allclose(errors, errors[1], rtol=1e-6)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("adjoint", CLASSES, ids=name)
def test_inside_a_scan(adjoint):
    p = arrays(FORWARDS)

    def loss(a):
        def layer(y, _):
            return solve({**p, "y0": y, "a": a}, adjoint).ys[0], None

        return jax.lax.scan(layer, jnp.array(1.3), None, length=3)[0]

    wanted = jax.grad(lambda a: 1.3 * jnp.exp(-3 * a * (1.9**2 - 0.2**2) / 2))(0.3)
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(jnp.array(0.3)), wanted, rtol=STEPPED)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("adjoint", CLASSES, ids=name)
def test_forward_mode(adjoint):
    """Of each class: the sensitivities, with `ts` and a function of the state."""

    def value(p):
        sub = dfx.SubSaveAt(ts=p["ts"], fn=lambda t, y, a: t * a * y)
        return solve(p, adjoint, dfx.SaveAt(subs=(sub, dfx.SubSaveAt(t1=True)))).ys

    def wanted(p):
        return p["ts"] * p["a"] * exact(p, p["ts"]), exact(p, p["t1"])[None]

    p = arrays(FORWARDS)
    ones = jax.tree.map(jnp.ones_like, p)
    for found, right in zip(jax.jvp(value, (p,), (ones,))[1], jax.jvp(wanted, (p,), (ones,))[1], strict=True):
        np.testing.assert_allclose(found, right, rtol=STEPPED, atol=STEPPED)


@pytest.mark.slow
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=name)
def test_single_precision(adjoint):
    p, controller = arrays(FORWARDS), dfx.PIDController(rtol=1e-5, atol=1e-5)
    gradient = jax.jit(jax.grad(lambda p: number(solve(p, adjoint, dfx.SaveAt(ts=p["ts"]), controller).ys)))(p)
    assert all(x.dtype == jnp.float32 for x in gradient.values())
    assert_close(gradient, jax.grad(lambda p: number(exact(p, p["ts"])))(p), SINGLE)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Complex dtype")  # Diffrax says that its support is a work in progress
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("adjoint", CLASSES[:3], ids=name)
def test_complex_state(adjoint):
    """y' = i w y with complex w, y0, in JAX's convention for gradients by complex numbers."""

    def loss(y):
        return jnp.abs(y - 0.3j) ** 2 + y.real

    def value(w, y0):
        term = dfx.ODETerm(lambda t, y, w: 1j * w * y)
        return loss(
            dfx.diffeqsolve(term, dfx.Tsit5(), 0.0, 1.0, None, y0, w, stepsize_controller=PID, adjoint=adjoint).ys[0]
        )

    at = (jnp.array(1.3 + 0.2j), jnp.array(0.7 - 0.4j))
    wanted = jax.grad(lambda w, y0: loss(y0 * jnp.exp(1j * w)), (0, 1))(*at)
    np.testing.assert_allclose(jax.jit(jax.grad(value, (0, 1)))(*at), wanted, rtol=STEPPED)


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_what_is_refused(float64):
    p = arrays(FORWARDS)
    with pytest.raises(Unsupported, match="max_steps=None"):
        jax.grad(lambda p: solve(p, Gauss(), max_steps=None).ys[0])(p)
    with pytest.raises(RuntimeError, match="first derivatives"):
        jax.hessian(lambda a: solve({**p, "a": a}, Gauss()).ys[0])(p["a"])
    with pytest.raises(Unsupported, match="not one of stages"):
        jax.grad(lambda p: solve(p, Gauss(store="all")).ys[0])(p)
    places = dfx.StepTo(np.linspace(0.2, 1.9, 171))
    with pytest.raises(Unsupported, match="given places"):
        jax.grad(lambda p: solve(p, Backsolve(), controller=places).ys[0])(p)
    with pytest.raises(ValueError, match="order"):
        Gauss(order=0)
    with pytest.raises(ValueError, match="checkpoints"):
        Backsolve(checkpoints=-1)


def test_other_equations_are_refused():
    drift = dfx.ODETerm(lambda t, y, args: -y)
    brownian = dfx.VirtualBrownianTree(0.0, 1.0, 1e-2, (), jax.random.key(0))
    noise: Any = dfx.ControlTerm(lambda t, y, args: 0.1, brownian)
    with pytest.raises(Unsupported, match="Brownian"):
        dfx.diffeqsolve(dfx.MultiTerm(drift, noise), dfx.Heun(), 0.0, 1.0, 0.1, 1.0, adjoint=Gauss())
    with pytest.raises(Unsupported, match="another structure"):
        dfx.diffeqsolve((drift, drift), dfx.SemiImplicitEuler(), 0.0, 1.0, 0.1, (1.0, 1.0), adjoint=Gauss())
    path: Any = dfx.LinearInterpolation(jnp.linspace(0.0, 1.0, 3), jnp.linspace(0.0, 1.0, 3))
    control = dfx.ControlTerm(lambda t, y, args: -y, path)
    with pytest.raises(Unsupported, match="to_ode"):
        dfx.diffeqsolve(control, dfx.Tsit5(), 0.0, 1.0, 0.1, 1.0, adjoint=Gauss())


# -- parts ------------------------------------------------------------------------------------------------------------


def test_what_is_stored_goes_by_size():
    def array(*shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    implicit, explicit = dfx.Kvaerno5(), dfx.Tsit5()
    assert storage(implicit, 1, array(KEEP_STAGES // 4), array(1)) == "stages"
    assert storage(explicit, 1, array(1), array(1)) == "steps"
    assert storage(implicit, 1, array(KEEP_STAGES // 4 + 1), array(KEEP_STEPS // 4)) == "steps"
    assert storage(implicit, 1, array(KEEP_STAGES // 4 + 1), array(KEEP_STEPS // 4 + 1)) == "times"


def test_extension_of_a_step():
    """Kvaerno5's polynomials meet the step at its end, integrate x^3 exactly, and no other method has them."""
    powers = extension_of(dfx.Kvaerno5)
    assert powers is not None
    tableau: Any = dfx.Kvaerno5.tableau
    b = np.array(powers)
    np.testing.assert_allclose(b.sum(1), tableau.b_sol, atol=1e-13)
    c = np.concatenate([[0.0], tableau.c])
    for x in (0.25, 0.5, 0.9):
        weights = b @ x ** np.arange(1, 5)
        np.testing.assert_allclose(
            [weights @ c**q for q in range(4)], [x ** (q + 1) / (q + 1) for q in range(4)], atol=1e-13
        )
    assert all(extension_of(m) is None for m in (dfx.Tsit5, dfx.Dopri8, dfx.Kvaerno3, dfx.KenCarp4, dfx.Euler))


def test_sweep_of_an_interpolation(float64):
    """y' = y from 1 over a step of 0.8 in which y is known to 1e-4: each sweep takes a power of the length off its error."""

    class Rough:
        def evaluate(self, t):
            return jnp.exp(t) + 1e-4 * t

    t = jnp.linspace(0.0, 0.8, 9)

    def off(path):
        return jnp.abs(jax.vmap(path.evaluate)(t) - jnp.exp(t))

    once = Swept.of(Rough(), lambda t, y: y, t[0], t[-1], 8)
    twice = Swept.of(once, lambda t, y: y, t[0], t[-1], 8)
    np.testing.assert_allclose(off(once), 1e-4 * t**2 / 2, rtol=1e-3, atol=1e-12)
    np.testing.assert_allclose(off(twice), 1e-4 * t**3 / 6, rtol=1e-3, atol=1e-12)
    explicit = [m for m in (dfx.Tsit5(), dfx.Dopri5(), dfx.Dopri8(), dfx.Kvaerno5()) if outruns_its_interpolation(m)]
    assert explicit == [dfx.Dopri8()]
