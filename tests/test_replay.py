"""`Replay` against backpropagation through Diffrax's own loop, to rounding, on all that its adjoints support there."""

import diffrax as dfx
import jax
import jax.numpy as jnp
import optimistix as optx
import pytest
import replay_cases as cases
from jax.flatten_util import ravel_pytree

from implicitexp.adjoints.discrete.replay import Replay
from implicitexp.errors import Unsupported

ROUND_OFF = 2e-11  # float64: a few hundred products, and cancellation where an output lies near the end of a step
CLOSED_FORM = 1e-7  # of a solve at rtol = atol = 1e-9
THROUGH_THE_LOOP = dfx.RecursiveCheckpointAdjoint()
BACKWARDS = {"t0": 1.7, "t1": 0.1, "dt0": -0.13, "ts": cases.PARAMS["ts"][::-1]}
slow = pytest.mark.slow


def row(stores, solver, controller, saveat, changes=None, mark=slow, **options):
    """The stores of a row are held against the same gradient, which takes longer than theirs to compile."""
    names = (*stores, type(solver).__name__, controller.__name__, saveat.__name__, *(changes or {}), *options)
    return pytest.param(
        stores, solver, controller, saveat, changes or {}, options, id="-".join(map(str, names)), marks=mark
    )


AUTO = ("auto",)
ROWS = [
    row(AUTO, dfx.Tsit5(), cases.adaptive, cases.several, mark=()),
    row(("stages",), dfx.Kvaerno3(), cases.fixed_root, cases.end, mark=()),
    row(("steps",), dfx.Tsit5(), cases.adaptive, cases.all_forms),
    *(row(AUTO, dfx.Tsit5(), c, s) for c in (cases.fixed, cases.clipped) for s in cases.SAVED),
    row(AUTO, dfx.Tsit5(), cases.second_order, cases.all_forms),
    *(row(AUTO, dfx.Tsit5(), cases.stepped, s, dt0=None) for s in (cases.all_forms, cases.dense)),
    *(row(AUTO, dfx.Tsit5(), cases.adaptive, s, BACKWARDS) for s in (cases.all_forms, cases.dense)),
    row(AUTO, dfx.Tsit5(), cases.adaptive, cases.times, {"t1": 0.1, "ts": [0.1]}),  # no step
    row(("auto", 3), dfx.Tsit5(), cases.fixed, cases.all_forms, {"dt0": 2.0}),  # one
    row(AUTO, dfx.Tsit5(), cases.fixed, cases.all_forms, {"dt0": 0.8}),  # two
    row(AUTO, dfx.Tsit5(), cases.adaptive, cases.end, lambda_field=True),
    row((1, 3, 5, 16, 300, "stages"), dfx.Tsit5(), cases.adaptive, cases.several),  # kept are an even number: 1 is 2
    row(("stages",), dfx.Tsit5(), cases.adaptive, cases.end),
    *(row(AUTO, s, cases.fixed, cases.times) for s in cases.EXPLICIT),
    *(row(("steps", "stages", 6), s, cases.adaptive, cases.all_forms) for s in cases.IMPLICIT),
    row(("steps", 5), dfx.Kvaerno4(), cases.clipped, cases.dense),
]


@pytest.mark.parametrize(("stores", "solver", "controller", "saveat", "changes", "options"), ROWS)
def test_equal_to_the_gradient_through_the_loop(float64, stores, solver, controller, saveat, changes, options):
    p = cases.params(**changes)
    expected = cases.gradient(p, THROUGH_THE_LOOP, solver, controller, saveat, **options)
    for store in stores:
        got = cases.gradient(p, Replay(store), solver, controller, saveat, **options)
        assert cases.difference(got, expected) < ROUND_OFF, store


@slow
def test_the_loss_of_the_rows_sees_every_parameter(float64):
    """Else a gradient that is zero by mistake would pass."""
    p = cases.params()
    gradient = cases.gradient(p, Replay(), dfx.Tsit5(), cases.clipped, cases.several)
    assert all(float(jnp.max(jnp.abs(x))) > 1e-10 for x in jax.tree.leaves(gradient))


@slow
@pytest.mark.parametrize("solver", [dfx.Tsit5(), dfx.Kvaerno3()], ids=lambda s: type(s).__name__)
def test_second_derivatives(float64, solver):
    p = cases.params()
    flat, unravel = ravel_pytree({name: p[name] for name in ("args", "closed", "held", "y0", "t1")})

    def hessian(adjoint):
        def loss(x):
            sol = cases.solve({**p, **unravel(x)}, adjoint, solver, cases.adaptive, cases.times)
            return cases.weighted((sol.ys, sol.ts))

        return jax.jit(jax.hessian(loss))(flat)

    expected = hessian(dfx.DirectAdjoint())
    for store in ("steps", "stages", 4):
        assert jnp.linalg.norm(hessian(Replay(store)) - expected) < ROUND_OFF * jnp.linalg.norm(expected), store


