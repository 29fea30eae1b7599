"""A witness of the ground truth that trusts no derivative: what the loss changes by, against what its gradient says.

    L(p + d) - L(p) = <(G(p) + G(p + d)) / 2, d> + O(|d|^3)

Two computations that both lack a term agree with each other, and not with this: the term of a jump that moves with a parameter
and is not marked, of a field that jumps at such a time, of what a loss itself holds constant. Both ends are computed for the
condition anyhow, so that it costs no solve.
"""

import numpy as np

from implicitexp.truth.pairs import Value

NOISE = 10.0  # times the errors of the losses, by what two computations and two tolerances differ in
SAFETY = 2.0  # the gradient is that of one end, and the change is known to its noise
UNSEEN = 1e-3  # of the sum of |G_i d_i|: what is not looked for, the noise's estimate being one
REMARK = (
    "the gradient explains {told:.3g} of the loss's change by {change:.3g} when the parameters move by a millionth: the loss "
    "or its equation may jump where a parameter says (mark an integrand's jumps: Integral(..., breaks=fn)), or hold constant "
    "what moves"
)


class Contradiction:
    """What a change of the loss leaves unexplained, as the error of each component that alone would explain it."""

    def __init__(self, errors: np.ndarray, remark: str):
        self.errors, self.remark = errors, remark


def contradiction(first: Value, moved: Value, step: np.ndarray, noise: float) -> Contradiction | None:
    """`first` and `moved` by the same computation, at p and p + step; `noise`: the error of either loss. None where the
    gradients explain the change of the loss, as far as that is known."""
    change = moved.loss - first.loss
    told = float((first.gradient + moved.gradient) @ step / 2)
    parts = float(np.sum(np.abs(first.gradient * step)))
    rest = abs(change - told) - NOISE * noise - UNSEEN * parts
    if not rest > 0:  # nor where it is not a number
        return None
    sizes = np.abs(step)
    errors = np.divide(SAFETY * abs(change - told), sizes, out=np.zeros_like(sizes), where=sizes > 0)
    return Contradiction(errors, REMARK.format(told=told, change=change))


def noise_of(values: tuple[Value, Value, Value], tolerance: float, by_roots: float) -> float:
    """The error of a loss: by another computation, by another tolerance, by the tolerance itself, and by the rounding of roots,
    `by_roots` being the change of the loss over a relative movement of these. `values`: of the first computation, of the
    second, and of the second by a looser tolerance."""
    first, second, before = values
    eps = float(np.finfo(np.float64).eps)
    errors = [abs(first.loss - second.loss), abs(second.loss - before.loss), max(tolerance, eps) * abs(first.loss)]
    return max(*errors, max(second.noise, eps) * by_roots)
