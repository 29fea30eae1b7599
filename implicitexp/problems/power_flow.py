"""`root`: the AC power flow of the IEEE 14-bus network, and the voltages at which it loses least."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from implicitexp import data
from implicitexp.equations import Root

from .base import AbstractProblem, array, as_number, one_axes

BASE = 100.0  # MVA, what 1 per unit of power is
HELD = (
    np.array([1, 2, 3, 6, 8]) - 1
)  # buses whose generators hold the voltage; the first one, the slack, holds the angle
FREE = np.array([4, 5, 7, 9, 10, 11, 12, 13, 14]) - 1  # buses whose voltage is an unknown
BUSES = 14
BUS_8 = 7  # the only bus with a limit of its own
NAMES = tuple(f"bus_{bus + 1}" for bus in HELD)


def five(values):
    """The set points as an array."""
    if np.shape(values) != (len(HELD),):
        raise ValueError(f"set_points must be five voltages (per unit) at buses 1, 2, 3, 6, 8, not {values!r}.")
    return array(values)


def admittances(bus: dict[str, np.ndarray], branch: dict[str, np.ndarray]) -> np.ndarray:
    """The complex matrix Y (14, 14), I = Y V: lines as pi circuits, transformers with their tap at the `from` bus."""
    series = 1 / (branch["r_pu"] + 1j * branch["x_pu"])
    charging, tap = 0.5j * branch["b_pu"], branch["tap_ratio"]
    start, end = branch["from_bus"] - 1, branch["to_bus"] - 1
    matrix = np.zeros((BUSES, BUSES), complex)
    np.add.at(matrix, (start, start), (series + charging) / tap**2)
    np.add.at(matrix, (end, end), series + charging)
    np.add.at(matrix, (start, end), -series / tap)
    np.add.at(matrix, (end, start), -series / tap)
    return matrix + np.diag(bus["shunt_mw"] + 1j * bus["shunt_mvar"]) / BASE


class PowerFlow(AbstractProblem):
    """The voltage set points of five generators for which the IEEE 14-bus network loses least power.

    The root: at every bus i the powers that flow into the network are those that are fed in there, generation less load,
    P_i = V_i Σ_j V_j (G_ij cos θ_ij + B_ij sin θ_ij), Q_i = V_i Σ_j V_j (G_ij sin θ_ij - B_ij cos θ_ij), θ_ij = θ_i - θ_j,
    G + iB the network's admittances: P at all buses but the slack (bus 1, whose angle is 0 and which feeds in what is
    missing), Q where no generator holds the voltage. Unknowns: 13 angles θ and 9 magnitudes V; start: all 0, all 1.
    The loss: the resistive losses Σ g |V_i/tap - V_j|² over the branches (g + ib their series admittance), plus `penalty` times
    the sum of squares of what the 14 voltages are above `highest` (bus 8: `highest_at_8`) or below `lowest`. Losses fall
    as voltages rise, so the best voltages are at their upper limits or slightly above. Generators' reactive limits are
    not in the data and are not kept. At the published set points the losses are 13.393 MW, and bus 6 is above its limit.
    All quantities are per unit (powers on 100 MVA, voltages on the bus's nominal one), angles in rad.
    Source: Tinney and Hart 1967, Power Flow Solution by Newton's Method, IEEE Trans. PAS 86(11); data of the University
    of Washington's archive (a part of the American Electric Power system, February 1962).

    Parameters: `bus_1`, `bus_2`, `bus_3`, `bus_6`, `bus_8`: voltages (per unit), scalars.
    """

    set_points: Float[Array, "5"] = eqx.field(converter=five)  # per unit, at the start
    lowest: float = eqx.field(converter=as_number)  # per unit, soft limit
    highest: float = eqx.field(converter=as_number)  # per unit, soft limit, but at bus 8
    highest_at_8: float = eqx.field(converter=as_number)  # per unit, soft limit at bus 8
    penalty: float = eqx.field(converter=as_number)  # per unit power / per unit voltage², weight of a squared violation
    conductance: Float[Array, "14 14"]  # per unit, G
    susceptance: Float[Array, "14 14"]  # per unit, B
    active: Float[Array, "14"]  # per unit, generation less load; of the slack not used
    reactive: Float[Array, "14"]  # per unit, the same; used where the voltage is free
    ends: Int[Array, "2 20"]  # of the branches
    tap: Float[Array, "20"]  # no unit, ratio at the first end
    series: Float[Array, "20"]  # per unit, g of a branch

    def __init__(
        self,
        set_points=(1.06, 1.045, 1.01, 1.07, 1.09),
        lowest=0.94,
        highest=1.06,
        highest_at_8=1.09,
        penalty=100.0,
    ):
        self.set_points = set_points
        self.lowest, self.highest, self.highest_at_8, self.penalty = lowest, highest, highest_at_8, penalty
        bus, branch = data.ieee14()
        matrix = admittances(bus, branch)
        self.conductance, self.susceptance = array(np.real(matrix)), array(np.imag(matrix))
        self.active = array((bus["generation_mw"] - bus["load_mw"]) / BASE)
        self.reactive = array(-bus["load_mvar"] / BASE)
        self.ends = jnp.asarray([branch["from_bus"] - 1, branch["to_bus"] - 1])
        self.tap = array(branch["tap_ratio"])
        self.series = array((1 / (branch["r_pu"] + 1j * branch["x_pu"])).real)

    def init(self, key):
        return dict(zip(NAMES, self.set_points, strict=True))

    def mismatch(self, unknowns, set_points):
        """What flows out of the buses beyond what is fed in: active where the angle is unknown, reactive where the
        voltage is, per unit."""
        voltage, angle = profile(unknowns, set_points)
        turn = angle[:, None] - angle[None, :]
        cos, sin = jnp.cos(turn), jnp.sin(turn)
        active = voltage * ((self.conductance * cos + self.susceptance * sin) @ voltage) - self.active
        reactive = voltage * ((self.conductance * sin - self.susceptance * cos) @ voltage) - self.reactive
        return {"angle": active[1:], "voltage": reactive[FREE]}

    def flow(self, params, solve):
        """Voltage magnitudes (14,), per unit, and angles (14,), rad, at all buses."""
        set_points = jnp.stack([params[name] for name in NAMES])
        flat = {"angle": jnp.zeros_like(self.active[1:]), "voltage": jnp.ones_like(self.active[FREE])}
        return profile(solve(Root(self.mismatch, flat), set_points).value, set_points)

    def losses(self, voltage, angle):
        """What the branches turn into heat, per unit: |a - b|² as (|a| - |b|)² + 4 |a| |b| sin²(θ/2), without cancellation."""
        start, end = self.ends
        a, b = voltage[start] / self.tap, voltage[end]
        half = jnp.sin((angle[start] - angle[end]) / 2)
        return jnp.sum(self.series * ((a - b) ** 2 + 4 * a * b * half**2))

    def upper(self):
        """The upper limit at each bus (14,), per unit."""
        return jnp.full_like(self.active, self.highest).at[BUS_8].set(self.highest_at_8)

    def violations(self, voltage):
        """By how much each voltage (14,) is outside its limits, per unit; 0 inside."""
        return jnp.maximum(voltage - self.upper(), 0) + jnp.maximum(self.lowest - voltage, 0)

    def loss(self, params, batch, solve):
        voltage, angle = self.flow(params, solve)
        return self.losses(voltage, angle) + self.penalty * jnp.sum(self.violations(voltage) ** 2)

    def evaluate(self, params, solve):
        voltage, angle = self.flow(params, solve)
        return {
            "losses_mw": BASE * self.losses(voltage, angle),
            "largest_violation_pu": jnp.max(self.violations(voltage)),
            "lowest_voltage_pu": jnp.min(voltage),
            "highest_voltage_pu": jnp.max(voltage),
            **{f"{name}_pu": params[name] for name in NAMES},
        }

    def figure(self, params, solve):
        figure, axes = one_axes("Voltages of the IEEE 14-bus network", "bus", "voltage (per unit)")
        buses = np.arange(1, BUSES + 1)
        limits = {"color": "0.6", "linewidth": 1.2, "where": "mid"}
        axes.step(buses, np.asarray(self.upper()), label="upper limit (soft)", **limits)
        for name, at, style in [("before", self.init(jax.random.key(0)), {"marker": "s", "color": "0.55", "mfc": "white"}),
                                ("after", params, {"marker": "o", "color": "0.0"})]:  # fmt: skip
            voltage, angle = self.flow(at, solve)
            lost = BASE * float(self.losses(voltage, angle))
            axes.plot(buses, np.asarray(voltage), linestyle="none", label=f"{name}: {lost:.3f} MW lost", **style)
        for bus in HELD:
            axes.axvline(bus + 1, color="0.8", linestyle=":", zorder=0)
        axes.axvline(np.nan, color="0.8", linestyle=":", label="voltage held by a generator")
        axes.set_xticks(buses)
        axes.grid(visible=False, axis="x")
        figure.legend(fontsize="small", loc="outside lower center", ncols=2)
        return figure


def profile(unknowns, set_points):
    """Magnitudes and angles of all 14 buses from the unknown and the given ones."""
    angle = jnp.concatenate([jnp.zeros_like(unknowns["angle"][:1]), unknowns["angle"]])
    voltage = jnp.zeros_like(angle).at[HELD].set(set_points).at[FREE].set(unknowns["voltage"])
    return voltage, angle