@slow
def test_large_states_are_thinned(float64):
    """4096 states of 4000 numbers, which the default `max_steps` allows, would be 131 MB."""
    y0 = jnp.linspace(0.1, 1.0, 4000)

    def loss(rate, adjoint):
        sol = dfx.diffeqsolve(
            dfx.ODETerm(lambda t, y, rate: -rate * y**2), dfx.Heun(), 0.0, 1.0, 0.01, y0, rate, adjoint=adjoint
        )
        return jnp.sum(sol.ys[-1])

    compiled = jax.jit(jax.grad(lambda r: loss(r, Replay()))).lower(1.0).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 16 * 2**20  # 8 MiB, and a chunk
    exact = -jnp.sum(y0**2 / (1 + y0) ** 2)  # y(1) = y0/(1 + rate y0)
    got = compiled(jnp.array(1.0))
    assert jnp.allclose(got, exact, rtol=1e-4)
    assert jnp.allclose(got, jax.grad(loss)(1.0, THROUGH_THE_LOOP), rtol=ROUND_OFF)


def growth(rate, adjoint, max_steps=60):
    """y' = rate y^2, y(0) = 1: y(2) = 1/(1 - 2 rate), infinite before for rate > 1/2. Zero where the solve failed."""
    sol = dfx.diffeqsolve(
        dfx.ODETerm(lambda t, y, rate: rate * y**2),
        dfx.Tsit5(),
        0.0,
        2.0,
        None,
        jnp.array(1.0),
        args=rate,
        stepsize_controller=dfx.PIDController(rtol=1e-9, atol=1e-9),
        adjoint=adjoint,
        max_steps=max_steps,
        throw=False,
    )
    return jnp.where(sol.result == dfx.RESULTS.successful, sol.ys[-1], 0.0)


@pytest.mark.parametrize("store", ["steps", pytest.param("stages", marks=slow), pytest.param(4, marks=slow)])
def test_a_lane_that_fails_leaves_the_others_alone(float64, store):
    rates = jnp.array([0.1, 0.7, 0.2, -1.0])
    lanes = jax.jit(jax.grad(lambda r: jnp.sum(jax.vmap(lambda r: growth(r, Replay(store)))(r))))(rates)
    assert lanes[1] == 0
    good = jnp.array([0, 2, 3])
    assert jnp.allclose(lanes[good], 2 / (1 - 2 * rates[good]) ** 2, rtol=CLOSED_FORM)


@slow
def test_under_scan_and_a_shared_parameter_under_vmap(float64):
    def loss(rate, adjoint):
        starts = jnp.array([0.2, 0.5, 1.5])

        def one(y0):
            def step(y, _):
                sol = dfx.diffeqsolve(
                    dfx.ODETerm(lambda t, y, a: -rate * y * t), dfx.Heun(), 0.0, 1.0, 0.1, y, adjoint=adjoint
                )
                return sol.ys[-1], sol.ts[-1]

            return jax.lax.scan(step, y0, length=3)

        ys, ts = jax.vmap(one)(starts)
        return jnp.sum(ys**2) + jnp.sum(ts)

    expected = jax.grad(loss)(0.7, THROUGH_THE_LOOP)
    assert jnp.allclose(jax.grad(loss)(0.7, Replay()), expected, rtol=ROUND_OFF)


def landing(p, adjoint):
    """A ball thrown up with v from the height h: when it lands, and how fast."""
    h, v, g = p
    sol = dfx.diffeqsolve(
        dfx.ODETerm(lambda t, y, g: jnp.stack([y[1], -g])),
        dfx.Tsit5(),
        0.0,
        jnp.inf,
        0.1,
        jnp.stack([h, v]),
        args=g,
        event=dfx.Event(lambda t, y, args, **_: y[0], optx.Newton(1e-12, 1e-12)),
        adjoint=adjoint,
        stepsize_controller=dfx.PIDController(rtol=1e-9, atol=1e-9),
    )
    return sol.ts[-1], sol.ys[-1, 1]


@slow
def test_time_and_state_of_an_event(float64):
    """h + v t - g t^2/2 = 0: t = (v + r)/g with r = sqrt(v^2 + 2 g h), the velocity there -r."""

    def exact(p):
        h, v, g = p
        r = jnp.sqrt(v**2 + 2 * g * h)
        return (v + r) / g, -r

    p = jnp.array([10.0, 1.0, 9.81])
    for got, right in zip(jax.jacrev(landing)(p, Replay()), jax.jacrev(exact)(p), strict=True):
        assert jnp.allclose(got, right, rtol=CLOSED_FORM)


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
    assert value == start(dfx.Heun(), THROUGH_THE_LOOP, max_steps=None)(1.0)
