"""Events under the continuous adjoints: a ball that falls, against its closed form; where an event has no derivative.

The ball starts at the height h with the velocity v: h + v t - g t^2/2 = c at t = (v + r)/g after t0, r = sqrt(v^2 + 2 g (h - c)),
with the velocity -r. Its path is a parabola, so that every method of order two is exact on it, and so is the time.
"""

import diffrax as dfx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
import pytest
from continuous_cases import ADJOINTS, CLASSES, PID, STEPPED, arrays, assert_close, name, rows

from implicitexp.adjoints.continuous.backsolve_adjoint import Backsolve
from implicitexp.adjoints.continuous.forward_sensitivity import ForwardSensitivity
from implicitexp.adjoints.continuous.gauss_adjoint import Gauss

# Interpolating takes the path of Gauss but for its parameters: the ball holds it. Backsolve, too, is Gauss about the end.
BY_EVERY_PATH = [Gauss(store="steps"), Backsolve(checkpoints=2), ForwardSensitivity()]
ROOT = optx.Newton(1e-13, 1e-13)
BALL = {"h": 10.0, "v": 1.0, "g": 9.81, "t0": 0.3, "floor": 0.5}
ROUND_OFF = 1e-9  # of a parabola with a linear adjoint: Newton's tolerance, and some ten steps
END_OF_STEP = 1e-2  # the step, within which the condition is linearised


def field(t, y, p):
    return jnp.stack([y[1], -p["g"]])


def fall(p, adjoint, condition=None, t1=jnp.inf, root=ROOT, saveat=None, controller=PID, dt0=0.1, **options):
    def to_floor(t, y, args, **_):
        return y[0] - p["floor"]

    event = dfx.Event(to_floor if condition is None else condition, root)
    return dfx.diffeqsolve(
        dfx.ODETerm(field), dfx.Tsit5(), p["t0"], t1, dt0, jnp.stack([p["h"], p["v"]]), p, event=event, adjoint=adjoint,
        saveat=dfx.SaveAt(t1=True) if saveat is None else saveat, stepsize_controller=controller, **options,
    )  # fmt: skip


def landing(p):
    """When, and how fast."""
    r = jnp.sqrt(p["v"] ** 2 + 2 * p["g"] * (p["h"] - p["floor"]))
    return p["t0"] + (p["v"] + r) / p["g"], -r


def seen(t, y):
    return jnp.sin(t) + y[1] ** 2 + 3 * y[0]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("adjoint", rows(ADJOINTS))
def test_the_ball_lands(adjoint):
    """By the start, by args, by t0 and by a number that only the condition knows. In each step back lambda and what depends on
    it are polynomials of a degree that is integrated exactly."""

    def loss(p):
        sol = fall(p, adjoint)
        return seen(sol.ts[-1], sol.ys[-1])

    def exact(p):
        t, v = landing(p)
        return seen(t, jnp.stack([p["floor"], v]))

    p = arrays(BALL)
    assert_close(jax.jit(jax.grad(loss))(p), jax.grad(exact)(p), ROUND_OFF)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("adjoint", CLASSES, ids=name)
def test_lanes_with_and_without_the_event(adjoint):
    """Before t1 = 1.5 the ball lands in two of three lanes; the third ends at t1, which it is then differentiated by."""

    def loss(h, t1):
        sol = fall({**arrays(BALL), "h": h}, adjoint, t1=t1)
        return seen(sol.ts[-1], sol.ys[-1])

    def exact(h, t1):
        p = {**arrays(BALL), "h": h}
        at, v = landing(p)
        t = t1 - p["t0"]
        landed = seen(at, jnp.stack([p["floor"], v]))
        flying = seen(t1, jnp.stack([h + p["v"] * t - p["g"] * t**2 / 2, p["v"] - p["g"] * t]))
        return jnp.where(at < t1, landed, flying)

    h, t1 = jnp.array([2.0, 30.0, 5.0]), jnp.array(1.5)
    found = jax.jit(jax.vmap(jax.grad(loss, (0, 1)), (0, None)))(h, t1)
    wanted = jax.vmap(jax.grad(exact, (0, 1)), (0, None))(h, t1)
    np.testing.assert_allclose(found, wanted, rtol=ROUND_OFF, atol=ROUND_OFF)
    assert found[1][0] == 0
    assert found[1][1] != 0


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("adjoint", [Gauss(), ForwardSensitivity()], ids=name)
def test_the_first_of_several_conditions(adjoint):
    """Floor, ceiling, a clock, and one whose derivative is infinite at the landing: only the one that was met counts, in each
    lane another one."""

    def loss(p, ceiling):
        conditions = {
            "ceiling": lambda t, y, args, **_: ceiling - y[0],
            "clock": lambda t, y, args, **_: t - 40.0,
            "floor": lambda t, y, args, **_: y[0] - args["floor"],
            "root": lambda t, y, args, **_: 7.0 + jnp.sqrt(jnp.abs(y[0] - args["floor"])),
        }
        sol = fall(p, adjoint, conditions)
        return seen(sol.ts[-1], sol.ys[-1])

    def lands(p, ceiling):
        t, v = landing(p)
        return seen(t, jnp.stack([p["floor"], v]))

    def rises(p, ceiling):
        up = (p["v"] - jnp.sqrt(p["v"] ** 2 + 2 * p["g"] * (p["h"] - ceiling))) / p["g"]
        return seen(p["t0"] + up, jnp.stack([ceiling, p["v"] - p["g"] * up]))

    velocities = (1.0, 5.0)  # the ceiling is reached in the first step, or not at all
    starts = [arrays({**BALL, "v": v}) for v in velocities]
    lanes = jax.jit(jax.vmap(jax.grad(loss, (0, 1)), (0, None)))
    found = lanes(jax.tree.map(lambda *x: jnp.stack(x), *starts), jnp.array(10.3))
    for i, exact in enumerate((lands, rises)):
        wanted = jax.grad(exact, (0, 1))(starts[i], jnp.array(10.3))
        assert_close(jax.tree.map(lambda x, i=i: x[i], found[0]), wanted[0], ROUND_OFF)
        np.testing.assert_allclose(found[1][i], wanted[1], rtol=ROUND_OFF, atol=ROUND_OFF)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("adjoint", BY_EVERY_PATH, ids=name)
