"""The ground truth: true errors lie within the uncertainties that it states."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import truth_cases
from truth_cases import BY_KIND, CASES, exact_gradient, start, withheld

from implicitexp import device, solvers
from implicitexp.equations import ODE, Integral, Root
from implicitexp.problems import AbstractProblem, Digits
from implicitexp.reference import Referee, ReferenceSettings
from implicitexp.truth import host_ode
from implicitexp.truth.doubles import flat
from implicitexp.truth.host_call import host_call

FAST = {"double root, nearly", "contraction r", "limit and integrand"}
TABLE = [pytest.param(c, id=c.name, marks=[] if c.name in FAST else pytest.mark.slow) for c in CASES]
USEFUL = 1e-6  # relative uncertainty above which a reference of a smooth problem says too little
DIFFERENCE = 1e-6  # central differences with step eps^(1/3) in float64, conditioned problems


def of(tree):
    return np.linalg.norm(flat(tree))


def test_table_is_large_enough():
    assert len(CASES) >= 30
    assert len({c.name for c in CASES}) == len(CASES)
    assert all(len(cases) >= 7 and any(c.hard for c in cases) for cases in BY_KIND.values())


@pytest.mark.parametrize("case", CASES, ids=repr)
def test_closed_form_agrees_with_its_differences(case):
    """The table itself: the derivative that JAX takes of the closed form, against central differences of it."""
    with jax.enable_x64(True):
        point = jax.tree.map(jnp.asarray, start(case))
        exact = jax.grad(lambda p: case.exact_loss(p, None))(point)
        for name, value in point.items():
            step = 1e-5 * abs(value)

            def at(moved, name=name):
                return case.exact_loss({**point, name: moved}, None)

            ends = [float(at(value + k * step)) for k in (-2, -1, 1, 2)]
            slope = (ends[0] - 8 * ends[1] + 8 * ends[2] - ends[3]) / (12 * step)
            noise = 1e-15 * max(map(abs, ends)) / step
            assert abs(slope - exact[name]) <= DIFFERENCE * abs(exact[name]) + 10 * noise


@pytest.mark.parametrize("case", TABLE)
def test_true_error_is_within_the_stated_uncertainty(case):
    reference = Referee(withheld(case), case.solver)(start(case))
    assert reference.gradient is not None, reference.remark
    assert reference.how.startswith("two computations: ")
    error = of(jax.tree.map(lambda a, b: a - b, reference.gradient, exact_gradient(case)))
    assert error <= reference.absolute_uncertainty
    assert 0 < reference.uncertainty < USEFUL


def test_closed_form_is_used_and_has_an_uncertainty():
    case = BY_KIND["root"][0]
    reference = Referee(case)(start(case))
    assert reference.how == "closed form"
    assert 0 < reference.uncertainty < 1e-12
    assert reference.remark is None
    assert all(x.dtype == np.float64 for x in jax.tree.leaves(reference.gradient))


def test_a_closed_form_of_another_problem_is_remarked():
    wrong = truth_cases.case("wrong", truth_cases.root(lambda y, p: y**2 - p["a"], 1.0), lambda p: p["a"], a=2.0)
    assert "exact_loss is 2, but loss is 1.41421" in Referee(wrong)(start(wrong)).remark


def test_the_process_may_be_in_either_precision():
    case = withheld(BY_KIND["fixed_point"][3])
    found = []
    for precision in ("float32", "float64"):
        with device.configured("cpu", precision):
            found.append(Referee(case)(start(case)))
    assert of(jax.tree.map(lambda a, b: a - b, found[0].gradient, found[1].gradient)) == 0


class Own(AbstractProblem):
    """A problem that is written as a user would, a function for its loss."""

    def init(self, key):
        return {"a": jnp.array(0.7), "b": jnp.array([0.2, 0.4])}

    def loss(self, params, batch, solve):
        raise NotImplementedError


def growth(a, solve, scale=1.0, dtype=None):
    def field(t, z, a):
        slope = scale * a * z
        return slope if dtype is None else (slope.astype(dtype) * 1).astype(z.dtype)

    return solve(ODE(field, 1.0, 0.0, 1.0), a).value


class Pinned(Own):
    def loss(self, params, batch, solve):
        return growth(params["a"], solve, jnp.float32(1.5))


class Narrow(Own):
    def loss(self, params, batch, solve):
        return growth(params["a"], solve, dtype=jnp.float32)


class NarrowArgument(Own):
    def loss(self, params, batch, solve):
        return solve(Root(lambda y, args: y - args["rate"], 0.5), {"rate": params["a"].astype(jnp.float32)}).value


@pytest.mark.parametrize(
    ("problem", "name"),
    [(Pinned(), "field holds or closes over"), (Narrow(), "field of an ODE"), (NarrowArgument(), "")],
    ids=["constant", "cast", "argument"],
)
def test_what_pins_a_type_is_refused_by_name(problem, name):
    reference = Referee(problem)(problem.init(None))
    assert reference.gradient is None
    assert reference.uncertainty == np.inf
    assert reference.how == "none"
    assert "float32" in reference.remark
    assert name in reference.remark


class Mapped(Own):
    """vmap, scan, jit and two kinds of equation in one loss."""

    def loss(self, params, batch, solve):
        roots = jax.vmap(lambda b: solve(Root(lambda y, b: y**3 + y - b, 0.1), b).value)(params["b"])

        def step(carry, x):
            return solve(Integral(lambda x, a: jnp.exp(a * x), 0.0, x), carry).value, carry

        last, _ = jax.lax.scan(step, params["a"], jnp.asarray([0.5, 0.9], params["a"].dtype))
        return jnp.sum(roots**2) + jax.jit(jnp.square)(last)


def mapped_exact(params):
    """Cardano's roots, and the integral in closed form, twice."""
    scale = np.sqrt(1 / 3)
    roots = 2 * scale * jnp.sinh(jnp.arcsinh(params["b"] / (2 * scale**3)) / 3)
    a = params["a"]
    for x in (0.5, 0.9):
        a = (jnp.exp(a * x) - 1) / a
    return jnp.sum(roots**2) + a**2


