"""Where the lines of a training go: its history, metrics.jsonl and the tracker, while the device is busy."""

from typing import Any, NamedTuple

from implicitexp.experiment import Rows
from implicitexp.record import Folder


class Entry(NamedTuple):
    """What came back of a chunk of updates."""

    rows: Rows  # NumPy's
    stride: int  # updates between two lines
    checked: dict[str, Any]  # metrics of the check before the first of them
    failed: bool  # whether the last of them has a fault

    def lines(self) -> list[dict[str, Any]]:
        """Of every `stride`th update, of one that was checked, and of one with a fault."""
        keys, count, lines = ("step", *self.rows.metrics), int(self.rows.count), []
        columns = [x[:count].tolist() for x in (self.rows.steps, *self.rows.metrics.values())]
        first = 0 if self.checked else None
        last = count - 1 if self.failed else None
        for i, values in enumerate(zip(*columns, strict=True)):
            if values[0] % self.stride == 0 or i in (first, last):
                lines.append(dict(zip(keys, values, strict=True)))
        if self.checked and lines:
            lines[0] |= self.checked
        return lines


class Journal:
    """Keeps what came back of one chunk of updates until the next chunk has come, whose successors are on their way by
    then: so no update waits for the record. `history`: all lines so far."""

    def __init__(self, folder: Folder, tracked: Any):
        self.folder, self.tracked = folder, tracked
        self.history: list[dict[str, Any]] = []
        self._held: Entry | None = None

    def add(self, entry: Entry) -> None:
        """Write what is held, and hold this."""
        self.write()
        self._held = entry

    def write(self, *more: dict[str, Any]) -> None:
        """Write what is held, and these lines after it."""
        lines = [*(self._held.lines() if self._held else []), *more]
        self._held = None
        if lines:
            self.history += lines
            self.folder.log(lines)
            self.tracked.log([(line["step"], {k: v for k, v in line.items() if k != "step"}) for line in lines])
