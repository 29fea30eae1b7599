"""What test_drop_in_accuracy.py holds the strategies against: which are exact, and the condition of each closed-form case.

`python tests/drop_in_accuracy_cases.py [float64 or float32] [kind ...]` computes the conditions and prints every strategy on
every case.
"""

import sys
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import scipy.integrate
import truth_cases
from jax.flatten_util import ravel_pytree
from truth_cases import BY_KIND

from implicitexp import adjoints, device, solvers, strategies
from implicitexp.equations import ODE, FixedPoint, Root
from implicitexp.errors import Unsupported
from implicitexp.solving import Solve, solve
from implicitexp.strategies import approximate, over_steps
from implicitexp.strategies.drop_in import AbstractDropIn
from implicitexp.truth.doubles import flat


class Given(AbstractDropIn):
    """An adjoint of `implicitexp.adjoints` as it is, for those that no strategy is made of."""

    given: Any
    name: ClassVar[str] = "given"
    kinds: ClassVar[tuple[str, ...]] = ("root", "fixed_point", "ode")

    def adjoint(self):
        return self.given


ALGEBRAIC = {
    "implicit": strategies.Implicit(),
    "adjoint": strategies.Adjoint(),
    "forward": strategies.Forward(),
    "iterated": Given(adjoints.Iterated()),
    "reuse": approximate.Reuse(),
    "shine": approximate.Shine(refine=8),  # more steps than any case has unknowns
}
EXACT: dict[str, dict[str, Any]] = {
    "root": ALGEBRAIC,
    "fixed_point": ALGEBRAIC,
    "ode": {
        "adjoint": strategies.Adjoint(),
        "interpolating": over_steps.Interpolating(),
        "backsolve": strategies.Adjoint(method="backsolve"),
        "forward": strategies.Forward(),
        "replay": over_steps.Replay(),
        "reversible": over_steps.Reversible(),
    },
    "integral": {
        "implicit": strategies.Implicit(),
        "adjoint": strategies.Adjoint(),
        "forward": strategies.Forward(),
    },
}

# How a relative change of the solution changes the gradient, relative: see `condition`.
CONDITION: dict[str, float] = {
    "square root": 1.0,
    "double root, nearly": 1.0e4,
    "triple root, nearly": 1.2,
    "logarithm, small": 13.8,
    "logarithm, large": 13.8,
    "Lambert's W at its branch": 1.0e3,
    "arc cosine near one": 1.0,
    "ill-conditioned system": 1.4,
    "two unknowns in a dictionary": 2.3,
    "contraction 0.99": 1.0,
    "contraction -0.99": 1.0,
    "contraction r": 1.0,
    "Heron": 1.0,
    "spiral": 2.0,
    "tanh, slope 0.99": 4.8,
    "vector": 1.0,
    "growth": 1.9,
    "decay to a millionth": 1.0,
    "oscillator, 30 periods": 1.0,
    "logistic": 1.3,
    "near blow-up": 5.5,
    "backwards in time": 1.0,
    "three output times": 1.0,
    "driven": 1.0,
    "peak in the field": 1.0,
    "stiff, forced": 1.0,
    "stiff, two scales": 1.0,
    "an input that does nothing": 1.0,
    "power with a singular end": 1.0,
    "logarithm": 1.0,
    "square root at the end": 1.0,
    "Lorentz peak": 1.3e3,
    "Gauss over the line": 1.0,
    "Gamma function": 1.2,
    "limits move": 1.0,
    "limit and integrand": 3.4,
    "oscillating": 64.0,
    "vector integrand": 1.0,
    "error function": 1.0,
}