class Nested(Own):
    """An integral whose integrand contains a root, y^2 = a x."""

    def loss(self, params, batch, solve):
        def integrand(x, a):
            return solve(Root(lambda y, c: y**2 - c, 1.0), a * (1 + x)).value

        return solve(Integral(integrand, 0.0, 1.0), params["a"]).value


def nested_exact(params):
    return jnp.sqrt(params["a"]) * 2 / 3 * (2**1.5 - 1)


@pytest.mark.parametrize(
    ("problem", "exact"),
    [
        pytest.param(Mapped(), mapped_exact, id="mapped", marks=pytest.mark.slow),
        pytest.param(Nested(), nested_exact, id="nested", marks=pytest.mark.slow),
    ],
)
def test_losses_with_several_equations(problem, exact):
    params = problem.init(None)
    reference = Referee(problem)(params)
    assert reference.gradient is not None, reference.remark
    with jax.enable_x64(True):
        truth = jax.tree.map(np.asarray, jax.grad(exact)(jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)))
    error = of(jax.tree.map(lambda a, b: a - b, reference.gradient, truth))
    assert error <= reference.absolute_uncertainty
    assert reference.uncertainty < USEFUL


class Residual(Own):
    """y_{k+1} = y_k + a y_k, three times: a solver that the loss pins is part of the model."""

    def loss(self, params, batch, solve):
        equation = ODE(lambda t, y, a: a * y, 1.0, 0.0, 3.0)
        return solve(equation, params["a"], solver=solvers.Euler(dt0=1.0, max_steps=16)).value


