"""Gauss, Interpolating, Backsolve and ForwardSensitivity as drop-ins of `diffrax.diffeqsolve`, against closed forms.

The row for all day is the first of each table; the others run with the slow tests.
"""

import dataclasses
from typing import Any

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest

from implicitexp.adjoints.backsolve_adjoint import Backsolve
from implicitexp.adjoints.extension import extension_of
from implicitexp.adjoints.forward_sensitivity import ForwardSensitivity
from implicitexp.adjoints.gauss_adjoint import Gauss
from implicitexp.adjoints.interpolating import Interpolating
from implicitexp.adjoints.trajectory import KEEP_STAGES, KEEP_STEPS, storage
from implicitexp.errors import Unsupported

PID = dfx.PIDController(rtol=1e-8, atol=1e-8)
STEPPED = 1e-7  # at tolerance 1e-8: the errors of the steps add up
CONSTANT = 1e-11  # 170 steps of 0.01 of a method of order 5
SINGLE = 1e-4  # float32 at tolerance 1e-5
ADJOINTS: list[Any] = [Gauss(), Gauss(store="steps"), Gauss(store="times"), Interpolating(), Backsolve(checkpoints=2),
                       Backsolve(), ForwardSensitivity()]  # fmt: skip
OVER_STEPS = [Gauss(), Interpolating()]
CLASSES = [Gauss(), Interpolating(), Backsolve(checkpoints=2), ForwardSensitivity()]


def name(adjoint) -> str:
    return (
        type(adjoint).__name__ + str(getattr(adjoint, "store", None) or "") + str(getattr(adjoint, "checkpoints", ""))
    )


def rows(adjoints):
    """The first all day, the others when there is time."""
    return [pytest.param(a, id=name(a), marks=[] if i == 0 else [pytest.mark.slow]) for i, a in enumerate(adjoints)]


FORWARDS = {"y0": 1.3, "a": 0.8, "t0": 0.2, "t1": 1.9, "ts": [0.2, 0.5, 0.5, 0.51, 1.1, 1.9]}  # the ends, twice, near
BACKWARDS = {"y0": 1.3, "a": 0.8, "t0": 1.5, "t1": 0.3, "ts": [1.4, 0.9, 0.3]}
NO_LENGTH = {"y0": 1.3, "a": 0.8, "t0": 0.7, "t1": 0.7, "ts": [0.7, 0.7]}


def arrays(p):
    return {key: jnp.asarray(np.asarray(x), jnp.result_type(float)) for key, x in p.items()}


def solve(p, adjoint, saveat=None, controller: Any = PID, **options):
    """y' = -a t y; a is closed over, and comes in through args as well."""
    half = p["a"] / 2

    def field(t, y, a):
        return -(half + a / 2) * t * y

    return dfx.diffeqsolve(
        dfx.ODETerm(field), options.pop("solver", dfx.Tsit5()), p["t0"], p["t1"], options.pop("dt0", None), p["y0"], p["a"],
        saveat=dfx.SaveAt(t1=True) if saveat is None else saveat, stepsize_controller=controller, adjoint=adjoint, **options,
    )  # fmt: skip


def exact(p, t):
    return p["y0"] * jnp.exp(-p["a"] * (t**2 - p["t0"] ** 2) / 2)


def number(y):
    """A nonlinear loss in which every entry has another weight."""
    return jnp.sum(jnp.sin(3 * y) * jnp.linspace(1.0, 2.0, y.size))


def assert_close(gradient, expected, bound):
    for key in expected:
        np.testing.assert_allclose(gradient[key], expected[key], rtol=bound, atol=bound, err_msg=key)


def check(p, adjoint, loss, exact_loss, bound=STEPPED):
    p = arrays(p)
    assert_close(jax.jit(jax.grad(loss))(p), jax.grad(exact_loss)(p), bound)


# -- what is saved ----------------------------------------------------------------------------------------------------


def everywhere(p):
    return jnp.concatenate([p["t0"][None], p["ts"], p["t1"][None]])


