"""How a case came out: ours against each peer at an equal or smaller error, and against the goals.

Against a peer stands the fastest of ours whose error is not larger than the peer's. Where none of ours is so accurate it is the
most accurate one, and the verdict says so, and whether both errors are below the tolerance that was asked for. A second
reading takes the tolerance at its word: of ours whatever is below it will do, however far below it the peer is. A gradient that
is off by more than WRONG is not a peer's answer.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

from benchmarks.peers.rows import Memory, Result, Row

EQUAL = 1.1  # errors whose ratio is below this are equal: the same derivative, rounded in another order
WRONG = 0.1
OVER_JAX, OVER_TORCH = 1.5, 5.0  # geometric means
COMPILE, FLOOR, FLAT = 0.5, 1.3, 1.1


@dataclasses.dataclass(frozen=True)
class Against:
    """One of ours and a peer: how many times faster, whether at an equal or smaller error, and whether both errors are below
    the tolerance that was asked for."""

    ours: Row
    peer: Row
    faster: float
    as_accurate: bool
    both_within: bool

    @property
    def compile(self) -> float | None:
        """Our time of compilation, in units of the peer's."""
        if self.ours.compile_s is None or self.peer.compile_s is None:
            return None
        return self.ours.compile_s / self.peer.compile_s


@dataclasses.dataclass(frozen=True)
class Verdict:
    """`jax`, `torch`, `native`: against the peer of that kind that is hardest to beat; None where there is none. `by_tolerance`:
    against the hardest JAX peer in the second reading."""

    result: Result
    best: Row | None
    jax: Against | None
    torch: Against | None
    native: Against | None
    by_tolerance: Against | None
    over_floor: float | None

    def missed(self) -> list[str]:
        """The goals that are missed, by how much."""
        found = []
        for name, against in (("JAX", self.jax), ("torch", self.torch), ("native", self.native)):
            if against is None:
                continue
            peer = f"{against.peer.library} {against.peer.name}"
            if not against.as_accurate:
                within = ", both below the tolerance" if against.both_within else ""
                errors = f"{against.ours.error:.1e} against {against.peer.error:.1e}{within}"
                found.append(f"less accurate than {peer} ({errors}), {against.faster:.2f} times as fast")
            elif against.faster <= 1:
                found.append(f"slower than {name}'s {peer}: {against.faster:.2f} times as fast")
        if self.jax is not None and self.jax.compile is not None and self.jax.compile > COMPILE:
            found.append(f"compilation {self.jax.compile:.2f} of the peer's, not {COMPILE}")
        if self.over_floor is not None and self.over_floor > FLOOR:
            found.append(f"{self.over_floor:.2f} times the floor, not {FLOOR}")
        return found


def judge(result: Result) -> Verdict:
    """All comparisons of a case."""
    ours = [row for row in result.rows if row.role == "ours" and _answered(row)]
    hardest = {role: _hardest(result, ours, role) for role in ("jax", "torch", "native")}
    chosen = [against.ours for against in hardest.values() if against is not None]
    best = chosen[0] if chosen else min(ours, key=_median, default=None)
    by_tolerance = _hardest(result, ours, "jax", result.tolerance)
    jax, torch, native = hardest["jax"], hardest["torch"], hardest["native"]
    return Verdict(result, best, jax, torch, native, by_tolerance, _over_floor(result, ours))


def _over_floor(result: Result, ours: Sequence[Row]) -> float | None:
    """The fastest of ours that is as accurate as any JAX peer, over the lowest floor."""
    floors = [_median(row) for row in result.rows if row.role == "floor" and row.times is not None]
    errors = [_error(row) for row in result.rows if row.role == "jax" and _answered(row)]
    most = max(EQUAL * max(errors), result.uncertainty) if errors else math.inf
    able = [_median(row) for row in ours if _error(row) <= most]
    return min(able) / min(floors) if floors and able else None


