"""`integral`: the waiting times of Old Faithful, whose density is normalized by numerical integration."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from implicitexp import data
from implicitexp.equations import Integral

from .base import AbstractProblem, array, as_number, one_axes

GRID = 701  # points from `lower` to `upper` at which modes are looked for: 0.1 minutes apart
NODES = 65  # at which the largest exponent is looked for, to keep exp in range: its place need not be exact
BIN = 3.0  # minutes, of the figure's histogram


class OldFaithful(AbstractProblem):
    """The density p(t) = exp(a · T(t)) / Z(a) of the waiting times of a geyser, by maximum likelihood.

    Z(a) = ∫ exp(a · T(t)) dt from `lower` to `upper`, by integration; the loss is the mean of -log p(t_i) over the 272
    waiting times. It is convex: its gradient is E[T] - mean T(t_i), its Hessian the covariance of T under p.
    Statistics: Legendre polynomials of degrees 1 to `degree` on [`lower`, `upper`] and Gaussian bumps
    exp(-(t - c)² / 2 `width`²), minus their mean over the data and whitened by their covariance there. So the Hessian
    is near the identity at the answer (eigenvalues 0.9 to 2.0, where the covariance of the raw statistics has condition
    1900), and plain descent works. More or broader bumps cost digits: with six of width 8 the condition is 8e6, and
    float32 keeps four digits of T.
    Source: Azzalini and Bowman 1990 (data); Brown 1986, Fundamentals of Statistical Exponential Families; Barron and
    Sheu 1991 (the logarithm of a density as a sum of basis functions).

    Parameter: `weights` a (no unit), shape (degree + number of centers,); zero is the uniform density.
    """

    lower: float = eqx.field(converter=as_number)  # minutes, below all waiting times
    upper: float = eqx.field(converter=as_number)  # minutes, above all waiting times
    degree: int = eqx.field(static=True)  # of the polynomials
    centers: Float[Array, " bumps"]  # minutes
    width: float = eqx.field(converter=as_number)  # minutes, standard deviation of a bump
    waiting: Float[Array, "272"]  # minutes
    center: Float[Array, " k"]  # mean of the raw statistics over the data
    whitening: Float[Array, "k k"]  # inverse Cholesky factor of their covariance

    def __init__(
        self,
        lower: float = 35.0,
        upper: float = 105.0,
        degree: int = 2,
        centers: tuple[float, ...] | list[float] = (50.0, 60.0, 70.0, 80.0),
        width: float = 7.0,
    ):
        waiting = data.old_faithful()[1]
        if not (lower <= waiting.min() and waiting.max() <= upper):
            raise ValueError(
                f"lower and upper must enclose the waiting times, {waiting.min():g} to {waiting.max():g} minutes, "
                f"but are {lower} and {upper}."
            )
        if degree < 0 or degree + len(centers) < 1:
            raise ValueError(f"degree must be at least 0 (1 without centers), not {degree}.")
        self.lower, self.upper, self.degree, self.width = lower, upper, degree, width
        self.centers, self.waiting = array(centers), array(waiting)
        raw = _statistics(np, waiting, lower, upper, degree, np.asarray(centers, float), width)
        covariance = np.atleast_2d(np.cov(raw.T, bias=True))
        self.center, self.whitening = array(raw.mean(0)), array(np.linalg.inv(np.linalg.cholesky(covariance)))

    def init(self, key):
        return {"weights": jnp.zeros_like(self.center)}

    def statistics(self, t):
        """T at the times t (minutes), shape (*t.shape, k)."""
        raw = _statistics(jnp, t, self.lower, self.upper, self.degree, self.centers, self.width)
        return (raw - self.center) @ self.whitening.T

    def log_partition(self, weights, solve):
        """log Z(a) (Z in minutes). The largest exponent is taken out, so that exp does not overflow."""
        largest = jax.lax.stop_gradient(jnp.max(self.statistics(self.times(NODES)) @ weights))
        equation = Integral(self._integrand, self.lower, self.upper)
        return jnp.log(solve(equation, (weights, largest)).value) + largest

    def _integrand(self, t, args):
        weights, largest = args
        return jnp.exp(self.statistics(t) @ weights - largest)

    def times(self, number):
        """Equidistant times (minutes) from `lower` to `upper`."""
        return jnp.linspace(jnp.asarray(self.lower), jnp.asarray(self.upper), number)

    def log_density(self, weights, t, solve):
        """log p at the times t (p in 1/minute)."""
        return self.statistics(t) @ weights - self.log_partition(weights, solve)

    def loss(self, params, batch, solve):
        return -jnp.mean(self.log_density(params["weights"], self.waiting, solve))

    def evaluate(self, params, solve):
        """How many modes the density has, and where the first and the last of them are."""
        t = self.times(GRID)
        density = self.log_density(params["weights"], t, solve)
        inner = density[1:-1]
        peak = (inner > density[:-2]) & (inner >= density[2:])
        first, last = jnp.argmax(peak), len(inner) - 1 - jnp.argmax(peak[::-1])
        count = jnp.sum(peak).astype(t.dtype)
        return {"modes": count, "first_mode_min": t[1:-1][first], "last_mode_min": t[1:-1][last]}

    def figure(self, params, solve):
        figure, axes = one_axes(
            f"Old Faithful: {len(self.waiting)} waiting times", "time until the next eruption (minutes)",
            "density (1/minute)",
        )  # fmt: skip
        t = self.times(GRID)
        density = np.exp(np.asarray(jax.jit(lambda p: self.log_density(p, t, solve))(params["weights"])))
        bins = np.arange(float(self.lower), float(self.upper) + BIN, BIN).tolist()
        axes.hist(self.waiting, bins=bins, density=True, color="0.85", edgecolor="0.6", label="observed")
        axes.plot(t, density, "-", color="0.0", label="fitted: exp(a · T(t)) / Z(a)")
        found = self.evaluate(params, solve)
        modes = [float(found["first_mode_min"]), float(found["last_mode_min"])]
        for mode in modes:
            axes.axvline(mode, color="0.4", linestyle=":", linewidth=1)
        axes.plot([], [], ":", color="0.4", linewidth=1, label=f"modes: {modes[0]:.1f} and {modes[1]:.1f} minutes")
        axes.legend(loc="upper left", fontsize="small")
        axes.set_ylim(top=1.35 * density.max())  # room for the legend
        return figure


def _statistics(xp, t, lower, upper, degree, centers, width):
    """Legendre polynomials by their recurrence, then bumps: by NumPy or jax.numpy (`xp`), shape (*t.shape, k)."""
    x = (2 * t - lower - upper) / (upper - lower)
    legendre = [xp.ones_like(x), x]
    for k in range(2, degree + 1):
        legendre.append(((2 * k - 1) * x * legendre[-1] - (k - 1) * legendre[-2]) / k)
    bumps = [xp.exp(-(((t - center) / width) ** 2) / 2) for center in centers]
    return xp.stack([*legendre[1 : degree + 1], *bumps], axis=-1)