TIMES = [
    pytest.param(p, a, id=f"{label}-{name(a)}", marks=[] if (i, j) in ((0, 0), (1, 0), (2, 0)) else [pytest.mark.slow])
    for i, (label, p) in enumerate([("forwards", FORWARDS), ("backwards", BACKWARDS), ("no length", NO_LENGTH)])
    for j, a in enumerate(ADJOINTS)
]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("p", "adjoint"), TIMES)
def test_outputs_at_times(p, adjoint):
    """t0, ts and t1 saved together; y0, a, t0, t1 and every ts differentiated, in both directions of time."""

    def loss(p):
        return number(solve(p, adjoint, dfx.SaveAt(t0=True, ts=p["ts"], t1=True)).ys)

    check(p, adjoint, loss, lambda p: number(exact(p, everywhere(p))))


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # Diffrax fills a buffer of integers with inf
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("adjoint", rows(CLASSES))
def test_functions_of_the_state(adjoint):
    """`subs` with an `fn` that depends on t, y, args and what it closes over, and that returns an integer beside it."""

    def loss(p):
        def fn(t, y, a):
            return {"u": y * y * a * t + p["a"], "n": jnp.array(3)}

        subs = [dfx.SubSaveAt(t1=True), {"more": dfx.SubSaveAt(ts=p["ts"], t0=True, fn=fn)}]
        sol = solve(p, adjoint, dfx.SaveAt(subs=subs))
        return number(sol.ys[0]) + number(sol.ys[1]["more"]["u"]) + jnp.sum(sol.ts[1]["more"] ** 2)

    def exact_loss(p):
        t = jnp.concatenate([p["t0"][None], p["ts"]])
        return number(exact(p, p["t1"])[None]) + number(exact(p, t) ** 2 * p["a"] * t + p["a"]) + jnp.sum(t**2)

    check(FORWARDS, adjoint, loss, exact_loss)


STEPS = [
    pytest.param(a, n, id=f"{name(a)}-{n}", marks=[] if (i, n) == (0, 3) else [pytest.mark.slow])
    for i, a in enumerate(CLASSES)
    for n in (1, 3)
]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("adjoint", "n"), STEPS)
def test_every_step_saved(adjoint, n):
    """Every n-th step, with `ts` between them and the padding: the times of the steps are constants, but for t1."""
    p = arrays({**FORWARDS, "ts": [0.3, 0.9, 1.9]})
    saved = np.asarray(solve(p, adjoint, dfx.SaveAt(ts=p["ts"], t1=True, steps=n), max_steps=100).ts)
    times = saved[np.isfinite(saved)]
    weights = jnp.where(np.isfinite(saved), np.arange(1, saved.size + 1), 0.0)

    def loss(p):
        sol = solve(p, adjoint, dfx.SaveAt(ts=p["ts"], t1=True, steps=n), max_steps=100)
        return jnp.sum(jnp.where(np.isfinite(saved), weights * sol.ys, 0))

    where = [int(np.flatnonzero(times == t)[0]) for t in np.asarray(p["ts"])]

    def exact_loss(p):
        t = jnp.asarray(times).at[np.array(where)].set(p["ts"]).at[-1].set(p["t1"])
        return jnp.sum(weights[: times.size] * exact(p, t))

    assert_close(jax.jit(jax.grad(loss))(p), jax.grad(exact_loss)(p), STEPPED)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("adjoint", CLASSES, ids=name)
def test_dense_output(adjoint):
    """It can be saved; a loss that looks at it is refused, aloud or by NaN, never by a part of the gradient."""

    def loss(p, weight, throw):
        sol = solve(p, adjoint, dfx.SaveAt(t1=True, dense=True), throw=throw)
        return sol.ys[0] + weight * sol.evaluate(jnp.array(1.0))

    p = arrays(FORWARDS)
    at_end = jax.jit(jax.grad(lambda p: solve(p, adjoint, dfx.SaveAt(t1=True, dense=True)).ys[0]))(p)
    assert_close(at_end, jax.grad(lambda p: exact(p, p["t1"]))(p), STEPPED)
    assert np.isnan(jax.grad(lambda p: loss(p, 1.0, False))(p)["a"])
    with pytest.raises(Exception, match=r"sol.ys and sol.ts only"):
        jax.block_until_ready(jax.grad(lambda p: loss(p, 1.0, True))(p))


