"""The results as text: lines as they come, and a page of Markdown."""

import math
from collections.abc import Sequence

from benchmarks.accuracy.judge import CEILING, excess, outdated, reason, unknown
from benchmarks.accuracy.rows import GRADIENT, REFUSED, RIGHT, SOLUTION, Row, number
from benchmarks.accuracy.subjects import BY_KIND, KINDS, PRECISIONS, UNROLL, strategies_of
from benchmarks.peers.table import machine
from implicitexp.strategies.base import KIND_WORDS

EXPLAINED = f"""\
Each exact strategy at its own settings and the solver's default tolerances (1e-8 in float64, 1e-5 in float32), on each
closed-form case of [tests/truth_cases.py](../../tests/truth_cases.py). The error of the gradient, in the 2-norm and relative,
may be 10 κ times the error of the loss, or what rounding and the tolerance of backward solves make of it (κ times 1e-10 in
float64, 3.5e-4 in float32), whichever is larger, and never more than a tenth. κ, stated with each case and computed here again,
is how many times its own size, relative, an error of the solution is in the gradient. *Share*: the error over that bound. A
solution that is off by more than {CEILING:.0e} of its tolerances is a miss whatever its gradient is. *Program*, for those that
differentiate what the solver did: the distance to the derivative of the program, by forward mode through the solver's loop, over
what rounding may make of it; `{UNROLL}` is held to that alone. The truth is taken at the parameters as the precision rounds them.
"""
SUMMARY = (
    "| strategy | cases | right | median share | worst share | on | program, at most |\n|---|--:|--:|--:|--:|---|--:|\n"
)
DETAILS = "| case | κ | strategy | error of the loss | of the gradient | share | program | |\n|---|--:|---|--:|--:|--:|--:|---|\n"
MISSES = "| case | strategy | precision | | times what is allowed | why |\n|---|---|---|---|--:|---|\n"


def line(row: Row) -> str:
    """As it is printed when it is known."""
    if row.remark:
        return f"    {row.strategy:36}{row.verdict}: {row.remark}"
    text = f"    {row.strategy:36}loss {number(row.primal):>8}  gradient {number(row.gradient):>8}"
    text += f"  share {number(row.share):>8}" if row.strategy != UNROLL else 16 * " "
    text += "" if row.program is None else f"  program {number(row.program):>8}"
    return text + ("" if row.verdict == RIGHT else f"  {row.verdict}{'' if reason(row) else ' (NOT KNOWN)'}")


def misses(rows: Sequence[Row], misstated: Sequence[str] = ()) -> str:
    """What is not right, for the terminal: unknown misses last."""
    parts = []
    for row in rows:
        if (known := reason(row)) is not None:
            parts.append(f"known: {_who(row)}: {row.verdict}{_size(row)}: {known.why}")
    parts += [f"no miss any more: {_who(row)}" for row in outdated(rows)]
    parts += [f"NOT KNOWN: {_who(row)}: {row.verdict}{_size(row)}" for row in unknown(rows)]
    parts += [f"MISSTATED: {text}" for text in misstated]
    count = sum(row.verdict == RIGHT for row in rows)
    return "\n".join([*parts, f"{count} of {len(rows)} right"])


def _who(row: Row) -> str:
    return f"{row.case}, {row.strategy}, {row.precision}"


def _size(row: Row) -> str:
    return f", {excess(row):.3g} times what is allowed" if math.isfinite(excess(row)) else ""


# -- the page ---------------------------------------------------------------------------------------------------------


def document(rows: Sequence[Row]) -> str:
    """All of it."""
    counts = ", ".join(
        f"{sum(r.verdict == RIGHT for r in part)} of {len(part)} right in {p}" for p, part in _parts(rows)
    )
    wrong = [row for row in rows if row.verdict != RIGHT]
    return "\n".join(
        [
            "# Accuracy of the strategies\n",
            f"`python -m benchmarks.accuracy` on {machine()}. {counts}.\n",
            EXPLAINED,
            "![The share of its bound that each error is](accuracy.png)\n",
            *(_summary(precision, kind, rows) for precision in PRECISIONS for kind in KINDS),
            "## Missed\n",
            MISSES + "".join(_missed(row) for row in wrong) if wrong else "Nothing.\n",
            *(_details(precision, kind, rows) for precision in PRECISIONS for kind in KINDS),
        ]
    )


def _parts(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    parts = [(p, [row for row in rows if row.precision == p]) for p in PRECISIONS]
    return [(p, part) for p, part in parts if part]


def chosen(precision: str, kind: str, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if (row.precision, row.kind) == (precision, kind)]


def _summary(precision: str, kind: str, rows: Sequence[Row]) -> str:
    part = chosen(precision, kind, rows)
    if not part:
        return ""
    found = [_summary_line(name, [r for r in part if r.strategy == name]) for name in strategies_of(kind)]
    return f"## {KIND_WORDS[kind]}, {precision}\n\n{SUMMARY}{''.join(found)}"


def _summary_line(name: str, rows: Sequence[Row]) -> str:
    """Refusals are no cases of theirs; a NaN is one."""
    rows = [row for row in rows if row.verdict != REFUSED]
    if not rows:
        return ""
    finite = sorted((row for row in rows if math.isfinite(row.share)), key=lambda row: row.share)
    programs = [row.program for row in rows if row.program is not None]
    cells = [name, str(len(rows)), str(sum(row.verdict == RIGHT for row in rows))]
    if name == UNROLL or not finite:
        cells += ["", "", ""]
    else:
        cells += [number(finite[len(finite) // 2].share), number(finite[-1].share), finite[-1].case]
    return "| " + " | ".join([*cells, number(max(programs)) if programs else ""]) + " |\n"


def _missed(row: Row) -> str:
    known = reason(row)
    size = f"{excess(row):.3g}" if row.verdict in (GRADIENT, SOLUTION) else ""
    why = "**not known** " + row.remark if known is None else known.why
    return "| " + " | ".join([row.case, row.strategy, row.precision, row.verdict, size, why]) + " |\n"


def _details(precision: str, kind: str, rows: Sequence[Row]) -> str:
    part = chosen(precision, kind, rows)
    if not part:
        return ""
    names = [case.name for case in BY_KIND[kind]]
    ordered = sorted(part, key=lambda row: names.index(row.case))
    return f"## Every row: {KIND_WORDS[kind]}, {precision}\n\n{DETAILS}{''.join(map(_detail, ordered))}"


def _detail(row: Row) -> str:
    numbers = [
        number(x) for x in (row.primal, row.gradient, None if row.strategy == UNROLL else row.share, row.program)
    ]
    verdict = "" if row.verdict == RIGHT else row.verdict
    return "| " + " | ".join([row.case, f"{row.condition:.3g}", row.strategy, *numbers, verdict]) + " |\n"