# Of an ODE whose error at the end is smaller than on the way: the largest on the way, by `path_error`, in float64.
PATH_ERROR = {"backwards in time": 8.4e-10}
AMPLIFIED = 10.0  # times the condition and the solution's error: what a gradient's error may be
BACKWARD = 55.0  # times eps^(3/4), the tolerance of backward solves: 1e-10 in float64
# In the test suite: those that are hard, and what is held on every case by the table that this file prints.
KEPT = {
    "square root", "double root, nearly", "Lambert's W at its branch", "ill-conditioned system",
    "contraction r", "spiral", "tanh, slope 0.99",
    "near blow-up", "backwards in time", "three output times", "peak in the field", "stiff, two scales",
    "power with a singular end", "Lorentz peak", "limit and integrand",
}  # fmt: skip
_OF_THE_STEPS = "exact for the steps that were taken, whose derivative converges more slowly than their solution"
MISSES = {
    ("three output times", "replay"): "the derivative by a time is the slope of the interpolant: 3.7 times the bound",
    ("three output times", "reversible"): "as replay",
    ("peak in the field", "replay"): f"{_OF_THE_STEPS}: 2.7 times the bound",
    ("backwards in time", "backsolve"): "its own backward solve, of the same tolerance, grows: 2.3 times the bound",
    ("power with a singular end", "implicit"): "log x at the singular end: 1.4e-9, 2.5 times the bound",
    ("power with a singular end", "forward"): "as implicit",
    ("power with a singular end", "adjoint"): "as implicit",
    ("stiff, forced", "backsolve"): "a stiff equation cannot be solved backwards: NaN",
}


def kind_of(case: Any) -> str:
    return next(kind for kind, group in BY_KIND.items() if case in group)


def relative_errors(case: Any, strategy: Any) -> tuple[float, float]:
    """Of the loss, and of the gradient."""
    loss = jax.value_and_grad(lambda p: case.loss(p, None, Solve(case.solver, strategy)))
    value, found = jax.jit(loss)(case.init(None))
    with jax.enable_x64(True):
        true = float(case.exact(jax.tree.map(jnp.asarray, truth_cases.start(case))))
    exact = flat(truth_cases.exact_gradient(case))
    error = np.linalg.norm(flat(found) - exact) / np.linalg.norm(exact)
    return abs(float(value) - true) / abs(true), float(error)


def bound(case: Any, primal: float, precision: str) -> float:
    """10 kappa times the primal error, or 1e-10 kappa; in float32 its rounding in the place of 1e-10."""
    floor = BACKWARD * float(np.finfo(precision).eps) ** 0.75
    return CONDITION[case.name] * max(AMPLIFIED * max(primal, PATH_ERROR.get(case.name, 0)), floor)


def condition(case: Any) -> float:
    """How many times its own size, relative, an error of the solution is in the gradient; at least one.

    Root, fixed point, ODE: |dG/dy| |y| / |G| in the spectral norm, G(y) being the gradient that the derivatives of the
    equation and of the loss give when they are taken at y and not at the solution; of an ODE y is the whole path, and each
    component is moved by the same part of |y(t)| at all times. Integral: that of the sum which its derivative is, the
    integral of |dg/da| and the boundary terms' sizes over the size of the derivative.
    """
    with jax.enable_x64(True):
        return max(1.0, _of_integral(case) if case in BY_KIND["integral"] else _of_solution(case))


def _of_solution(case: Any) -> float:
    p = case.init(None)
    equation, _ = case.equation(p)
    is_ode = equation.kind == "ode"
    n, h = ravel_pytree(equation.y0)[0].size, 1e-3 if is_ode else 1e-7
    gradient = jax.jit(jax.grad(lambda p, shift: _loss(case, p, shift)))
    g = flat(gradient(p, jnp.zeros(n)))
    columns = [flat(gradient(p, h * e)) - flat(gradient(p, -h * e)) for e in jnp.eye(n)]
    return float(np.linalg.norm(np.stack(columns), 2) / (2 * h) / np.linalg.norm(g))


def _loss(case: Any, p: Any, shift: Any) -> Any:
    """The loss, whose derivative is taken at y + shift |y|."""
    equation, args = case.equation(p)
    solver: Any = solvers.for_kind(case.solver, equation.kind)
    if equation.kind == "ode":
        field = equation.field
        away = ODE(lambda t, y, p: moved(lambda y, p: field(t, y, p), shift)(y, p), *_ends(equation))
    else:
        away = {"root": Root, "fixed_point": FixedPoint}[equation.kind](moved(equation.fn, shift), equation.y0)
    value = solve(away, args, solver=solver, gradient=strategies.Forward()).value
    outcome = moved(case.outcome, shift) if ravel_pytree(value)[0].size == shift.size else case.outcome
    return outcome(value)


