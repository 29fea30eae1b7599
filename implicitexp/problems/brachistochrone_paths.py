"""The mathematics of the brachistochrone: the cycloid, and the three ways to follow a path. Lengths in m, angles in rad."""

import math

import jax
import jax.numpy as jnp

from implicitexp.equations import ODE, Integral, Root

from .base import one_newton_step

BISECTIONS = 60  # halve [0, 2π] below float64's rounding
S_START = 0.1  # the series below is exact to 1e-12 there, for any path up to its second cusp
SERIES = (1 / 60, 1 / 1400, 1 / 25200, 43 / 17248000)  # φ/ε - 1 in powers of ε², ε = (6x/R)^(1/3): inverts φ - sin φ
THETA_MINUS_SIN = (342.0, 272.0, 210.0, 156.0, 110.0, 72.0, 42.0, 20.0)  # (2k)(2k+1), nested Taylor series


def theta_minus_sin(theta):
    """θ - sin θ for θ >= 0, without cancellation at small angles."""
    small = jnp.minimum(theta, 1.0)  # the series is evaluated in both branches: it must not overflow there
    nested = jnp.ones_like(small)
    for divisor in THETA_MINUS_SIN:
        nested = 1 - small**2 / divisor * nested
    return jnp.where(theta < 1, small**3 / 6 * nested, theta - jnp.sin(theta))


def versine(theta):
    """1 - cos θ without cancellation."""
    return 2 * jnp.sin(theta / 2) ** 2


def cycloid(radius, theta):
    """The point (x, y) at angle θ."""
    return radius * theta_minus_sin(theta), radius * versine(theta)


def _bisected(residual, like):
    """The root in (0, 2π) of an increasing function, by a method that shares nothing with the solvers."""

    def halve(_, bracket):
        low, high = bracket
        middle = (low + high) / 2
        above = residual(middle) > 0
        return jnp.where(above, low, middle), jnp.where(above, middle, high)

    low, high = jax.lax.fori_loop(0, BISECTIONS, halve, (jnp.zeros_like(like), jnp.full_like(like, 2 * math.pi)))
    return jax.lax.stop_gradient((low + high) / 2)


def cycloid_angle(across, down):
    """The angle θ at which the cycloid through (0, 0) passes P: (θ - sin θ) / (1 - cos θ) = P_X / P_Y."""
    like = jnp.asarray(across) / jnp.asarray(down)
    return _bisected(lambda theta: theta_minus_sin(theta) * down - versine(theta) * across, like)


def exact_drop(radius, across):
    """y at x = P_X on the cycloid of this R; its derivative is the implicit one, dθ/dR = -(θ - sin θ)/(R (1 - cos θ))."""

    def residual(theta):
        return radius * theta_minus_sin(theta) / across - 1

    theta = one_newton_step(residual, _bisected(residual, jnp.asarray(radius)))
    return radius * versine(theta)


def drop_by_ode(radius, across, solve):
    """y(P_X) of y'² = 2R/y - 1, through dφ/dx = 1/y with y = R(1 - cos φ), which is regular at the lowest point.

    Near the start φ ~ x^(1/3), so x = P_X s³ and the unknown is q = φ/s, a smooth function of s:
    q' = (6 P_X / (R q²) ((φ/2) / sin(φ/2))² - q) / s, from s = 0.1 on, where a series gives q and its derivative by R.
    """
    ratio = 6 * jnp.asarray(across) / radius
    scale = jnp.cbrt(ratio)
    squared = (S_START * scale) ** 2
    q0 = scale * (1 + sum(c * squared ** (k + 1) for k, c in enumerate(SERIES)))

    def field(s, q, ratio):
        half = s * q / 2
        return (ratio / q**2 * (half / jnp.sin(half)) ** 2 - q) / s

    angle = solve(ODE(field, q0, S_START, 1.0), ratio).value
    return radius * versine(angle)


def drop_by_root(radius, across, solve):
    """y(P_X) = R (1 - cos θ), θ the root of R (θ - sin θ) = P_X. Both sides are divided by P_X: the residual is relative."""
    ratio = radius / jnp.asarray(across)
    guess = jnp.clip(jnp.cbrt(6 / ratio), 0.1, 2 * math.pi)
    first_arch = (0.0, 2 * math.pi)  # R below P_X / 2π: no first arch reaches P_X, and the second is no answer
    equation = Root(lambda theta, ratio: theta_minus_sin(theta) * ratio - 1, guess, first_arch)
    theta = solve(equation, ratio).value
    return radius * versine(theta)


def _chebyshev(s, series):
    """(1 - s) times the sum of c_k T_k(2s - 1): it leaves the end point where it is."""
    z = 2 * s - 1
    terms = [jnp.ones_like(z), z]
    for _ in range(series.shape[0] - 2):
        terms.append(2 * z * terms[-1] - terms[-2])
    return (1 - s) * sum(series[k] * term for k, term in enumerate(terms))


def path_point(s, series, across, down):
    """The point (x, y) of the direct formulation's path at 0 <= s <= 1."""
    s = jnp.asarray(s)
    return across * s**3 * (4 - 3 * s), down * s**2 * jnp.exp(_chebyshev(s, series))


def travel_time(series, across, down, gravity, solve):
    """The marble's time (s) along that path: ∫ sqrt((x'² + y'²) / (2 g y)) ds, with s divided out of both."""
    lengths = (jnp.asarray(across), jnp.asarray(down), jnp.asarray(gravity))

    def integrand(s, args):
        series, (across, down, gravity) = args
        power, slope = jax.jvp(lambda s: _chebyshev(s, series), (s,), (jnp.ones_like(s),))
        dx = across * 12 * s * (1 - s)  # x'/s
        dy = down * jnp.exp(power) * (2 + s * slope)  # y'/s
        return jnp.sqrt((dx**2 + dy**2) / (2 * gravity * down * jnp.exp(power)))

    return solve(Integral(integrand, 0.0, 1.0), (series, lengths)).value
