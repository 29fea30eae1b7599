"""Parts of messages about a wrong configuration."""

import difflib
from collections.abc import Iterable
from typing import Any

MOST_LISTED = 40  # names in one message
KIND_WORDS = {"root": "a root", "fixed_point": "a fixed point", "ode": "an ODE", "integral": "an integral"}


def nearest(wrong: str, valid: Iterable[str]) -> str:
    """`; did you mean adam?`, or nothing where no name is near."""
    near = difflib.get_close_matches(str(wrong).lower(), [str(name) for name in valid], n=1)
    return f"; did you mean {near[0]}?" if near else ""


def suggestion(wrong: str, valid: Iterable[str], what: str = "valid") -> str:
    """`; did you mean adam? valid: adam, adamw, sgd`: the nearest match, and the whole list."""
    names = sorted({str(name) for name in valid if not str(name).startswith("_")})
    more = f" and {len(names) - MOST_LISTED} more" if len(names) > MOST_LISTED else ""
    return f"{nearest(wrong, names) or ';'} {what}: {', '.join(names[:MOST_LISTED]) or 'none'}{more}"


def shown(value: Any) -> str:
    """A value as it is written on the command line."""
    if value is None or isinstance(value, bool):
        return str(value).lower().replace("none", "null")
    if isinstance(value, list | tuple):
        return f"[{','.join(shown(x) for x in value)}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}: {shown(x)}' for key, x in value.items())}}}"
    return str(value)


def kind(value: Any) -> str:
    """What a value is, in words."""
    if value is None:
        return "null"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list"}
    return names.get(type(value), "a node")


def explained(error: BaseException) -> str:
    """What reading and composing YAML raises, in one line that names the file."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is not None:
        problem = getattr(error, "problem", None) or getattr(error, "context", None)
        return f"{mark.name}, line {mark.line + 1}: this is not YAML: {problem}."
    if isinstance(error, UnicodeDecodeError):
        return f"a YAML file is not text in UTF-8: {error}."
    cause = f": {one_line(error.__cause__)}" if error.__cause__ is not None else ""
    lines = [line.strip().rstrip(".") for line in str(error).splitlines() if line.strip()]
    return f"{'; '.join(lines)}{cause}.".removeprefix(": ")


def one_line(error: BaseException) -> str:
    """What an exception says, its first line, without a full stop."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__).rstrip(".")
