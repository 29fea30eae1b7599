"""When a strategy is right on a case, and which misses are known."""

import math
from collections.abc import Sequence

import numpy as np

from benchmarks.accuracy.measure import Measured
from benchmarks.accuracy.misses import KNOWN, Key, Known
from benchmarks.accuracy.rows import FAILED, GRADIENT, NO_NUMBER, PROGRAM, REFUSED, RIGHT, SOLUTION, Row

AMPLIFIED = 10.0  # times the condition and the solution's error: what a gradient's error may be
BACKWARD = 55.0  # times eps^(3/4), the tolerance of backward solves: 1e-10 in float64, 3.5e-4 in float32
LARGEST = 0.1  # of itself: a gradient that is off by more is wrong, whatever the solution's own error would explain
CEILING = 1e4  # tolerances: a solution that is off by more is wrong, and no gradient of it is right


def rounding(condition: float, precision: str) -> float:
    """What rounding and the tolerance of backward solves may make of a gradient, relative."""
    return condition * BACKWARD * float(np.finfo(precision).eps) ** 0.75


def bound(condition: float, primal: float, precision: str) -> float:
    """10 kappa times the solution's error, or 1e-10 kappa, in float32 its rounding in the place of that; at most LARGEST."""
    explained = 0.0 if math.isnan(primal) else AMPLIFIED * condition * primal
    return min(max(explained, rounding(condition, precision)), LARGEST)


def judged(
    key: Key, kind: str, condition: float, found: Measured, on_the_way: float = 0.0, for_problem: bool = True
) -> Row:
    """The row of a strategy on a case. `key`: case, strategy, precision; `on_the_way`: the solution's error before its end;
    `for_problem`: False where a strategy is exact for the program only."""
    precision = key[2]
    allowed = bound(condition, max(found.primal, on_the_way), precision)
    share = found.gradient / allowed
    of_program = None if found.program is None else found.program / rounding(condition, precision)
    verdict = _verdict(found, share if for_problem else 0.0, of_program)
    return Row(
        *key, kind, condition, found.primal, found.tolerances, found.gradient, share, of_program, verdict, found.failure
    )


def _verdict(found: Measured, share: float, of_program: float | None) -> str:
    if found.failure:
        return REFUSED if found.refused else FAILED
    if not math.isfinite(found.gradient):
        return NO_NUMBER  # a failed solve says so by NaN; whether it should have failed is another question
    if not found.tolerances <= CEILING:
        return SOLUTION
    if not share <= 1:
        return GRADIENT
    return RIGHT if of_program is None or of_program <= 1 else PROGRAM


def excess(row: Row) -> float:
    """How many times what is allowed a miss is; infinite where it is not a matter of size."""
    by_verdict = {GRADIENT: row.share, SOLUTION: row.tolerances / CEILING, PROGRAM: row.program or 0.0}
    return by_verdict.get(row.verdict, math.inf)


def reason(row: Row) -> Known | None:
    """Of a miss that is known, and no larger than it was."""
    known = KNOWN.get((row.case, row.strategy, row.precision))
    if known is None or known.verdict != row.verdict:
        return None
    return known if known.most is None or excess(row) <= known.most else None


def unknown(rows: Sequence[Row]) -> list[Row]:
    """The misses that nobody has explained."""
    return [row for row in rows if row.verdict != RIGHT and reason(row) is None]


def outdated(rows: Sequence[Row]) -> list[Row]:
    """Rows that are right, and stand among the known misses."""
    return [row for row in rows if row.verdict == RIGHT and (row.case, row.strategy, row.precision) in KNOWN]