def test_a_pinned_solver_is_the_model():
    problem = Residual()
    params = problem.init(None)
    a = np.float64(params["a"])
    reference = Referee(problem)(params)
    assert abs(reference.gradient["a"] - 3 * (1 + a) ** 2) <= reference.absolute_uncertainty
    assert reference.uncertainty < 1e-12


def test_a_fixed_step_that_the_experiment_chooses_is_not_the_model():
    case = BY_KIND["ode"][0]
    reference = Referee(withheld(case), solvers.Euler(dt0=0.1))(start(case))
    error = of(jax.tree.map(lambda a, b: a - b, reference.gradient, exact_gradient(case)))
    assert error <= reference.absolute_uncertainty < 1e-6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("explicit", "stiff", "chosen"),
    [
        pytest.param(4, 0, "SciPy's DOP853", id="small"),
        pytest.param(0, 4, "SciPy's Radau", id="state too large for DOP853"),
        pytest.param(3, 3, "backpropagation through Dopri8", id="sensitivities too large for both"),
    ],
)
def test_both_sides_of_the_size_switch(explicit, stiff, chosen, monkeypatch):
    """Growth has one unknown and three inputs that move, its start and the two of `args`: a system of four numbers."""
    monkeypatch.setattr(host_ode, "LARGEST_SYSTEM", explicit)
    monkeypatch.setattr(host_ode, "LARGEST_STIFF_SYSTEM", stiff)
    case = BY_KIND["ode"][0]
    reference = Referee(withheld(case))(start(case))
    assert chosen in reference.how
    error = of(jax.tree.map(lambda a, b: a - b, reference.gradient, exact_gradient(case)))
    assert error <= reference.absolute_uncertainty
    assert reference.uncertainty < USEFUL


def test_a_loose_gradient_needs_no_tight_reference():
    case = withheld(BY_KIND["ode"][0])
    rough = jax.tree.map(lambda x: np.float64(1.1) * x, exact_gradient(case))
    settings = ReferenceSettings(target=1e-13)
    loose, tight = (Referee(case, None, settings)(start(case), None, judged) for judged in (rough, None))
    assert loose.uncertainty <= 0.1 / 10
    assert tight.uncertainty < loose.uncertainty


class NoRoot(Own):
    def loss(self, params, batch, solve):
        return solve(Root(lambda y, a: y**2 + a, 1.0), params["a"]).value


def test_a_root_that_does_not_exist_has_no_reference():
    problem = NoRoot()
    reference = Referee(problem)(problem.init(None))
    assert reference.gradient is None
    assert "finds no solution" in reference.remark
    assert reference.as_dict()["gradient"] is None


@pytest.mark.slow
def test_digits_by_the_large_pair():
    problem = Digits(width=16, batch_size=8)
    reference = Referee(problem)(problem.init(jax.random.key(0)), problem.batch(jax.random.key(1)))
    assert "backpropagation through Dopri8" in reference.how
    assert reference.uncertainty < USEFUL


def test_host_call_runs_lane_by_lane_and_raises_what_is_raised():
    shape = jax.ShapeDtypeStruct((), jnp.result_type(float))
    twice = jax.vmap(lambda x: host_call(lambda x: float(x) * 2, shape, x))(jnp.arange(3.0))
    assert twice.tolist() == [0.0, 2.0, 4.0]
    with pytest.raises(ZeroDivisionError):
        host_call(lambda x: 1 / 0, shape, 1.0)


def test_a_numpy_constant_keeps_its_digits_in_both_precisions():
    """Fails once JAX's memory of numpy constants no longer ignores the precision, or mixed_precision.py no longer
    repairs it: see there."""
    table = np.array([0.1, 0.2, 0.3])
    used = jax.jit(lambda x: x * table)
    assert used(jnp.float32(1)).dtype == jnp.float32
    with jax.enable_x64(True):
        assert (jnp.asarray(1.0) * table).dtype == jnp.float64
        assert np.array_equal(np.asarray(jnp.asarray(1.0) * table), table)
    assert used(jnp.float32(2)).dtype == jnp.float32