# -- steps ------------------------------------------------------------------------------------------------------------


CONTROLS = [
    pytest.param(a, constant, id=f"{name(a)}-{label}", marks=[] if (i, j) == (0, 0) else [pytest.mark.slow])
    for i, a in enumerate(CLASSES)
    for j, (label, constant) in enumerate([("constant", True), ("to places", False)])
]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("adjoint", "constant"), CONTROLS)
def test_steps_without_control(adjoint, constant):
    """Back over the same steps, with no error control either; Backsolve needs one where steps go to given places."""
    if isinstance(adjoint, Backsolve) and not constant:
        adjoint = Backsolve(checkpoints=2, rtol=1e-12, atol=1e-12)
    controller: Any = dfx.ConstantStepSize() if constant else dfx.StepTo(np.linspace(0.2, 1.9, 171))

    def loss(p):
        return solve(p, adjoint, controller=controller, dt0=0.01 if constant else None).ys[0]

    check(FORWARDS, adjoint, loss, lambda p: exact(p, p["t1"]), CONSTANT)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=name)
def test_field_that_jumps(adjoint):
    """y' = -a c(t) y^2, c = 1 before t = 1 and 3 after: steps end before the jump and go on after it, back as well."""
    controller = dfx.ClipStepSizeController(dfx.PIDController(rtol=1e-9, atol=1e-9), step_ts=[0.4], jump_ts=[1.0])

    def value(a, t1):
        term = dfx.ODETerm(lambda t, y, a: -a * jnp.where(t < 1, 1.0, 3.0) * y**2)
        return dfx.diffeqsolve(
            term, dfx.Tsit5(), 0.0, t1, None, 1.2, a, stepsize_controller=controller, adjoint=adjoint
        ).ys[0]

    found = jax.jit(jax.grad(value, (0, 1)))(jnp.array(0.7), jnp.array(1.8))
    wanted = jax.grad(lambda a, t1: 1 / (1 / 1.2 + a * (3 * t1 - 2)), (0, 1))(0.7, 1.8)
    np.testing.assert_allclose(found, wanted, rtol=STEPPED)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("adjoint", CLASSES, ids=name)
def test_implicit_and_explicit_parts(adjoint):
    """A solver with two tableaus: the adjoint has the same two parts."""
    solver = dfx.KenCarp4(root_finder=optx.Newton(1e-10, 1e-10))

    def value(a):
        terms = dfx.MultiTerm(dfx.ODETerm(lambda t, y, a: jnp.sin(t) * a * y), dfx.ODETerm(lambda t, y, a: -a * y))
        return dfx.diffeqsolve(terms, solver, 0.0, 1.0, None, 1.2, a, stepsize_controller=PID, adjoint=adjoint).ys[0]

    wanted = jax.grad(lambda a: 1.2 * jnp.exp(-a * jnp.cos(1.0)))(0.8)
    np.testing.assert_allclose(jax.jit(jax.grad(value))(jnp.array(0.8)), wanted, rtol=10 * STEPPED)


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
    with pytest.raises(Unsupported, match="event"):
        solve(p, Gauss(), event=dfx.Event(lambda t, y, args, **_: y - 1.0))
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

    assert storage(1, array(KEEP_STAGES // 4), array(1)) == "stages"
    assert storage(1, array(KEEP_STAGES // 4 + 1), array(KEEP_STEPS // 4)) == "steps"
    assert storage(1, array(KEEP_STAGES // 4 + 1), array(KEEP_STEPS // 4 + 1)) == "times"


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
