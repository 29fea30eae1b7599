"""FrozenMesh and Leibniz in Quadax's own routines, against closed forms and against Quadax's own adjoints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quadax
from jax.scipy.special import gammaln

from implicitexp.adjoints.quadrature.frozen_mesh import FrozenMesh
from implicitexp.adjoints.quadrature.leibniz import Leibniz
from implicitexp.errors import Unsupported

TIGHT = {"epsabs": 1e-12, "epsrel": 1e-12}
SAME = 1e-13  # two orders of summing the same products
ADJOINTS = {"frozen": FrozenMesh(), "leibniz": Leibniz()}
slow = pytest.mark.slow


def gk(fun, interval, args, adjoint, routine=quadax.quadgk, **options):
    plain = {} if routine is quadax.tanhsinh else {"extrapolate": False}
    return routine(fun, interval, args, adjoint=adjoint, **{**plain, **TIGHT, **options})[0]


class Case:
    """`call(p, adjoint)`, in closed form `exact(p)`, at `p`; `error` is allowed, relative to the gradient's norm."""

    def __init__(self, call, exact, p, error=1e-11):
        self.call, self.exact, self.p, self.error = call, exact, p, error


def decay(x, a):
    return jnp.exp(-a * x)


def primitive(a, lower, upper):
    return (jnp.exp(-a * lower) - jnp.exp(-a * upper)) / a


def with_routine(routine, lower=0.0, upper=2.0, error=1e-11, **options):
    def call(p, adjoint):
        limits = jnp.stack([p["l"], p["u"]])
        return gk(decay, limits, (p["a"],), adjoint, routine, **options)

    return Case(call, lambda p: primitive(p["a"], p["l"], p["u"]), {"a": 1.3, "l": lower, "u": upper}, error)


def rule(fun, interval, args, **options):
    return quadax.adaptive_quadrature(quadax.GaussKronrodRule(15), fun, interval, args, **options)


W = np.linspace(0.2, 1.4, 20)


def jump(p, adjoint):
    """A jump from p c to 3 at c^2, which is a breakpoint."""
    interval = jnp.stack([jnp.zeros(()), p["c"] ** 2, jnp.ones(())])
    return gk(lambda x, c: jnp.where(x < c**2, c, 3.0) * (1 + x), interval, (p["c"],), adjoint)


def vector(p, adjoint):
    args = ({"w": p["w"], "held": (jnp.asarray(2), p["s"])},)
    got = gk(
        lambda x, args: jnp.stack([jnp.sum(jnp.exp(args["w"] * x)), args["held"][1] * x ** args["held"][0]]),
        jnp.array([0.0, 1.0]),
        args,
        adjoint,
    )
    return got[0] * got[1]


CASES = {
    "quadgk": with_routine(quadax.quadgk),
    "quadgk, reversed": with_routine(quadax.quadgk, 2.0, 0.5),
    "quadgk, extrapolating": with_routine(quadax.quadgk, extrapolate=True),
    "quadcc": with_routine(quadax.quadcc),
    "quadts": with_routine(quadax.quadts),
    "romberg": with_routine(quadax.romberg, extrapolate=True),
    "tanhsinh": with_routine(quadax.tanhsinh),
    "adaptive_quadrature": with_routine(rule),
    "a closed-over value, no args": Case(
        lambda p, adjoint: gk(lambda x: decay(x, p), jnp.array([0.0, 2.0]), (), adjoint),
        lambda p: primitive(p, 0.0, 2.0), 1.3,
    ),
    "no args, a limit": Case(
        lambda p, adjoint: gk(jnp.cos, jnp.stack([jnp.zeros(()), p]), (), adjoint), jnp.sin, 1.3,
    ),
    "many args in a tree, two values": Case(
        vector, lambda p: jnp.sum(jnp.expm1(p["w"]) / p["w"]) * p["s"] / 3, {"w": W, "s": 0.7},
    ),
    "half the line": Case(
        lambda p, adjoint: gk(lambda x, s: x ** (s - 1) * jnp.exp(-x), jnp.array([0.0, jnp.inf]), (p,), adjoint),
        lambda p: jnp.exp(gammaln(p)), 3.5, 1e-9,
    ),
    "the line": Case(
        lambda p, adjoint: gk(lambda x, a: jnp.exp(-a * x**2), jnp.array([-jnp.inf, jnp.inf]), (p,), adjoint),
        lambda p: jnp.sqrt(jnp.pi / p), 1.7, 1e-9,
    ),
    "a singular end": Case(
        lambda p, adjoint: gk(
            lambda x, a: x**a, jnp.array([0.0, 1.0]), (p,), adjoint, quadax.quadts, epsabs=1e-9, epsrel=1e-9
        ),
        lambda p: 1 / (1 + p), -0.4, 1e-7,
    ),
    "a singular end, extrapolated": Case(
        lambda p, adjoint: gk(
            lambda x, a: x**a, jnp.array([0.0, 1.0]), (p,), adjoint, extrapolate=True, epsabs=1e-8, epsrel=1e-8
        ),
        lambda p: 1 / (1 + p), -0.4, 1e-6,
    ),
    "a jump at a breakpoint": Case(
        jump, lambda p: p["c"] * (p["c"] ** 2 + p["c"] ** 4 / 2) + 3 * (1.5 - p["c"] ** 2 - p["c"] ** 4 / 2), {"c": 0.7},
    ),
    "nothing to integrate over": with_routine(quadax.quadgk, 0.8, 0.8),
}  # fmt: skip
FAST = ("quadgk",)
TABLE = [n if n in FAST else pytest.param(n, marks=slow) for n in CASES]


