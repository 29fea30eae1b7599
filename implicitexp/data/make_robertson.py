"""Makes `robertson.csv`: Robertson's kinetics by SciPy's Radau, with noise.  `python -m implicitexp.data.make_robertson`"""

import numpy as np
from scipy.integrate import solve_ivp

from implicitexp.data import path

RATES = (0.04, 3e7, 1e4)  # 1/s, of Robertson 1966; concentrations are fractions of the total
TIMES = np.logspace(-5, 5, 40)  # s
NOISE = 0.01  # standard deviation, of each species' largest concentration
SEED = 0
RTOL, ATOL = 1e-10, 1e-14  # below the noise by a factor of 1e5 for the rarest species, which peaks at 3.6e-5


def concentrations(rates: tuple[float, float, float] = RATES) -> np.ndarray:
    """A, B and C (40, 3) at `TIMES`, without noise."""
    k1, k2, k3 = rates

    def field(_, y):
        decay, join, back = k1 * y[0], k2 * y[1] ** 2, k3 * y[1] * y[2]
        return [back - decay, decay - join - back, join]

    def jacobian(_, y):
        return np.array(
            [[-k1, k3 * y[2], k3 * y[1]], [k1, -k3 * y[2] - 2 * k2 * y[1], -k3 * y[1]], [0, 2 * k2 * y[1], 0]]
        )

    solved = solve_ivp(field, (0.0, TIMES[-1]), [1.0, 0.0, 0.0], "Radau", TIMES, rtol=RTOL, atol=ATOL, jac=jacobian)
    return solved.y.T


def measured() -> np.ndarray:
    """The same as an instrument would read them that is off by `NOISE` of its range."""
    exact = concentrations()
    return exact + NOISE * exact.max(axis=0) * np.random.default_rng(SEED).standard_normal(exact.shape)


def main() -> None:
    """Write the file."""
    rows = np.column_stack([TIMES, measured()])
    np.savetxt(path("robertson.csv"), rows, "%.8e", ",", header="time_s,a,b,c", comments="")


if __name__ == "__main__":
    main()
