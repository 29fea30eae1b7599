"""How errors are written: with their uncertainty, or as a bound; and what rows of a comparison say. Imports nothing slow."""

import math
from typing import Any

ANOTHER_NAME = "another name for "  # how the remark of a strategy begins that coincides with another one
OTHER_KINDS = "for other kinds of equation: "  # and of one that has no cell for those of the problem


def format_error(error: float | None, uncertainty: float | None) -> str:
    """An error as it may be stated: "2.4e-07 ± 1e-12", or a bound "< 3e-12" where it is not above its uncertainty."""
    if error is None or uncertainty is None or not math.isfinite(uncertainty):
        return "-"
    if not math.isfinite(error):
        return "not finite"
    if error <= uncertainty:
        return f"< {_rounded_up(error + uncertainty)}"
    return f"{error:.{2 if error < 1 else 3}g} ± {_rounded_up(uncertainty)}"


def _rounded_up(x: float) -> str:
    """One digit, never below x: a bound stays one."""
    exponent = math.floor(math.log10(x)) if x > 0 else 0
    digit = math.ceil(x / 10.0**exponent * (1 - 1e-9))
    return f"{digit * 10.0**exponent:.0e}"


def with_own_rows(strategies: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of a comparison's strategies those for this kind of equation that are no other name of one that is there."""
    return [row for row in strategies if not (row["remark"] or "").startswith((ANOTHER_NAME, OTHER_KINDS))]
