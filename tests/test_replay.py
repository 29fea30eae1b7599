"""`Replay` against backpropagation through Diffrax's own loop, to rounding, on all that its adjoints support there."""

import diffrax as dfx
import jax
import jax.numpy as jnp
import optimistix as optx
import pytest
import replay_cases as cases

from implicitexp.adjoints.discrete import stage_equations, step
from implicitexp.adjoints.discrete.replay import Replay
from implicitexp.adjoints.discrete.reversible import Reversible
from implicitexp.adjoints.discrete.rolled import Rolled
from implicitexp.adjoints.discrete.tableau import scheme_of
from implicitexp.adjoints.discrete.unrolled import Unrolled
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
WRITTEN_OUT = ("written out",)  # the stages one by one, as in large systems
ROWS = [
    row(AUTO, dfx.Tsit5(), cases.adaptive, cases.end, mark=()),
    row(("stages",), dfx.Kvaerno3(), cases.fixed_root, cases.end),
    row(("steps", *WRITTEN_OUT), dfx.Tsit5(), cases.adaptive, cases.all_forms),
    row(AUTO, dfx.Tsit5(), cases.clipped, cases.several),
    row(AUTO, dfx.Tsit5(), cases.second_order, cases.end, lambda_field=True),
    row(AUTO, dfx.Tsit5(), cases.stepped, cases.all_forms, dt0=None),
    row(AUTO, dfx.Tsit5(), cases.adaptive, cases.all_forms, BACKWARDS),
    row((1, "stages"), dfx.Heun(), cases.adaptive, cases.times),  # kept are an even number: 1 is 2
    row((6,), dfx.ImplicitEuler(), cases.adaptive, cases.all_forms),
    row(WRITTEN_OUT, dfx.Kvaerno5(), cases.clipped, cases.dense),
]


def adjoint_of(store, monkeypatch):
    if store not in WRITTEN_OUT:
        return Replay(store)
    monkeypatch.setattr(step, "SMALL", 0)
    monkeypatch.setattr(stage_equations, "AT_EACH_STAGE", 0)
    return Replay("steps")


@pytest.mark.parametrize(("stores", "solver", "controller", "saveat", "changes", "options"), ROWS)
def test_equal_to_the_gradient_through_the_loop(
    float64, monkeypatch, stores, solver, controller, saveat, changes, options
):
    p = cases.params(**changes)
    expected = cases.gradient(p, THROUGH_THE_LOOP, solver, controller, saveat, **options)
    for store in stores:
        got = cases.gradient(p, adjoint_of(store, monkeypatch), solver, controller, saveat, **options)
        assert cases.difference(got, expected) < ROUND_OFF, store


@pytest.mark.parametrize("solver", cases.EXPLICIT, ids=lambda s: type(s).__name__)
def test_a_step_is_the_solvers_own(float64, solver):
    """In both forms of it; the tests above are about a few solvers only, the others have another tableau."""
    t0, t1, y0 = jnp.array(0.3), jnp.array(0.7), {"x": jnp.array([1.0, 0.4])}
    term = dfx.ODETerm(lambda t, y, args: {"x": jnp.cos(t) * y["x"][::-1] - args * y["x"] ** 2})
    expected = solver.step(term, t0, t1, y0, 0.8, solver.init(term, t0, t1, y0, 0.8), False)[0]

    class Model:
        def slope(self, theta, t, z, control):
            return term.vf_prod(t, z, theta, control)

        def control(self, theta, t0, t1):
            return term.contr(t0, t1)

    scheme = scheme_of(solver)
    for kind in (Rolled, Unrolled):
        got = kind.take(scheme, Model(), jnp.array(0.8), (t0, t1, y0), None, scheme.needed()).y1
        assert jnp.allclose(got["x"], expected["x"], rtol=1e-14)


def contracting(n):
    """The equation of a stage of n unknowns, y' = J y, J with the eigenvalues -1 to -n."""
    key = jax.random.key(1)
    vectors = jnp.eye(n) + 0.1 * jax.random.normal(key, (n, n))
    jacobian = vectors @ jnp.diag(-jnp.linspace(1.0, n, n)) @ jnp.linalg.inv(vectors)
    return jacobian, jax.random.normal(jax.random.key(2), (n,))


@pytest.mark.parametrize(("n", "off"), [(3, None), (60, None), (60, 0.05), (60, 30.0)])
def test_the_transposed_equation_of_a_stage(float64, n, off):
    """`off`: how much of the Jacobian another stage has, whose factors are used: so little that refinement makes it exact, or
    too much, so that the stage is factorised itself."""
    jacobian, c = contracting(n)

    def solution(jacobian, c):
        shared = None
        if off is not None:
            shared = stage_equations.factors(0.3, lambda x: ((1 + off) * jacobian).T @ x, c)
        return stage_equations.solved(0.3, lambda x: jacobian.T @ x, c, shared)

    def exact(jacobian, c):
        return jnp.linalg.solve((jnp.eye(n) - 0.3 * jacobian).T, c)

    tangents = (0.1 * jacobian @ jacobian, c[::-1])
    got, right = (jax.jvp(f, (jacobian, c), tangents) for f in (jax.jit(solution), exact))
    for x, y in zip(got, right, strict=True):
        assert jnp.linalg.norm(x - y) < 1e-13 * jnp.linalg.norm(y)


