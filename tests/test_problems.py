"""The problems: each reaches its goal with the defaults of its YAML, and its closed form is right."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem_runs import COMPOSER, configured, trained
from scipy import integrate, optimize

from implicitexp import data, problems, tracing
from implicitexp.configuration import folders
from implicitexp.problems import brachistochrone_paths as paths
from implicitexp.solving import Solve

NAMES = sorted(path.stem for path in (folders.shipped() / "problem").glob("*.yaml"))
ROUND_OFF = 1e-12  # float64, some tens of operations
SOLVER = {"float32": 1e-4, "float64": 1e-7}  # ten times the solvers' default tolerances
OPTIMUM = 1e-4  # of the fit's parameters against SciPy's, which the issue asks for
PUBLISHED = {"hare_growth": 0.55, "predation": 0.028, "lynx_death": 0.80, "lynx_growth": 0.024, "hare_start": 34.0,
             "lynx_start": 5.9}  # fmt: skip
RADIUS = {"float32": 1e-3, "float64": 1e-6}  # of the cycloid, relative
TIME = 1e-3  # of the cycloid, relative
RATIOS = (0.05, 0.3, 0.6, 0.75, 1.0, np.pi / 2, 2.0, 2.5, 5.0, 10.0)  # P_X / P_Y; the lowest point is at π/2
AWAY = 0.2  # relative distance of a start from the answer, at least

# -- goals ------------------------------------------------------------------------------------------------------------


def test_kepler_finds_the_eccentricity_of_the_closed_form(precision):
    run = trained("root_kepler")
    assert run.losses[0] > 0.1
    assert abs(run.found["eccentricity"] - (1.5 - 1.0) / np.sin(1.5)) < SOLVER[precision]


def test_ridge_finds_the_optimum_of_the_normal_equations(precision):
    run = trained("fixed_point_ridge")
    best = optimize.minimize_scalar(ridge_by_normal_equations, bounds=(-6.0, 2.0), method="bounded",
                                    options={"xatol": 1e-9})  # fmt: skip
    assert run.losses[0] > 1.03 * best.fun
    assert run.found["held_out_error"] == pytest.approx(best.fun, rel=SOLVER[precision])
    assert run.found["strength"] == pytest.approx(np.exp(best.x), rel=1e-3)  # the minimum is flat: 1e-3 is 1e-9 of it


def ridge_by_normal_equations(log_strength: float) -> float:
    """The held-out error, from the data, by NumPy."""
    inputs, target = data.diabetes()
    held = np.arange(442) % 4 == 3
    x, y = inputs - inputs[~held].mean(0), target - target[~held].mean()
    x, y = x / inputs[~held].std(0), y / target[~held].std()
    weights = np.linalg.solve(
        x[~held].T @ x[~held] / 332 + np.exp(log_strength) * np.eye(10), x[~held].T @ y[~held] / 332
    )
    return float(np.mean((x[held] @ weights - y[held]) ** 2))


def test_pendulum_finds_the_length_of_the_closed_form(precision):
    run = trained("integral_pendulum")
    quarter, _ = integrate.quad(lambda phi: 1 / np.sqrt(1 - (np.sin(1.25) * np.sin(phi)) ** 2), 0, np.pi / 2)
    assert run.found["length_m"] == pytest.approx(9.81 * (2.5 / (4 * quarter)) ** 2, rel=SOLVER[precision])
    assert abs(run.before["length_relative_error"]) > 0.1


@pytest.mark.slow
def test_exponential_ends_at_zero_as_its_closed_form_does(precision):
    run = trained("ode_exponential")
    assert run.losses[0] == pytest.approx(np.exp(2.0), rel=SOLVER[precision])
    assert run.losses[-1] < 1e-10
    assert run.found["z_T"] == pytest.approx(run.found["z_T_exact"], abs=SOLVER[precision])


@pytest.mark.slow
def test_the_trap_starts_from_two_and_says_that_it_is_one(precision):
    run = trained("ode_equilibrium")
    assert run.losses[0] == pytest.approx(2.0, abs=SOLVER[precision])
    assert run.problem.trap
    assert run.losses[-1] < run.losses[0]
    assert [name for name in NAMES if configured(name)[1].trap] == ["ode_equilibrium"]


@pytest.mark.slow
def test_lotka_volterra_reaches_the_least_squares_optimum_of_scipy(precision):
    run = trained("ode_lotka_volterra")
    best, loss = fitted_by_scipy()
    assert run.losses[0] > 5 * loss
    assert run.losses[-1] == pytest.approx(loss, rel=OPTIMUM)
    for name, published in PUBLISHED.items():
        assert run.found[name] == pytest.approx(best[name], rel=OPTIMUM)
        assert run.found[name] == pytest.approx(published, rel=0.04)


def fitted_by_scipy() -> tuple[dict[str, float], float]:
    """Parameters and half the sum of squares."""
    years, pelts = data.hare_lynx()

    def residuals(p):
        a, b, c, d = np.exp(p[:4])
        solved = integrate.solve_ivp(lambda t, z: [a - b * np.exp(z[1]), d * np.exp(z[0]) - c], (0, 20), p[4:],
                                     t_eval=years - years[0], rtol=1e-9, atol=1e-9)  # fmt: skip
        return (solved.y.T - np.log(pelts)).ravel()

    found = optimize.least_squares(residuals, np.log(list(PUBLISHED.values())), xtol=1e-11, ftol=1e-11, gtol=1e-11)
    return dict(zip(PUBLISHED, np.exp(found.x), strict=True)), found.cost


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layer", "least", "most"), [("ode", 97.5, 100), ("residual", 97.5, 100), ("identity", 95, 96)]
)
def test_digits_are_learned_and_the_layer_is_worth_it(layer, least, most):
    """Mean test accuracy of three seeds, in percent: with the layer at least 1.5 points above without it."""
    runs = [trained("ode", f"problem.layer={layer}", f"seed={seed}", optimized=True) for seed in range(3)]
    assert least <= 100 * np.mean([run.found["test_accuracy"] for run in runs]) <= most


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["ode", "residual", "identity"])
def test_digits_run_in_float64(float64, layer):
    run = trained("ode", f"problem.layer={layer}", "steps=40")
    assert all(x.dtype == jnp.float64 for x in jax.tree.leaves(run.params))
    assert np.mean(run.losses[-5:]) < 0.5 * run.losses[0]


# -- the brachistochrone ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0.05, 0.75, 2.5, 10.0])
def test_brachistochrone_by_the_root_finds_the_cycloid(ratio):
    finds_the_cycloid("root", ratio, "float32")


@pytest.mark.slow
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("formulation", ["ode", "root", "direct"])
def test_brachistochrone_finds_the_cycloid(formulation, ratio, precision):
    finds_the_cycloid(formulation, ratio, precision)


def finds_the_cycloid(formulation: str, ratio: float, precision: str):
    down = 0.7  # m; not 1, so that a mistaken unit of length is seen
    run = trained("brachistochrone", f"problem.formulation={formulation}", f"problem.P=[{ratio * down},{down}]")
    name, wanted = ("time_relative_error", TIME) if formulation == "direct" else ("R_relative_error", RADIUS[precision])
    assert abs(run.before[name]) > AWAY
    assert abs(run.found[name]) < wanted
    angle, radius = cycloid_by_scipy(ratio, down)
    exact, own = (angle * np.sqrt(radius / 9.81), "exact_time") if formulation == "direct" else (radius, "exact_radius")
    assert getattr(run.problem, own)() == pytest.approx(exact, rel=SOLVER[precision])


def cycloid_by_scipy(ratio: float, down: float) -> tuple[float, float]:
    """Angle and R of the cycloid through P."""
    angle = optimize.brentq(lambda a: (a - np.sin(a)) - ratio * (1 - np.cos(a)), 1e-3, 2 * np.pi - 1e-6, xtol=1e-14)
    return angle, down / (1 - np.cos(angle))


@pytest.mark.slow
@pytest.mark.parametrize("formulation", ["ode", "root"])
def test_brachistochrone_can_be_trained_on_the_radius_itself(formulation, precision):
    run = trained("brachistochrone", f"problem.formulation={formulation}", "problem.parameter=R")
    assert set(run.params) == {"R"}
    assert abs(run.found["R_relative_error"]) < RADIUS[precision]


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [0.05, 2.0, 10.0])
def test_line_searches_stay_on_the_first_arch(float64, ratio):
    """R below P_X/2π meets P with its second arch, which is no answer: a root there does not count as one."""
    overrides = ["problem.formulation=root", f"problem.P=[{ratio},1.0]", "optimizer=lbfgs", "steps=60"]
    assert abs(trained("brachistochrone", *overrides).found["R_relative_error"]) < RADIUS["float64"]


def test_theta_minus_sin_has_no_cancellation(float64):
    for theta in (1e-8, 1e-3, 0.5, 0.999, 1.001, 3.0, 6.0):
        series = sum(
            (-1) ** (k + 1) * theta ** (2 * k + 1) / float(np.prod(np.arange(1.0, 2 * k + 2))) for k in range(1, 20)
        )
        assert float(paths.theta_minus_sin(jnp.asarray(theta))) == pytest.approx(series, rel=ROUND_OFF)


@pytest.mark.parametrize("P", [[1.0, -1.0], [0.0, 1.0], [1.0, 2.0, 3.0], [float("nan"), 1.0]], ids=str)
def test_brachistochrone_refuses_a_point_that_cannot_be_reached(P):
    with pytest.raises(ValueError, match="P must be two"):
        problems.Brachistochrone(P=P)


# -- closed forms, kinds, data ----------------------------------------------------------------------------------------

CLOSED = ["ode_exponential", "root_kepler", "fixed_point_ridge", "integral_pendulum", "brachistochrone"]
STEP = 1e-5  # of central differences: their error is 1e-10, and the solver's 1e-13 / STEP


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms_have_the_derivative_that_they_claim(float64, name):
    """jax.grad of the exact loss against its own central differences, away from the start."""
    _, problem, *_ = configured(name, "precision=float64")
    params = jax.tree.map(lambda x: x + 0.1, problem.init(jax.random.key(0)))
    gradient = jax.grad(problem.exact_loss)(params, None)
    for leaf in params:
        up, down = ({**params, leaf: params[leaf] + sign * STEP} for sign in (1, -1))
        difference = (problem.exact_loss(up, None) - problem.exact_loss(down, None)) / (2 * STEP)
        assert float(gradient[leaf]) == pytest.approx(float(difference), rel=1e-7)


@pytest.mark.parametrize("name", CLOSED)
def test_closed_forms_are_what_the_solvers_find(float64, name):
    _, problem, solver, gradient = configured(name, "precision=float64")
    params = problem.init(jax.random.key(0))
    solved = jax.jit(lambda p: problem.loss(p, None, Solve(solver, gradient)))(params)
    assert float(solved) == pytest.approx(float(problem.exact_loss(params, None)), rel=SOLVER["float64"])


def test_the_traps_gradient_is_known_at_the_equilibrium_only():
    trap = problems.Equilibrium()
    assert float(trap.exact_gradient({"a": jnp.asarray(1.0)}, None)["a"]) == pytest.approx(2 - 2 * np.cos(10), rel=1e-6)
    assert trap.exact_gradient({"a": jnp.asarray(1.01)}, None) is None


VARIANTS = [
    *((name, ()) for name in NAMES),
    ("ode", ("problem.layer=residual",)),
    ("ode", ("problem.layer=identity",)),
    ("fixed_point", ("problem.layer=feedforward",)),
    ("brachistochrone", ("problem.formulation=root",)),
    ("brachistochrone", ("problem.formulation=direct",)),
]


@pytest.mark.parametrize(("name", "overrides"), VARIANTS, ids=str)
def test_the_kinds_that_the_yaml_names_are_those_that_the_loss_solves(name, overrides):
    composed = COMPOSER.checked([f"problem={name}", *overrides])[1]
    _, problem, *_ = configured(name, *overrides)
    params, batch = problem.init(jax.random.key(0)), problem.batch(jax.random.key(1))
    assert set(composed.hints.kinds) == {use.kind for use in tracing.uses(problem, params, batch)}


@pytest.mark.parametrize(("name", "overrides"), VARIANTS, ids=str)
def test_problems_run_in_the_precision_of_their_inputs(name, overrides):
    """Built in float32, cast to float64 as the ground truth does: nothing may pin a type."""
    _, problem, *_ = configured(name, *overrides)
    params, batch = problem.init(jax.random.key(0)), problem.batch(jax.random.key(1))
    with jax.enable_x64(True):
        wide = jax.tree.map(widened, (problem, params, batch))
        seen: list[jnp.dtype] = []
        out = jax.eval_shape(lambda p, b: wide[0].loss(p, b, watching(seen)), *wide[1:])
    assert all(x.dtype == jnp.float64 for x in jax.tree.leaves(out))
    assert set(seen) <= {jnp.dtype("float64")}


def widened(x):
    return x.astype(jnp.float64) if hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jnp.floating) else x


def watching(seen):
    """A `solve` that notes the type of what it returns."""
    inner = Solve()

    def solve(equation, args=None, **options):
        solution = inner(equation, args, **options)
        seen.extend(x.dtype for x in jax.tree.leaves(solution.value))
        return solution

    return solve


def test_the_shipped_data_are_those_that_were_published():
    """Shapes and sums (scikit-learn's copies of digits and diabetes; the table of Stan's case study)."""
    images, labels = data.digits()
    assert images.shape == (1797, 8, 8)
    assert (images.min(), images.max(), int(images.sum())) == (0, 16, 561718)
    assert np.bincount(labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    inputs, progression = data.diabetes()
    assert inputs.shape == (442, 10)
    assert progression.sum() == 67243
    assert inputs[0].tolist() == [59, 2, 32.1, 101, 157, 93.2, 38, 4, 4.8598, 87]
    years, pelts = data.hare_lynx()
    assert years.tolist() == list(range(1900, 1921))
    assert pelts.sum(0).tolist() == pytest.approx([715.7, 423.5])
    durations, waiting = data.old_faithful()
    assert waiting.shape == (272,)
    assert (durations.sum(), waiting.sum()) == pytest.approx((948.677, 19284.0))
    bus, branch = data.ieee14()
    assert (bus["load_mw"].sum(), bus["load_mvar"].sum()) == pytest.approx((259.0, 73.5))
    assert (len(bus["bus"]), len(branch["x_pu"]), branch["x_pu"].sum()) == (14, 20, pytest.approx(4.02683))
    with open(data.path("SOURCES.md"), encoding="utf-8") as file:
        text = file.read()
    shipped = os.listdir(data.path(""))
    assert all(name in text for name in shipped if name.endswith((".csv", ".npz")))


def test_jittered_images_stay_what_they_are():
    """A shift by whole pixels moves the image; by nothing keeps it; what moves out is lost."""
    image = jnp.arange(64.0).reshape(8, 8)
    from implicitexp.problems.digit_images import shifted

    np.testing.assert_array_equal(shifted(image, jnp.array([0.0, 0.0])), image)
    np.testing.assert_array_equal(shifted(image, jnp.array([1.0, 0.0]))[1:], image[:-1])
    np.testing.assert_array_equal(shifted(image, jnp.array([0.0, -1.0]))[:, :-1], image[:, 1:])
    np.testing.assert_allclose(shifted(image, jnp.array([0.5, 0.0]))[1:], (image[1:] + image[:-1]) / 2)
