"""Every error message that a user can get, what provokes it, and what it must say. `test_messages.py` runs the rows.

A message stands here as it does in the source, `{}` for what is filled in, and its rows below it. One that has no row
fails `test_every_message_has_a_row`, and so does a row whose message is gone.
"""

from messages.calls import CALLS, ELSEWHERE
from messages.commands import COMMANDS, RUNS

__all__ = ["CALLS", "COMMANDS", "ELSEWHERE", "RUNS"]