@slow
def test_no_step_one_and_two(float64):
    """And a loss that sees every parameter: else a gradient that is zero by mistake would pass above."""

    def gradient(adjoint):
        return lambda p: cases.gradient(p, adjoint, dfx.Heun(), cases.fixed, cases.all_forms)

    ours, expected = jax.jit(gradient(Replay())), jax.jit(gradient(THROUGH_THE_LOOP))
    for changes in ({"t1": 0.1, "ts": [0.1] * 6}, {"dt0": 2.0}, {"dt0": 0.8}):
        p = cases.params(**changes)
        got = ours(p)
        assert cases.difference(got, expected(p)) < ROUND_OFF
    assert all(float(jnp.max(jnp.abs(got[name]))) > 1e-10 for name in ("closed", "held", "t0", "t1", "ts"))


def of_four_numbers(x, adjoint, solver):
    """y' = -x0 y^2 + x1 sin t from y(0) = (x2, x3), at t = x0."""
    controller = dfx.PIDController(rtol=1e-6, atol=1e-6)
    term = dfx.ODETerm(lambda t, y, x: -x[0] * y**2 + x[1] * jnp.sin(t))
    sol = dfx.diffeqsolve(
        term, solver, 0.0, x[0], None, x[2:], x, stepsize_controller=controller, adjoint=adjoint, max_steps=100
    )
    return jnp.sum(jnp.sin(sol.ys[-1]))


X = (0.7, 0.5, 1.0, 0.3)


@slow
@pytest.mark.parametrize(("solver", "store"), [(dfx.Tsit5(), 4), (dfx.Kvaerno3(), "stages")])
def test_second_derivatives(float64, solver, store):
    x, v = jnp.array(X), jnp.array([0.3, -1.0, 0.5, 2.0])
    expected = jax.jit(jax.hessian(lambda x: of_four_numbers(x, dfx.DirectAdjoint(), solver)))(x)

    def gradient(x):
        return jax.grad(lambda x: of_four_numbers(x, Replay(store), solver))(x)

    hessian, along = jax.jit(lambda x: (jax.jacfwd(gradient)(x), jax.jvp(gradient, (x,), (v,))[1]))(x)
    assert jnp.linalg.norm(hessian - expected) < ROUND_OFF * jnp.linalg.norm(expected)
    assert jnp.linalg.norm(along - expected @ v) < ROUND_OFF * jnp.linalg.norm(expected @ v)


def test_reverse_over_reverse_is_refused_in_words(float64):
    def gradient(x):
        return jax.grad(lambda x: of_four_numbers(x, Replay(), dfx.Heun()))(x)

    with pytest.raises(RuntimeError, match=r"use jax.hessian, jax.jacfwd\(jax.grad"):
        jax.jit(jax.grad(lambda x: jnp.sum(gradient(x))))(jnp.array(X))


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


@pytest.mark.parametrize("store", ["steps", pytest.param(4, marks=slow)])
def test_a_lane_that_fails_leaves_the_others_alone(float64, store):
    rates = jnp.array([0.1, 0.7, 0.2, -1.0])
    lanes = jax.jit(jax.grad(lambda r: jnp.sum(jax.vmap(lambda r: growth(r, Replay(store)))(r))))(rates)
    assert lanes[1] == 0
    good = jnp.array([0, 2, 3])
    assert jnp.allclose(lanes[good], 2 / (1 - 2 * rates[good]) ** 2, rtol=CLOSED_FORM)


@pytest.mark.parametrize("adjoint", [Replay(), pytest.param(Reversible(), marks=slow)], ids=["replay", "reversible"])
def test_the_gradient_of_a_solve_that_ran_out_of_steps_is_nan(adjoint):
    """Diffrax raises where the solution is looked at. Where only its gradient is, as of a sum, its own adjoints give that of
    wherever the solve stood, in silence."""

    def end(rate):
        term = dfx.ODETerm(lambda t, y, rate: -rate * y)
        return jnp.sum(
            dfx.diffeqsolve(term, dfx.Heun(), 0.0, 1.0, 0.1, jnp.ones(2), rate, adjoint=adjoint, max_steps=2).ys
        )

    assert jnp.isnan(jax.jit(jax.grad(end))(1.0))


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


@pytest.mark.parametrize(
    ("condition", "root_finder"),
    [
        pytest.param(lambda t, y, args, **_: y[0], None, id="no root finder"),
        pytest.param(lambda t, y, args, **_: y[0] < 0, optx.Newton(1e-8, 1e-8), id="no sign", marks=slow),
    ],
)
def test_the_time_of_an_event_that_is_not_located_is_refused(condition, root_finder):
    """Diffrax's derivative of it is zero. That of the state is that of the state at the end of a step."""

    def end(g):
        event = dfx.Event(condition, root_finder)
        return dfx.diffeqsolve(
            dfx.ODETerm(lambda t, y, g: jnp.stack([y[1], -g])), dfx.Euler(), 0.0, 3.0, 0.5, jnp.array([1.0, 1.0]), g,
            event=event, adjoint=Replay(),
        )  # fmt: skip

    with pytest.raises(Unsupported, match="optimistix.Newton"):
        jax.grad(lambda g: end(g).ts[-1])(9.81)
    assert jax.grad(lambda g: end(g).ys[-1, 1] + jax.lax.stop_gradient(end(g).ts[-1]))(9.81) == -1.0  # after two steps
