"""What Python calls say: a message -> calls that provoke it -> what it must name; and the messages that other tests have."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp

from implicitexp import adjoints, compare, prepare, problems, recipe, solvers
from implicitexp.conformance import conformance
from implicitexp.equations import ODE, Integral, Root
from implicitexp.solving import solve
from implicitexp.strategies import MAX_PARAMETERS, Adjoint, Forward, Implicit, Unroll

ROOT = Root(lambda y, a: y - jnp.sum(a), 1.0)
DECAY = ODE(lambda t, y, a: -a * y, 1.0, 0.0, 1.0)
VECTORS = Root(lambda y, a: y - a, jnp.ones(2), bounds=(0.0, 1.0))
BRACKETED = Root(lambda y, a: y - a, 1.0, bounds=(0.0, 3.0))
OSCILLATOR = ODE(lambda t, y, a: (y[1], -a * y[0]), (1.0, 0.0), 0.0, 1.0)
DAMPED = ODE(lambda t, y, a: (y[1], -a * y[0] - y[1]), (1.0, 0.0), 0.0, 1.0)
DRIFTING = ODE(lambda t, y, a: (y[1] + 0.1 * y[0], -a * y[0]), (1.0, 0.0), 0.0, 1.0)
LINE = Integral(lambda x, a: a * x, 0.0, 1.0)


def solved(equation, solver=None, gradient=None):
    return lambda: solve(equation, 1.0, solver=solver, gradient=gradient)


def made(cls, **options):
    return lambda: cls(**options)


def large_jacobian():
    jax.eval_shape(jax.grad(lambda a: solve(ROOT, a, gradient=Forward()).value), jnp.ones(MAX_PARAMETERS + 1))


def nothing_defined():
    rows = {"two": Unroll(last=2), "three": Unroll(last=3)}
    compare.prepared(problems.Exponential(), solvers.Auto(), rows, SimpleNamespace(seed=0))


CALLS = {
    "{} solves {}, not {}; use Auto, {}.": [
        (solved(ROOT, solvers.Tsit5()), ["Tsit5", "a root", "Newton", "Dogleg"]),
        (solved(DECAY, solvers.Newton()), ["Newton", "an ODE", "Tsit5", "Kvaerno5"]),
    ],
    "Bisection needs an interval at whose ends fn has different signs: Root(fn, y0, bounds=(lower, upper)); or use Newton, "
    "Chord, Dogleg or LevenbergMarquardt, which start from y0.": [
        (solved(ROOT, solvers.Bisection()), ["Bisection", "bounds=(lower, upper)", "Newton"]),
    ],
    "Bisection finds one number, with a lower and an upper bound, but y0 and bounds have the shapes {}; use Newton, Chord, "
    "Dogleg or LevenbergMarquardt, or jax.vmap for many roots of one number.": [
        (solved(VECTORS, solvers.Bisection()), ["Bisection", "(2,)", "Newton", "jax.vmap"]),
    ],
    "{} is not defined for {}: {}.": [
        (solved(BRACKETED, solvers.Bisection(), Unroll()),
         ["unroll", "Bisection", "derivative", "zero", "implicit", "adjoint", "forward"]),
        (solved(BRACKETED, solvers.Bisection(), Unroll(last=2)), ["unroll", "Bisection"]),
        (solved(OSCILLATOR, solvers.Leapfrog(), Adjoint()), ["adjoint", "Leapfrog", "implicit", "unroll", "forward", "Tsit5"]),
        (solved(LINE, solvers.Romberg(), Unroll()), ["unroll", "Romberg", "implicit", "adjoint", "forward", "GaussKronrod"]),
    ],
    "{} is not defined for {}; use {}.": [
        (solved(DECAY, gradient=Unroll(last=3)), ["last=3", "an ODE", "adjoint"]),
    ],
    "Leapfrog integrates a pair: y0 = (q, p), and the field returns (dq/dt, dp/dt), but this y0 is no pair; use Tsit5, or "
    "FixedStep for fixed steps.": [
        (solved(DECAY, solvers.Leapfrog()), ["Leapfrog", "(q, p)", "Tsit5", "FixedStep"]),
    ],
    "Leapfrog needs q' = f(t, p) and p' = g(t, q), but {} depends on {}; use Tsit5, or FixedStep for fixed steps.": [
        (solved(DAMPED, solvers.Leapfrog()), ["Leapfrog", "dp/dt depends on p", "Tsit5"]),
        (solved(DRIFTING, solvers.Leapfrog()), ["Leapfrog", "dq/dt depends on q", "Tsit5"]),
    ],
    "method={} is not one of {}.": [
        (made(solvers.FixedStep, method="rk4"), ["rk4", "euler", "midpoint", "heun", "dopri5"]),
    ],
    "method={} is not one of gauss, backsolve.": [
        (made(Adjoint, method="backsolv"), ["backsolv", "gauss", "backsolve"]),
    ],
    "preconditioner={} is not one of last, start, identity.": [
        (made(Adjoint, preconditioner="none"), ["none", "last", "start", "identity"]),
    ],
    "linear_solver={} is not one of {}.": [
        (made(Implicit, linear_solver="lux"), ["lux", "gmres", "normal_cg"]),
    ],
    "unroll takes checkpoints or last, not both: the last k iterations are all kept.": [
        (made(Unroll, last=3, checkpoints=2), ["checkpoints", "last", "not both"]),
    ],
    "directions={} must be at least 1, or None for every number.": [
        (lambda: Forward(directions=0).cell("root", solvers.Newton()), ["directions=0", "at least 1"]),
    ],
    "{} under jax.grad costs a tangent for each of the {} numbers that this solve is differentiated by, and is refused above "
    "{}: use adjoint, implicit or unroll, or {} with directions=8 (an unbiased estimate along 8 random directions).": [
        (large_jacobian, [f"{MAX_PARAMETERS + 1} numbers", "adjoint", "directions=8"]),
    ],
    "gradient={} is no gradient strategy but {}; give an object, such as implicitexp.{}().": [
        (solved(ROOT, gradient="adjoint"), ["gradient=adjoint", "builtins.str", "implicitexp.Adjoint()"]),
        (solved(ROOT, gradient=Implicit), ["gradient=Implicit", "a class", "implicitexp.Implicit()"]),
        (solved(ROOT, gradient=adjoints.Replay()), ["gradient=Replay", "adjoints", "implicitexp.Replay()"]),
    ],
    "solve() takes a Root, FixedPoint, ODE or Integral, not {}.": [
        (solved(lambda y: y), ["Root", "FixedPoint", "ODE", "Integral"]),
    ],
    "{} must return what y is, in structure, shape and dtype: {}, but got {}.": [
        (solved(Root(lambda y, a: jnp.stack([y, y]), 1.0)), ["fn", "shape", "(2,)"]),
    ],
    "{} must return floating point arrays, not {}.": [
        (solved(Root(lambda y, a: jnp.int32(3), 1.0)), ["fn", "floating point"]),
    ],
    "breaks must be a function of args that returns an array of places, not {}.": [
        (solved(Integral(lambda x, a: x, 0.0, 1.0, [0.3])), ["[0.3]"]),
    ],
    "breaks must return one array of one axis, the places; its shape is {}.": [
        (solved(Integral(lambda x, a: x, 0.0, 1.0, lambda a: jnp.asarray(a))), ["()"]),
        (solved(Integral(lambda x, a: x, 0.0, 1.0, lambda a: [jnp.ones(1), jnp.ones(2)])), ["(1,), (2,)"]),
    ],
    "{} must be a pytree of numbers or arrays: {}": [
        (solved(Root(lambda y, a: y, "one")), ["y0", "one"]),
    ],
    "{} is no implicitexp.AbstractProblem; derive it from that class.": [
        (lambda: conformance(solvers.Newton()), ["Newton", "AbstractProblem"]),
    ],
    "problem must be an implicitexp.AbstractProblem, not {}.": [
        (lambda: prepare.objects(solvers.Newton(), None, None, None), ["AbstractProblem", "Newton"]),
    ],
    "no strategy works here: {}": [
        (nothing_defined, ["two: unroll with last=2 is not defined for an ODE", "three: ", "use unroll without `last`"]),
    ],
    "{}._target_={} cannot be imported: {}. Give module.name of a callable.": [
        (lambda: recipe.from_node({"_target_": "optax.adamm"}), ["_target_=optax.adamm", "module.name"]),
    ],
    "P must be two lengths [P_X, P_Y] in meters, not {}.": [
        (made(problems.Brachistochrone, P=[1.0]), ["[1.0]", "P_X"]),
    ],
    "P must be two positive lengths in meters, not {}.": [
        (made(problems.Brachistochrone, P=[1.0, -1.0]), ["-1.0", "positive"]),
    ],
    "formulation must be ode, root or direct, not {}.": [
        (made(problems.Brachistochrone, formulation="rot"), ["rot", "direct"]),
    ],
    "parameter must be log_R or R, not {}.": [
        (made(problems.Brachistochrone, parameter="r"), ["'r'", "log_R"]),
    ],
    "layer must be ode, residual or identity, not {}.": [
        (made(problems.Digits, layer="od"), ["'od'", "residual"]),
    ],
    "layer must be fixed_point or feedforward, not {}.": [
        (made(problems.DeepEquilibrium, layer="fixed"), ["'fixed'", "feedforward"]),
    ],
    "width and batch_size must be at least 1, not {} and {}.": [
        (made(problems.Digits, width=0), ["width", "0 and 128"]),
        (made(problems.DeepEquilibrium, batch_size=-1), ["batch_size", "-1"]),
    ],
    "spectral_norm must be between 0 and 1, or null (free), not {}.": [
        (made(problems.DeepEquilibrium, spectral_norm=1.5), ["spectral_norm", "1.5"]),
    ],
    "lower and upper must enclose the waiting times, {} to {} minutes, but are {} and {}.": [
        (made(problems.OldFaithful, lower=44.0), ["enclose", "43", "44.0"]),
    ],
    "degree must be at least 0 (1 without centers), not {}.": [
        (made(problems.OldFaithful, degree=-1), ["degree", "-1"]),
    ],
    "set_points must be five voltages (per unit) at buses 1, 2, 3, 6, 8, not {}.": [
        (made(problems.PowerFlow, set_points=[1.0, 1.0]), ["five voltages", "[1.0, 1.0]"]),
    ],
}  # fmt: skip

# A message -> the test that provokes it, since it takes devices, other processes or a port.
ELSEWHERE = {
    "Broyden needs as many equations as unknowns, and these are {} and {}; use optimistix.LevenbergMarquardt.": (
        "test_broyden.py::test_as_many_equations_as_unknowns"
    ),
    "device=mesh shards the minibatch, and {} gives none; use device=auto.": (
        "test_mesh.py::test_what_cannot_be_shared_is_refused"
    ),
    "device=mesh: the first axis of each leaf of {} must be a multiple of {}, the number of devices, but is {}; choose another "
    "batch size, or device=auto.": "test_mesh.py::test_what_cannot_be_shared_is_refused",
    "device=mesh: {} is set, so {} and {} must be whole numbers: how many processes there are, and which of them, from 0, this "
    "one is.": "test_mesh.py::test_a_coordinator_needs_to_know_the_processes",
    "{} has second derivatives by forward mode over reverse mode, not by reverse mode over reverse mode: use jax.hessian, "
    "jax.jacfwd(jax.grad(...)) or jax.jvp of jax.grad, not jax.grad of jax.grad.": (
        "test_continuous_second.py::test_reverse_over_reverse_in_the_framework_is_refused_in_words"
    ),
    "Port {} of {} cannot be used ({}): give another, {} say": (
        "test_tracking.py::test_a_dashboard_needs_a_store_and_a_port"
    ),
}