def arrays(p):
    return jax.tree.map(jnp.asarray, p)


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def gap(got, want):
    got, want = flat(got), flat(want)
    return np.linalg.norm(got - want) / np.linalg.norm(want)


@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("name", TABLE)
def test_reverse_mode_is_the_closed_form(name, adjoint, float64):
    case, p = CASES[name], arrays(CASES[name].p)
    got = jax.jit(jax.grad(lambda p: case.call(p, ADJOINTS[adjoint])))(p)
    assert gap(got, jax.grad(case.exact)(p)) < case.error


@slow
@pytest.mark.parametrize("adjoint", ADJOINTS)
@pytest.mark.parametrize("name", ["quadgk", "romberg", "a jump at a breakpoint", "a singular end, extrapolated"])
def test_forward_mode_is_the_closed_form(name, adjoint, float64):
    case, p = CASES[name], arrays(CASES[name].p)
    way = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size, dtype=x.dtype).reshape(x.shape)), p)
    got = jax.jit(lambda p, t: jax.jvp(lambda p: case.call(p, ADJOINTS[adjoint]), (p,), (t,))[1])(p, way)
    want = flat(jax.grad(case.exact)(p))
    assert abs(got - want @ flat(way)) < case.error * np.linalg.norm(want) * np.linalg.norm(flat(way))


@slow
@pytest.mark.parametrize(
    "name", ["quadgk, extrapolating", "a singular end, extrapolated", "half the line", "a jump at a breakpoint"]
)
def test_frozen_mesh_is_quadaxs_own_number(name, float64):
    case, p = CASES[name], arrays(CASES[name].p)

    def by(adjoint):
        return jax.jit(jax.value_and_grad(lambda p: case.call(p, adjoint)))(p)

    got, want = by(FrozenMesh()), by(quadax.DirectAdjoint())
    assert float(got[0]) == float(want[0])
    assert gap(got[1], want[1]) < SAME


@slow
def test_float32():
    case = with_routine(quadax.quadgk, epsabs=1e-5, epsrel=1e-5)
    want = jax.grad(case.exact)(arrays(case.p))
    for adjoint in ADJOINTS.values():
        assert gap(jax.grad(lambda p, a=adjoint: case.call(p, a))(arrays(case.p)), want) < 1e-6


FORWARD, REVERSE = jax.jacfwd, jax.jacrev
SECOND = [
    ("quadgk", "frozen", FORWARD),
    ("quadgk", "frozen", REVERSE),
    ("quadgk", "leibniz", FORWARD),
    ("quadgk", "leibniz", REVERSE),
    ("a jump at a breakpoint", "frozen", FORWARD),
    ("a jump at a breakpoint", "leibniz", FORWARD),
    ("a singular end, extrapolated", "frozen", FORWARD),
    ("romberg", "frozen", REVERSE),
]


@slow
@pytest.mark.parametrize(("name", "adjoint", "order"), SECOND)
def test_second_derivatives(name, adjoint, order, float64):
    case, p = CASES[name], arrays(CASES[name].p)
    got = jax.jit(order(jax.grad(lambda p: case.call(p, ADJOINTS[adjoint]))))(p)
    assert gap(got, order(jax.grad(case.exact))(p)) < 100 * case.error


PEAKS = np.array([1.0, 0.3, 1e-3])  # the last one is too narrow for the intervals allowed


def peak(e, adjoint, max_ninter):
    return gk(
        lambda x, e: e / (e**2 + x**2),
        jnp.array([-1.0, 1.0]),
        (e,),
        adjoint,
        max_ninter=max_ninter,
        epsabs=1e-9,
        epsrel=1e-9,
    )


@slow
def test_a_lane_that_fails_leaves_the_others_alone(float64):
    """Leibniz: the derivative's own integral misses its tolerance in one lane of three, which is NaN."""
    slope = jax.jit(jax.vmap(jax.grad(lambda e: peak(e, Leibniz(), 8))))
    got = slope(PEAKS)
    want = jax.vmap(jax.grad(lambda e: 2 * jnp.arctan(1 / e)))(PEAKS)
    np.testing.assert_allclose(got[:2], want[:2], rtol=1e-7)
    assert jnp.isnan(got[2])


@slow
def test_lanes_are_what_they_are_alone(float64):
    for adjoint in ADJOINTS.values():
        slope = jax.grad(lambda e, a=adjoint: peak(e, a, 40))
        np.testing.assert_allclose(jax.jit(jax.vmap(slope))(PEAKS), [jax.jit(slope)(e) for e in PEAKS], rtol=1e-9)


