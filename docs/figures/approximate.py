"""Implicit differentiation with less than a linear solve, or with the solver's own inverse: the error that theory gives."""

import jax
import jax.numpy as jnp
import optimistix as optx
from algebra import TIGHT, conditioned, contracting, exact, exact_bent, slope
from panels import Panel, over, relative

from implicitexp.adjoints import Neumann, OneStep, Phantom, Reuse, Shine, Truncated
from implicitexp.solvers.anderson import AndersonAcceleration
from implicitexp.solvers.broyden import Broyden

PICARD = optx.FixedPointIteration(TIGHT, TIGHT)
NEWTON = optx.Newton(1e-12, 1e-12)
COUNTS = [1, 2, 4, 8, 16, 32, 64]
ERROR = "relative error of the gradient"
BEND = 0.1
ROUND_OFF = 1e-16  # an error of zero is drawn here


def one_step() -> list[Panel]:
    contractions = [0.01, 0.03, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95]
    plain, newton = slope(PICARD, OneStep()), slope(NEWTON, OneStep(), BEND)

    def by_iteration(contraction):
        eigenvalues = contracting(contraction)
        return relative(plain(eigenvalues), exact(eigenvalues))

    def by_newton(contraction):
        eigenvalues = contracting(contraction)
        return max(relative(newton(eigenvalues), exact_bent(eigenvalues, BEND)), ROUND_OFF)

    curves = {
        "a fixed point iteration": over(contractions, by_iteration),
        "Newton's method": over(contractions, by_newton),
    }
    title = "OneStep(): 20 unknowns"
    return [
        Panel(title, "contraction |dT/dy|", ERROR, contractions, curves, {"the contraction itself": contractions}, "xy")
    ]


def _at_counts(title: str, label: str, make) -> list[Panel]:
    """The error over a number that is part of the program, beside contraction^number."""
    contractions = [0.5, 0.9]
    curves = {f"contraction {c}": [] for c in contractions}
    for count in COUNTS:
        gradient = slope(PICARD, make(count))
        for contraction, errors in zip(contractions, curves.values(), strict=True):
            eigenvalues = contracting(contraction)
            errors.append(relative(gradient(eigenvalues), exact(eigenvalues)))
    guides = {f"{c}^{label.split()[0]}": [c**k for k in COUNTS] for c in contractions}
    return [Panel(title, label, ERROR, COUNTS, curves, guides, "y")]


def neumann() -> list[Panel]:
    return _at_counts("Neumann(terms): a fixed point of 20 unknowns", "terms", lambda k: Neumann(terms=k))


def truncated() -> list[Panel]:
    return _at_counts("Truncated(last): a fixed point of 20 unknowns", "last (iterations)", Truncated)


def phantom() -> list[Panel]:
    """The eigenvalues of dT/dy lie between -1.5 and 0.5: the undamped series diverges, and so does the plain iteration."""
    eigenvalues = 1 - jnp.linspace(-1.5, 0.5, 20)
    solver = AndersonAcceleration(TIGHT, TIGHT)
    dampings = {"undamped (Neumann)": 1.0, "damping 0.5": 0.5, "damping 0.2": 0.2}
    curves = {name: [] for name in dampings}
    for count in COUNTS:
        for name, damping in dampings.items():
            adjoint = Neumann(terms=count) if damping == 1 else Phantom(steps=count, damping=damping)
            curves[name].append(relative(slope(solver, adjoint)(eigenvalues), exact(eigenvalues)))
    guides = {"0.75^steps": [0.75**k for k in COUNTS]}
    title = "Phantom(steps, damping): eigenvalues of dT/dy from -1.5 to 0.5"
    return [Panel(title, "steps", ERROR, COUNTS, curves, guides, "y")]


def shine() -> list[Panel]:
    """How good the inverse is that the solver has, and what each Krylov step adds."""
    eigenvalues = conditioned(10.0)
    solvers = {
        "Newton's factors": NEWTON,
        "Broyden's inverse": Broyden(1e-12, 1e-12),
        "Anderson's differences": AndersonAcceleration(1e-12, 1e-12),
    }
    refinements = [0, 1, 2, 4, 6, 8, 12, 16, 20]
    reference = exact_bent(eigenvalues, BEND)
    curves = {
        name: [relative(slope(solver, Shine(k), BEND)(eigenvalues), reference) for k in refinements]
        for name, solver in solvers.items()
    }
    title = "Shine(refine): 20 unknowns, condition 10 and a cubic term"
    return [Panel(title, "refine (Krylov steps)", ERROR, refinements, curves, log="y")]


def reuse() -> list[Panel]:
    """Products with the Jacobian until the residual is eps^(3/4), by the report of the adjoint itself."""
    conditions = [1.0, 10.0, 1e2, 1e3, 1e4]
    taken: list[int] = []

    def record(residual, steps):
        del residual
        taken.append(int(steps))

    def products(solver, preconditioner):
        gradient = slope(solver, Reuse(record=record, preconditioner=preconditioner), BEND)

        def count(condition):
            taken.clear()
            jax.block_until_ready(gradient(conditioned(condition, 100)))
            jax.effects_barrier()
            return max(taken)

        return over(conditions, count)

    curves = {
        "the same without": products(NEWTON, "identity"),
        "Broyden's inverse": products(Broyden(1e-12, 1e-12, history=100), "solver"),
        "Newton's factors": products(NEWTON, "solver"),
    }
    title = "Reuse(): a root of 100 unknowns"
    return [Panel(title, "condition of H", "Krylov iterations", conditions, curves, log="x")]
