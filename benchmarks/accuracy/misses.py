"""The misses that are known: what each looks like, how large it may be, and why it is there."""

from typing import NamedTuple

from benchmarks.accuracy.rows import GRADIENT, NO_NUMBER, PROGRAM, REFUSED

Key = tuple[str, str, str]  # case, strategy, precision


class Known(NamedTuple):
    """`most`: how many times what is allowed it may be; None where it is not a matter of size."""

    verdict: str
    most: float | None
    why: str


REPLAY, REVERSIBLE = "implicit, replay, Replay()", "reversible, Reversible()"
FROZEN = "implicit, frozen_mesh, FrozenMesh()"
ALGEBRAIC = ("implicit", "adjoint, iterated", "forward", "Iterated()", "reuse, Reuse()", "shine, Shine(8)")

# How each was found: docs/accuracy.md.
IMPLICIT_METHOD = Known(REFUSED, None, "it has no form of an implicit method, and says so")
STIFF_BACKWARDS = Known(NO_NUMBER, None, "a stiff equation cannot be solved backwards: the solve fails, and says so")
INTERPOLANT = (
    "the derivative by an output time is the slope of the solver's interpolant, which is off by 5e-8 to 8e-8 where its value is "
    "off by 1e-9; the continuous adjoints take the field there"
)
SAME_STEPS = (
    "the derivative of the sum over the steps that were taken: the error control has looked at the solution, and the "
    "derivative is off by more on the same steps"
)
OWN_ERROR = (
    "the derivative of the solution's own error, which for a method of order 5 goes as about k^6: relative, ten times as large "
    "as that error by k = 0.5"
)
LOG_AT_ZERO = (
    "the rule's nodes end at x = 8e-18 as float64 rounds 1 + t: the tail below makes 5.6e-11 of the value, and as log x is -39 "
    "there 1.4e-9 of the derivative; no rule on these nodes has less"
)
BY_CHANCE = "at the end x is off by 5e-9 by chance, the state (x, v) by 1.6e-7, relative, as the gradient is"
ANDERSON = (
    "the coefficients of Anderson's acceleration are quotients of differences that vanish at the solution: two ways through "
    "the same program agree to 1e-6 to 1e-3, as the compiler orders the operations (Picard's iteration: no such quotients)"
)

OTHER_STEPS = (
    "forward mode's program, compiled apart, rounds the first step otherwise in float32 and takes other steps, up to 0.025 "
    "apart; on either the derivative is off by 3e-3"
)
NEWTON_STOPS = Known(
    NO_NUMBER,
    None,
    "Newton's test wants f = exp(y) - 1e6 within the absolute tolerance, 1e-5, and a unit of rounding of y moves it by 1: the "
    "solve has not converged, and says so",
)
LARGE_W = Known(
    NO_NUMBER,
    None,
    "w = 1e6 = 1/|df/dy| is taken for a singular Jacobian, above a tenth of 1/eps, whatever the Jacobian's scale is: too "
    "careful (implicit is right to 2.5e-7)",
)
NO_DIGIT = Known(
    NO_NUMBER, None, "a condition of 4e6 times the rounding of float32 is a half: no digit is left, and it says so"
)
BELOW_ATOL = (
    "the solution, 8e-7, lies below the absolute tolerance, 1e-5, and is off by 1.6 of itself, as it was asked for: no digit "
    "of it is right, and the gradient is off as it is"
)

KNOWN: dict[Key, Known] = {
    ("stiff, forced", REVERSIBLE, "float64"): IMPLICIT_METHOD,
    ("stiff, forced", REVERSIBLE, "float32"): IMPLICIT_METHOD,
    ("stiff, two scales", REVERSIBLE, "float64"): IMPLICIT_METHOD,
    ("stiff, two scales", REVERSIBLE, "float32"): IMPLICIT_METHOD,
    ("stiff, forced", "backsolve", "float64"): STIFF_BACKWARDS,
    ("stiff, forced", "Backsolve()", "float64"): STIFF_BACKWARDS,
    ("three output times", REPLAY, "float64"): Known(GRADIENT, 4.0, INTERPOLANT),
    ("three output times", REVERSIBLE, "float64"): Known(GRADIENT, 4.0, INTERPOLANT),
    ("peak in the field", REPLAY, "float64"): Known(GRADIENT, 3.0, SAME_STEPS),
    ("driven", REVERSIBLE, "float64"): Known(GRADIENT, 2.5, SAME_STEPS),
    ("an input that does nothing", REPLAY, "float64"): Known(GRADIENT, 1.3, OWN_ERROR),
    ("an input that does nothing", REVERSIBLE, "float64"): Known(GRADIENT, 1.3, OWN_ERROR),
    ("oscillator, 30 periods", REVERSIBLE, "float64"): Known(GRADIENT, 3.0, BY_CHANCE),
    ("backwards in time", "backsolve", "float64"): Known(
        GRADIENT,
        2.5,
        "the error of its own backward solve: with a tenth of the tolerance there the gradient is right to 1.2e-9",
    ),
    **{
        ("power with a singular end", name, "float64"): Known(GRADIENT, 3.0, LOG_AT_ZERO)
        for name in (FROZEN, "adjoint, leibniz", "Leibniz()", "forward")
    },
    ("tanh, slope 0.99", "unroll", "float64"): Known(PROGRAM, 1e7, ANDERSON),
    ("tanh, slope 0.99", "unroll", "float32"): Known(PROGRAM, 1e3, ANDERSON),
    **{("peak in the field", name, "float32"): Known(GRADIENT, 10.0, SAME_STEPS) for name in (REPLAY, REVERSIBLE)},
    ("peak in the field", "unroll", "float32"): Known(PROGRAM, 15.0, OTHER_STEPS),
    **{("stiff, forced", name, "float32"): STIFF_BACKWARDS for name in ("backsolve", "Backsolve()")},
    **{("logarithm, large", name, "float32"): NEWTON_STOPS for name in (*ALGEBRAIC, "unroll")},
    **{("logarithm, small", name, "float32"): LARGE_W for name in ("adjoint, iterated", "Iterated()")},
    **{("ill-conditioned system", n, "float32"): NO_DIGIT for n in ("adjoint, iterated", "forward", "Iterated()")},
    **{
        ("decay to a millionth", name, "float32"): Known(GRADIENT, 30.0, BELOW_ATOL)
        for name in ("backsolve", "Backsolve()", "forward, forward_sensitivity", REPLAY, REVERSIBLE)
    },
    ("Lorentz peak", "adjoint, leibniz", "float32"): Known(
        NO_NUMBER,
        None,
        "the derivative's integral ends at the rounding of float32, above its tolerance, and is taken for a failure; Leibniz() "
        "takes such an end for one, and is right to 1.3e-3, a hundredth of the bound",
    ),
}
