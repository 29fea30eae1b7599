"""The results as Markdown: a summary, the goals, a table for each case."""

import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from benchmarks.peers.rows import Memory, Result, Row
from benchmarks.peers.verdict import Against, Verdict, goals, judge

LIBRARIES = ("jax", "diffrax", "optimistix", "lineax", "quadax", "jaxopt", "casadi", "sundials4py")
SUMMARY = (
    "| # | case | ours | ms | error | hardest JAX peer | ms | error | times faster | to the tolerance "
    "| over torch | over CVODES, CasADi "
    "| times the floor | compile, of the peer's |\n"
    "|--:|---|---|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|\n"
)
DETAILS = "| library | gradient | ms | quartiles | turns | error | compile s | memory MiB |\n|---|---|--:|--:|--:|--:|--:|--:|\n"
EXPLAINED = """\
Medians of turns that go round, quartiles beside them; `error` is that of the gradient, relative to its norm, against the
reference (its own uncertainty stands under each case). Ours are strategies as they are when nothing is said. Against each peer
stands the fastest of ours with an equal or smaller error; a star marks a peer that none of ours is as accurate as, a plus one
where both errors are below the tolerance asked for. "To the tolerance": where of ours an error below it will do, however far
below it the peer is. Compiled without any cache. Memory is XLA's temporary memory. The floor is a program written by hand that
does only what cannot be avoided; what stands over it is the fastest of ours that is as accurate as any of the JAX peers.
"""


def document(results: Sequence[Result], seconds: float) -> str:
    """All of it."""
    verdicts = [judge(result) for result in results]
    parts = [
        "# Ours beside the peers\n",
        f"`python -m benchmarks.peers`, {seconds / 60:.0f} minutes on {machine()}.\n",
        EXPLAINED,
        summary(verdicts),
        "## Goals\n\n" + "".join(f"- {line}\n" for line in goals(verdicts)),
        "## Missed\n\n" + missed(verdicts),
        *(details(result) for result in results),
    ]
    return "\n".join(parts)


def summary(verdicts: Sequence[Verdict]) -> str:
    """A line for each case."""
    return SUMMARY + "".join(_summary_line(v) for v in verdicts)


def _summary_line(verdict: Verdict) -> str:
    ours, jax, floor = verdict.best, verdict.jax, verdict.over_floor
    known = verdict.result.uncertainty
    mine = ["none", "", ""] if ours is None else [ours.name, _ms(ours), _error(ours, known)]
    peer = ["no JAX peer", "", ""]
    if jax is not None:
        peer = [f"{jax.peer.library} {jax.peer.name}", _ms(jax.peer), _error(jax.peer, known)]
    compiled = "" if jax is None or jax.compile is None else f"{jax.compile:.2f}"
    cells = [str(verdict.result.number), verdict.result.title, *mine, *peer]
    cells += [_factor(a) for a in (jax, verdict.by_tolerance, verdict.torch, verdict.native)]
    cells += ["" if floor is None else f"{floor:.2f}", compiled]
    return "| " + " | ".join(cells) + " |\n"


def _factor(against: Against | None) -> str:
    if against is None:
        return "no peer"
    mark = "" if against.as_accurate else "+" if against.both_within else "*"
    return f"{against.faster:.2f}{mark}"


def missed(verdicts: Sequence[Verdict]) -> str:
    """What each case misses."""
    lines = [f"- {v.result.number}: {'; '.join(found)}\n" for v in verdicts if (found := v.missed())]
    return "".join(lines) or "Nothing.\n"


def details(result: Result) -> str:
    """Every program of a case."""
    title = f"## {result.number}. {result.title}\n\n"
    rows = "".join(_line(row, result.uncertainty) for row in result.rows)
    remarks = [f"Uncertainty of the reference: {result.uncertainty:.1e}.", *result.remarks]
    kinds = {row.role for row in result.rows if row.times is not None}
    if not kinds & {"jax", "torch", "native"}:
        remarks.append("No peer.")
    return title + DETAILS + rows + "\n" + " ".join(remarks) + "\n" + memory_table(result.memory)


def _line(row: Row, uncertainty: float) -> str:
    if row.times is None:
        return f"| {row.library} | {row.name} | not run: {row.remark} | | | | | |\n"
    t = row.times
    spread = f"{_number(1e3 * t.low)} to {_number(1e3 * t.high)}"
    compile_s = "" if row.compile_s is None else f"{row.compile_s:.2f}"
    memory = "" if row.memory_bytes is None else f"{row.memory_bytes / 2**20:.3g}"
    cells = [row.library, row.name, _ms(row), spread, str(t.turns), _error(row, uncertainty), compile_s, memory]
    return "| " + " | ".join(cells) + " |\n"


def memory_table(memory: Sequence[Memory]) -> str:
    """MiB by the number of steps."""
    if not memory:
        return ""
    counts = sorted(memory[0].bytes_at)
    head = "\nMemory in MiB by the number of steps:\n\n| library | gradient | " + " | ".join(f"{c:,}" for c in counts)
    lines = [head + " |\n|---|---|" + "--:|" * len(counts) + "\n"]
    for m in memory:
        sizes = [m.bytes_at[c] for c in counts]
        cells = ["" if s is None else f"{s / 2**20:.4g}" for s in sizes]
        lines.append("| " + " | ".join([m.library, m.name, *cells]) + " |\n")
    return "".join(lines)


def _ms(row: Row) -> str:
    return "" if row.times is None else _number(1e3 * row.times.median)


def _error(row: Row, uncertainty: float) -> str:
    """A bound where the reference is not known so well."""
    if row.error is None:
        return ""
    return f"< {uncertainty:.1e}" if row.error < uncertainty else f"{row.error:.1e}"


def _number(x: float) -> str:
    """Three digits, without an exponent."""
    return f"{x:.0f}" if x >= 100 else f"{x:.3g}"


def machine() -> str:
    """The processor, and the versions."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = info.read_text().splitlines()
        names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
        model = f"{len(names)} cores of {names[0]}" if names else model
    versions = ", ".join(f"{name} {_version(name)}" for name in LIBRARIES)
    return f"{model}; Python {platform.python_version()}, {versions}"


def _version(name: str) -> str:
    try:
        return version(name)
    except ImportError:
        return "not installed"