def _hardest(result: Result, ours: Sequence[Row], role: str, enough: float = 0.0) -> Against | None:
    """The peer that leaves ours the smallest factor; of ours an error of `enough` will do."""
    peers = [row for row in result.rows if row.role == role and _answered(row)]
    if not peers or not ours:
        return None
    return min((_against(ours, peer, result, enough) for peer in peers), key=lambda a: a.faster)


def _against(ours: Sequence[Row], peer: Row, result: Result, enough: float) -> Against:
    most = max(EQUAL * _error(peer), result.uncertainty, enough)
    able = [row for row in ours if _error(row) <= most]
    mine = min(able, key=_median) if able else min(ours, key=_error)
    within = max(_error(mine), _error(peer)) <= result.tolerance
    return Against(mine, peer, _median(peer) / _median(mine), bool(able), within)


def _answered(row: Row) -> bool:
    return row.times is not None and row.error is not None and row.error < WRONG


def _median(row: Row) -> float:
    assert row.times is not None
    return row.times.median


def _error(row: Row) -> float:
    assert row.error is not None
    return row.error


# -- all cases together ---------------------------------------------------------------------------------------------------


def mean_factor(against: Iterable[Against | None]) -> float | None:
    """Geometric mean of the factors, over the cases that have such a peer."""
    logs = [math.log(a.faster) for a in against if a is not None]
    return math.exp(sum(logs) / len(logs)) if logs else None


def growth(memory: Memory) -> float | None:
    """The largest memory over the smallest; None where one is not known."""
    known = [b for b in memory.bytes_at.values() if b is not None]
    return max(known) / max(min(known), 1) if len(known) == len(memory.bytes_at) and known else None


def goals(verdicts: Sequence[Verdict]) -> list[str]:
    """A line for each goal: what is wanted, what was found."""
    over_jax, over_torch = mean_factor(v.jax for v in verdicts), mean_factor(v.torch for v in verdicts)
    compiles = [v.jax.compile for v in verdicts if v.jax is not None and v.jax.compile is not None]
    floors = [v.over_floor for v in verdicts if v.over_floor is not None]
    rivals = [a for v in verdicts for a in (v.jax, v.torch, v.native) if a is not None]
    won = [a for a in rivals if a.as_accurate and a.faster > 1]
    also = [a for a in rivals if not a.as_accurate and a.both_within and a.faster > 1]
    lines = [
        f"faster than the hardest peer of each kind at an equal or smaller error: {len(won)} of {len(rivals)}; {len(also)} more "
        "at a larger error, both below the tolerance asked for",
        _mean("JAX", over_jax, OVER_JAX),
        f"the same, where of ours an error below the tolerance will do: {_shown(mean_factor(v.by_tolerance for v in verdicts))}",
        _mean("torch", over_torch, OVER_TORCH),
        f"compile time at most {COMPILE} of that JAX peer's: {sum(c <= COMPILE for c in compiles)} of {len(compiles)} cases",
        f"within {FLOOR} of the floor: {sum(f <= FLOOR for f in floors)} of {len(floors)} cases",
    ]
    for memory in (m for v in verdicts for m in v.result.memory if m.library == "implicitexp"):
        if memory.name in ("Reversible()", "Backsolve()"):
            ratio = growth(memory)
            found = "not known" if ratio is None else f"{ratio:.2f} times"
            lines.append(f"memory of {memory.name} flat within {FLAT} over {_range(memory)} steps: {found}")
    return lines


def _mean(kind: str, found: float | None, wanted: float) -> str:
    return f"geometric mean over the hardest {kind} peer of each case, at least {wanted}: {_shown(found)}"


def _shown(mean: float | None) -> str:
    return "no case" if mean is None else f"{mean:.2f}"


def _range(memory: Memory) -> str:
    return f"{min(memory.bytes_at):,} to {max(memory.bytes_at):,}"
