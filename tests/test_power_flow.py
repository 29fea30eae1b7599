"""`problem=root`: the power flow against the published solution, and its optimum against SciPy's on complex arithmetic."""

import csv

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problem_runs import trained
from scipy import optimize

from implicitexp import data, problems
from implicitexp.problems.power_flow import FREE, HELD, NAMES, admittances
from implicitexp.solving import Solve

ROUND_OFF = 1e-12  # float64, some tens of operations
PUBLISHED_VOLTAGE = 0.002  # per unit, accuracy of the published column
PUBLISHED_ANGLE = 0.02  # degrees
LOSSES = 13.393  # MW at the published set points
DIGITS = {
    "float32": 2e-5,
    "float64": 1e-9,
}  # relative error of the losses: the solver's tolerance, squared by Newton's step
OPTIMUM = {"float32": 1e-3, "float64": 1e-5}  # per unit, of the set points: the least loss is flat
LEAST = {"float32": 1e-5, "float64": 1e-8}  # relative, of the loss at the optimum


# -- the same objective once more, in complex arithmetic, from the files -----------------------------------------------


def table(name: str) -> list[dict[str, str]]:
    with open(data.path(name), encoding="utf-8") as file:
        return list(csv.DictReader(file))


class Network:
    """Loads, generation and admittances of the files, per unit on 100 MVA."""

    def __init__(self):
        bus = table("ieee14_bus.csv")
        self.kinds = [row["type"] for row in bus]
        fed = [(float(r["generation_mw"]) - float(r["load_mw"]), -float(r["load_mvar"])) for r in bus]
        self.fed = np.array([complex(*pair) for pair in fed]) / 100
        self.matrix = np.diag([complex(float(r["shunt_mw"]), float(r["shunt_mvar"])) for r in bus]) / 100
        for row in table("ieee14_branch.csv"):
            at = [int(row["from_bus"]) - 1, int(row["to_bus"]) - 1]
            g, half = 1 / complex(float(row["r_pu"]), float(row["x_pu"])), 0.5j * float(row["b_pu"])
            transform = np.diag([1 / float(row["tap_ratio"]), 1.0])
            self.matrix[np.ix_(at, at)] += transform @ np.array([[g + half, -g], [-g, g + half]]) @ transform
        self.held = [i for i, kind in enumerate(self.kinds) if kind != "pq"]
        self.free = [i for i, kind in enumerate(self.kinds) if kind == "pq"]
        self.guess = np.concatenate([np.zeros(13), np.ones(9)])

    def powers(self, voltage: np.ndarray) -> np.ndarray:
        """S = V conj(Y V), what flows from each bus into the network."""
        return voltage * np.conj(self.matrix @ voltage)

    def solved(self, set_points: np.ndarray) -> np.ndarray:
        """The complex voltages."""

        def voltage(unknowns):
            size = np.empty(14)
            size[self.held], size[self.free] = set_points, unknowns[13:]
            return size * np.exp(1j * np.concatenate([[0.0], unknowns[:13]]))

        def mismatch(unknowns):
            over = self.powers(voltage(unknowns)) - self.fed
            return np.concatenate([over.real[1:], over.imag[self.free]])

        found = optimize.root(mismatch, self.guess, tol=1e-13)
        assert np.abs(mismatch(found.x)).max() < 1e-10, found.message
        self.guess = found.x  # a warm start: a search moves little
        return voltage(found.x)

    def losses(self, voltage: np.ndarray) -> float:
        """What is fed in less what is taken out, per unit."""
        return float(self.powers(voltage).sum().real)

    def objective(self, set_points: np.ndarray) -> float:
        """Losses with soft limits, as the problem's docstring has them."""
        voltage = self.solved(set_points)
        limit = np.where(np.arange(14) == 7, 1.09, 1.06)
        outside = np.maximum(np.abs(voltage) - limit, 0) + np.maximum(0.94 - np.abs(voltage), 0)
        return self.losses(voltage) + 100 * float(np.sum(outside**2))


# -- tests ------------------------------------------------------------------------------------------------------------


def test_the_flow_at_the_published_set_points_is_the_published_one(precision):
    bus, _ = data.ieee14()
    problem = problems.PowerFlow()
    params = problem.init(jax.random.key(0))
    assert list(params.values()) == pytest.approx(bus["voltage_setpoint_pu"][HELD].tolist())
    voltage, angle = jax.jit(lambda p: problem.flow(p, Solve()))(params)
    assert np.abs(voltage - bus["published_voltage_pu"]).max() < PUBLISHED_VOLTAGE
    assert np.abs(np.degrees(angle) - bus["published_angle_deg"]).max() < PUBLISHED_ANGLE
    losses = 100 * float(problem.losses(voltage, angle))
    assert losses == pytest.approx(LOSSES, abs=5e-4)
    network = Network()
    assert (network.held, network.free) == (HELD.tolist(), FREE.tolist())
    exact = network.solved(np.array(bus["voltage_setpoint_pu"][HELD]))
    assert losses == pytest.approx(100 * network.losses(exact), rel=DIGITS[precision])
    assert np.asarray(voltage) == pytest.approx(np.abs(exact), rel=DIGITS[precision])


@pytest.mark.slow
def test_the_voltages_that_lose_least_are_those_of_scipy(precision):
    run, network = trained("root"), Network()
    start = np.array([1.06, 1.045, 1.01, 1.07, 1.09])
    # In a box: outside, the first steps of a line search meet voltages at which no flow exists.
    best = optimize.minimize(network.objective, start, method="SLSQP", jac="3-point", bounds=[(0.9, 1.2)] * 5,
                             options={"ftol": 1e-14, "finite_diff_rel_step": 1e-6})  # fmt: skip
    assert run.losses[0] == pytest.approx(network.objective(start), rel=DIGITS[precision])
    assert run.losses[0] > 1.05 * best.fun
    found = np.array([run.found[f"{name}_pu"] for name in NAMES])
    assert found == pytest.approx(best.x, abs=OPTIMUM[precision])
    assert network.objective(found) == pytest.approx(best.fun, rel=LEAST[precision])
    assert run.found["losses_mw"] == pytest.approx(100 * network.losses(network.solved(best.x)), rel=LEAST[precision])
    assert run.found["largest_violation_pu"] < run.before["largest_violation_pu"] / 5


def test_set_points_that_are_not_five_are_refused():
    with pytest.raises(ValueError, match="five voltages"):
        problems.PowerFlow(set_points=[1.0, 1.0])


def test_the_losses_of_the_branches_are_what_the_buses_lose_also_with_taps_and_far_from_a_solution(float64):
    """All tapped branches of the data are free of resistance: here they are not, and |a - b|² counts the tap."""
    bus, branch = data.ieee14()
    branch = {**branch, "tap_ratio": np.linspace(0.9, 1.1, 20), "b_pu": np.zeros(20)}
    rng = np.random.default_rng(0)
    voltage, angle = rng.uniform(0.9, 1.1, 14), rng.uniform(-1, 1, 14)
    phasor = voltage * np.exp(1j * angle)
    lost = (phasor * np.conj(admittances(bus, branch) @ phasor)).sum().real
    problem = eqx.tree_at(lambda p: p.tap, problems.PowerFlow(), jnp.asarray(branch["tap_ratio"]))
    assert float(problem.losses(jnp.asarray(voltage), jnp.asarray(angle))) == pytest.approx(lost, rel=ROUND_OFF)
