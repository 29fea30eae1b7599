"""How results show themselves in a notebook: plain HTML tables, and figures inside the page."""

import base64
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path

STYLE = "text-align:left;padding:2px 12px 2px 0;vertical-align:top"


def table(title: str, rows: Iterable[Sequence[str]], head: Sequence[str] = ()) -> str:
    """Rows of text under an optional head."""
    lines = [_row(head, "th")] if head else []
    lines += [_row(row, "td") for row in rows]
    return f"<b>{escape(title)}</b><table>{''.join(lines)}</table>"


def facts(title: str, text: str) -> str:
    """The lines of a report for the terminal, `name   value`, as a table."""
    return table(title, [re.split(r"\s{2,}", line, maxsplit=1) for line in text.splitlines()])


def _row(cells: Sequence[str], tag: str) -> str:
    return "<tr>" + "".join(f'<{tag} style="{STYLE}">{escape(text)}</{tag}>' for text in cells) + "</tr>"


def image(path: Path, width: int = 640) -> str:
    """A PNG, inside the page; nothing where there is none."""
    if not path.is_file():
        return ""
    data = base64.b64encode(path.read_bytes()).decode()
    return f'<img alt="{escape(path.stem)}" width="{width}" src="data:image/png;base64,{data}">'