def test_what_is_saved_before_the_end(adjoint):
    """`ts` before and after the event, functions of the state, every step: times before the event stay where they are."""
    p = arrays(BALL)
    ts = jnp.array([0.3, 0.9, 1.1, 9.0])

    def value(p):
        subs = [
            dfx.SubSaveAt(ts=ts, t1=True, fn=lambda t, y, args: t * y * args["g"]),
            dfx.SubSaveAt(t0=True, t1=True, steps=1),
        ]
        sol = fall(p, adjoint, saveat=dfx.SaveAt(subs=subs), t1=10.0, max_steps=60)
        return sol.ts, sol.ys

    saved_at = np.asarray(value(p)[0][1])
    held = saved_at[np.isfinite(saved_at)][:-1]

    def loss(p):
        (times, steps), (values, states) = value(p)
        last = jnp.isfinite(times)
        total = jnp.sum(jnp.where(last, jnp.sin(times), 0)) + jnp.sum(jnp.where(last[:, None], jnp.cos(values), 0))
        there = jnp.isfinite(steps)
        return total + jnp.sum(jnp.where(there, steps * states[:, 0] * states[:, 1], 0))

    def exact(p):
        def path(t):
            s = t - p["t0"]
            return jnp.stack([p["h"] + p["v"] * s - p["g"] * s**2 / 2, p["v"] - p["g"] * s], -1)

        end = landing(p)[0]
        times = jnp.concatenate([ts[:3], end[None]])
        steps = jnp.concatenate([p["t0"][None], held[1:], end[None]])
        states = path(steps)
        total = jnp.sum(jnp.sin(times)) + jnp.sum(jnp.cos(times[:, None] * path(times) * p["g"]))
        return total + jnp.sum(steps * states[:, 0] * states[:, 1])

    assert_close(jax.jit(jax.grad(loss))(p), jax.grad(exact)(p), 10 * ROUND_OFF)  # a sum over a dozen of rows


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("adjoint", [Gauss(), ForwardSensitivity()], ids=name)
def test_bounces(adjoint):
    """Three bounces with restitution e, in a scan, each from the end of the one before: t_n by the sum of the flights."""

    def loss(p, e):
        def bounce(start, _):
            t, height, v = start
            sol = fall({**p, "t0": t, "h": height, "v": v}, adjoint)
            return (sol.ts[-1], p["floor"] + 1e-12, -e * sol.ys[-1, 1]), None  # above the floor by less than is seen

        (t, _, v), _ = jax.lax.scan(bounce, (p["t0"], p["h"], p["v"]), length=3)
        return jnp.sin(t) + v**2

    def exact(p, e):
        t, v = landing(p)
        r = -v
        return jnp.sin(t + 2 * r * (e + e**2) / p["g"]) + (e**3 * r) ** 2

    p, e = arrays(BALL), jnp.array(0.7)
    found, wanted = jax.jit(jax.grad(loss, (0, 1)))(p, e), jax.grad(exact, (0, 1))(p, e)
    assert_close(found[0], wanted[0], 10 * ROUND_OFF)  # three solves
    np.testing.assert_allclose(found[1], wanted[1], rtol=10 * ROUND_OFF)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("adjoint", [Gauss(), ForwardSensitivity()], ids=name)