@slow
@pytest.mark.parametrize("adjoint", ADJOINTS)
def test_scan(adjoint, float64):
    """Three integrals one inside the next's limit, differentiated through the loop."""

    def chained(a, integral):
        return jax.lax.scan(lambda u, _: (1 + integral(a, u), None), jnp.ones(()), None, length=3)[0]

    def by_quadax(a, u):
        return gk(decay, jnp.stack([jnp.zeros(()), u]), (a,), ADJOINTS[adjoint])

    got = jax.jit(jax.grad(chained), static_argnums=1)(jnp.array(1.3), by_quadax)
    assert got == pytest.approx(float(jax.grad(chained)(jnp.array(1.3), lambda a, u: primitive(a, 0.0, u))), rel=1e-10)


@slow
def test_a_limit_where_the_integrand_is_infinite(float64):
    """x^-1/2 from l = 0 to u: the derivative by l is infinite, that by u is u^-1/2. 1/sqrt(x - l) moves with its limit."""
    limits = jnp.array([0.0, 2.0])
    at = {"routine": quadax.quadts, "epsabs": 1e-7, "epsrel": 1e-7}

    def fixed(limits, adjoint):
        return gk(lambda x: x**-0.5, limits, (), adjoint, **at)

    slope = jax.jit(jax.grad(lambda limits: fixed(limits, Leibniz())))(limits)
    assert jnp.isnan(slope[0])
    assert slope[1] == pytest.approx(2**-0.5, rel=1e-12)
    pushed = jax.jit(lambda t: jax.jvp(lambda limits: fixed(limits, Leibniz()), (limits,), (t,))[1])
    assert jnp.isnan(pushed(jnp.array([1.0, 1.0])))
    assert pushed(jnp.array([0.0, 1.0])) == pytest.approx(2**-0.5, rel=1e-12)

    def moving(limits):
        return gk(lambda x, lower: (x - lower) ** -0.5, limits, (limits[0],), FrozenMesh(), **at)

    np.testing.assert_allclose(jax.jit(jax.grad(moving))(limits), [-(2**-0.5), 2**-0.5], rtol=1e-6)


@slow
def test_leibnizs_tolerance_is_its_own(float64):
    """A peak whose value converges early: the derivative's error follows the tolerance that is asked for."""

    def error(rtol):
        got = jax.jit(jax.grad(lambda e: peak(e, Leibniz(rtol=rtol, atol=rtol), 60)))(0.01)
        want = float(jax.grad(lambda e: 2 * jnp.arctan(1 / e))(0.01))
        return abs(float(got) - want) / abs(want)

    assert error(1e-12) < 1e-11
    assert error(1e-4) < 1e-4


def test_only_the_mesh_is_kept(float64):
    """Two fractions and an integer for each interval, the inputs, and the rule's nodes: not a value of the integrand."""
    intervals, weights = 40, jnp.ones(7)

    def integral(w, adjoint):
        fun = lambda x, w: jnp.sum(w) * jnp.exp(-x * jnp.ones(50))  # noqa: E731
        return jnp.sum(gk(fun, jnp.array([0.0, 1.0]), (w,), adjoint, max_ninter=intervals))

    def kept(adjoint):
        residuals = jax.eval_shape(lambda w: jax.vjp(lambda w: integral(w, adjoint), w)[1], weights)
        return sum(x.size for x in jax.tree.leaves(residuals))

    assert kept(FrozenMesh()) < 3 * intervals + 3 * 21 + 100
    assert kept(Leibniz()) < 3 * 21 + 100
    assert kept(quadax.DirectAdjoint()) > 21 * intervals


@slow
def test_a_box(float64):
    """The integral of exp(-a x y) x over two unit lengths by a limit that moves."""

    def integral(p, adjoint):
        box = [jnp.stack([jnp.zeros(()), p["u"]]), jnp.array([0.0, 1.0])]
        fun = lambda x, a: x[0] * jnp.exp(-a * x[0] * x[1])  # noqa: E731
        return quadax.cubegm(fun, box, (p["a"],), adjoint=adjoint, epsabs=1e-10, epsrel=1e-10)[0]

    p = {"a": jnp.array(0.8), "u": jnp.array(1.5)}
    want = jax.grad(lambda p: p["u"] / p["a"] - (1 - jnp.exp(-p["a"] * p["u"])) / p["a"] ** 2)(p)
    assert gap(jax.jit(jax.grad(lambda p: integral(p, FrozenMesh())))(p), want) < 1e-8
    with pytest.raises(Unsupported, match="no boundary terms in more than one dimension"):
        jax.grad(lambda p: integral(p, Leibniz()))(p)
    got = jax.jit(jax.grad(lambda a: integral(p | {"a": a}, Leibniz())))(p["a"])
    assert got == pytest.approx(float(want["a"]), rel=1e-8)


def test_a_chunk_of_no_intervals_is_refused():
    with pytest.raises(ValueError, match="chunk_size=0: give the number of intervals"):
        FrozenMesh(chunk_size=0)
