"""Lines of a training: which updates have one, and that none is lost or late by more than a chunk."""

import json
from typing import Any

import numpy as np

from implicitexp.experiment import ROWS, Rows
from implicitexp.journal import Entry, Journal
from implicitexp.record import Folder


class Tracked:
    """A tracker's run that keeps what it is told."""

    def __init__(self):
        self.lines = []

    def log(self, lines):
        self.lines += lines


def rows(steps):
    """Of `steps`, the loss being the step itself, in a buffer that is longer."""
    full: Any = np.zeros(ROWS, np.int32)
    full[: len(steps)] = steps
    count: Any = np.int32(len(steps))
    return Rows({"loss": full.astype(np.float32)}, full, count)


def steps_of(lines):
    return [line["step"] for line in lines]


def test_every_tenth_update_has_a_line():
    assert steps_of(Entry(rows([3, 10, 20, 25]), 10, {}, False).lines()) == [10, 20]


def test_a_checked_update_has_a_line_with_what_the_check_found():
    lines = Entry(rows([3, 10]), 10, {"grad/error": 0.5}, False).lines()
    assert lines == [{"step": 3, "loss": 3.0, "grad/error": 0.5}, {"step": 10, "loss": 10.0}]


def test_an_update_with_a_fault_has_a_line():
    assert steps_of(Entry(rows([3, 10, 14]), 10, {}, True).lines()) == [10, 14]


def test_nothing_was_done():
    assert Entry(rows([]), 10, {"grad/error": 0.5}, True).lines() == []


def test_lines_wait_for_the_next_chunk_and_none_is_lost(tmp_path):
    folder, tracked = Folder(tmp_path, {}), Tracked()
    journal = Journal(folder, tracked)

    def written():
        return steps_of(map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines()))

    journal.add(Entry(rows([0, 1]), 1, {}, False))
    assert written() == []
    journal.add(Entry(rows([2, 3]), 1, {}, False))
    assert written() == [0, 1]
    journal.write({"step": 4})
    journal.write()
    folder.finish({})
    assert written() == steps_of(journal.history) == [0, 1, 2, 3, 4]
    assert tracked.lines[-2:] == [(3, {"loss": 3.0}), (4, {})]