def test_forward_mode_and_time_backwards(adjoint):
    """y' = -a y from 1 at t0 = 2 backwards, up to y = c: T = t0 - log(c)/a."""

    def value(a, c, t0):
        sol = dfx.diffeqsolve(
            dfx.ODETerm(lambda t, y, a: -a * y), dfx.Tsit5(), t0, -9.0, None, 1.0, a,
            event=dfx.Event(lambda t, y, args, **_: y - c, ROOT), adjoint=adjoint, stepsize_controller=PID,
        )  # fmt: skip
        return jnp.stack([sol.ts[0], sol.ys[0]])

    def exact(a, c, t0):
        return jnp.stack([t0 - jnp.log(c) / a, c])

    at = (jnp.array(0.8), jnp.array(3.0), jnp.array(2.0))
    wanted = jax.jacfwd(exact, (0, 1, 2))(*at)
    np.testing.assert_allclose(jax.jit(jax.jacfwd(value, (0, 1, 2)))(*at), wanted, rtol=STEPPED, atol=STEPPED)
    np.testing.assert_allclose(jax.jit(jax.jacrev(value, (0, 1, 2)))(*at), wanted, rtol=STEPPED, atol=STEPPED)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("adjoint", [Gauss(), ForwardSensitivity()], ids=name)
def test_without_a_root_finder(adjoint):
    """The end of the step of 0.01 in which the ball lands: the time at which it is as high as there, so that the derivatives
    are those of a floor at that height exactly, and those of the floor itself up to the step."""
    p = arrays(BALL)

    def end(p):
        return fall(p, adjoint, root=None, controller=dfx.ConstantStepSize(), t1=3.0, dt0=END_OF_STEP)

    def both(p):
        sol = end(p)
        return jnp.stack([sol.ts[-1], sol.ys[-1, 1]])

    height = end(p).ys[-1, 0]
    assert height < p["floor"]
    found = jax.jit(jax.jacrev(both))(p)

    def exact(floor):
        def at(p):
            return jnp.stack(landing({**p, "floor": floor + p["floor"] - BALL["floor"]}))

        return jax.jacrev(at)(p)

    assert_close(found, exact(height), ROUND_OFF)
    assert_close(found, exact(p["floor"]), END_OF_STEP)


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("adjoint", [Gauss(), ForwardSensitivity()], ids=name)
def test_a_boolean_condition(adjoint):
    """The state moves as at a fixed time; of the time itself there is no derivative, aloud or as NaN."""

    def end(p, throw=True):
        return fall(p, adjoint, lambda t, y, args, **_: y[0] < 0.5, root=None, throw=throw)

    p = arrays(BALL)
    t = jax.jit(lambda p: end(p).ts[-1])(p)
    found = jax.jit(jax.grad(lambda p: end(p).ys[-1, 1]))(p)
    wanted = {"h": 0.0, "v": 1.0, "g": -(t - BALL["t0"]), "t0": BALL["g"], "floor": 0.0}
    assert_close(found, wanted, ROUND_OFF)
    assert np.isnan(jax.jit(jax.grad(lambda p: end(p, throw=False).ts[-1]))(p)["h"])
    with pytest.raises(Exception, match="is a boolean"):
        jax.block_until_ready(jax.grad(lambda p: end(p).ts[-1])(p))


@pytest.mark.slow
@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("adjoint", BY_EVERY_PATH, ids=name)
def test_an_event_at_the_start_and_a_steady_state(adjoint):
    """A condition that holds at t0: no step, the end is the start. A steady state: y' = a - y stops near y = a."""

    def still(p):
        sol = fall(p, adjoint, lambda t, y, args, **_: y[0] > 0, root=None)
        return sol.ts[-1] ** 2 + sol.ys[-1, 0]

    p = arrays(BALL)
    assert_close(jax.jit(jax.grad(still))(p), {"h": 1.0, "v": 0.0, "g": 0.0, "t0": 2 * BALL["t0"], "floor": 0.0}, 1e-15)

    def steady(a):
        sol = dfx.diffeqsolve(
            dfx.ODETerm(lambda t, y, a: a - y), dfx.Tsit5(), 0.0, jnp.inf, 0.1, 0.2, a,
            event=dfx.Event(dfx.steady_state_event(1e-8, 1e-8)), adjoint=adjoint, stepsize_controller=PID,
        )  # fmt: skip
        return sol.ys[0] ** 2

    np.testing.assert_allclose(jax.jit(jax.grad(steady))(jnp.array(1.3)), 2.6, rtol=10 * STEPPED)


@pytest.mark.slow
def test_second_derivatives_with_an_event_are_refused(float64):
    p = arrays(BALL)
    with pytest.raises(RuntimeError, match="first derivatives"):
        jax.jacfwd(jax.jacfwd(lambda h: fall({**p, "h": h}, Gauss()).ts[-1]))(p["h"])