def moved(fn: Any, shift: Any) -> Any:
    """fn(y, *rest) with its own value, and its derivatives at y + shift |y|."""

    def value_here(y, *rest):
        held = jax.lax.stop_gradient(y)
        vector, unravel = ravel_pytree(held)
        away = unravel(vector + shift * jnp.linalg.norm(vector))
        there = fn(jax.tree.map(lambda a, y, h: a + (y - h), away, y, held), *rest)
        here = jax.lax.stop_gradient(fn(y, *rest))
        return jax.tree.map(lambda here, there: here + (there - jax.lax.stop_gradient(there)), here, there)

    return value_here


def _ends(equation: Any) -> tuple:
    return equation.y0, equation.t0, equation.t1, equation.ts


def _of_integral(case: Any) -> float:
    p = case.init(None)
    equation, _ = case.equation(p)
    names = list(p)
    slope = jax.jit(jax.grad(lambda p, x: case.outcome(case.equation(p)[0].integrand(x, p))))
    total = []
    for name in names:
        inside = _absolute(lambda x, name=name: float(abs(slope(p, x)[name])), equation)
        total.append(inside + sum(_edge(case, p, name, limit) for limit in ("lower", "upper")))
    return float(np.linalg.norm(total) / np.linalg.norm(flat(truth_cases.exact_gradient(case))))


def _absolute(f: Any, equation: Any) -> float:
    value = scipy.integrate.quad(f, float(equation.lower), float(equation.upper), limit=500, epsabs=0, epsrel=1e-4)
    return float(value[0])


def _edge(case: Any, p: Any, name: str, limit: str) -> float:
    """|g da| at an end that moves."""
    end = getattr(case.equation(p)[0], limit)
    speed = jax.grad(lambda p: jnp.asarray(getattr(case.equation(p)[0], limit), float))(p)[name]
    if not speed:
        return 0.0
    return float(abs(case.outcome(case.equation(p)[0].integrand(end, p)) * speed))


SAMPLES = 8  # ends to which an ODE is solved, at equal distances


def path_error(case: Any) -> float:
    """ODE: how far the solution is off at the worst of SAMPLES times, relative to |y(t)|. Each is the end of a solve of its
    own, so that no interpolation's error counts. The same solver at a tolerance of 1e-11, in float64, stands for the truth."""
    own = _ends_of_solves(case, None)
    with jax.enable_x64(True):
        true = _ends_of_solves(case, 1e-11)
    return float(np.max(np.linalg.norm(own - true, axis=1) / np.linalg.norm(true, axis=1)))


def _ends_of_solves(case: Any, tolerance: float | None) -> np.ndarray:
    solver: Any = solvers.for_kind(case.solver, "ode")
    if tolerance is not None:
        options = {"rtol": tolerance, "atol": tolerance, "max_steps": 65536}
        solver = type(solver)(**options)

    @jax.jit
    def ends(p):
        equation, args = case.equation(p)

        def end(part):
            t = equation.t0 + part * (equation.t1 - equation.t0)
            return ravel_pytree(solve(ODE(equation.field, equation.y0, equation.t0, t), args, solver=solver).value)[0]

        return jax.vmap(end)(jnp.arange(1, SAMPLES + 1) / SAMPLES)

    return np.asarray(ends(case.init(None)), np.float64)


def main(precision: str, kinds: list[str]) -> None:
    with device.configured("cpu", precision):
        for kind in kinds:
            for case in BY_KIND[kind]:
                print(
                    f"{case.name}: condition {condition(case):.3g}, in the table {CONDITION[case.name]:.3g}", flush=True
                )
                if kind == "ode":
                    print(f"    on the way {path_error(case):.2g}")
                for name, strategy in EXACT[kind].items():
                    try:
                        primal, error = relative_errors(case, strategy)
                    except Unsupported as refusal:
                        print(f"    {name:14} {refusal}")
                        continue
                    share = error / bound(case, primal, precision)
                    print(
                        f"    {name:14} primal {primal:8.1e}  gradient {error:8.1e}  of the bound {share:8.1e}",
                        flush=True,
                    )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "float64", sys.argv[2:] or list(BY_KIND))
