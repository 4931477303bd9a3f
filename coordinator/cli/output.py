"""What the command line prints: one JSON document or a table on standard output, errors on standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

WIDTH_UNSEEN = 200  # columns of a table that goes to a file or a pipe


class UsageFault(Exception):
    """Something that was typed cannot be used (exit status 2). The text names it, cause and remedy."""


class Failed(Exception):
    """What was asked for could not be done (exit status 1). The text names thing, cause and remedy."""


def print_json(document: Any) -> None:
    """The only thing on standard output."""
    print(json.dumps(document, indent=2, ensure_ascii=False, default=str))


def print_lines(*lines: str) -> None:
    """For people."""
    print(*lines, sep="\n")


def print_error(text: str) -> None:
    """One line."""
    print(f"fedbus-coordinator: {' '.join(text.split())}", file=sys.stderr)


def printable(text: str) -> str:
    """``text`` with what could steer a terminal written out: others may have chosen it."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """For people; as wide as the terminal, or as it has to be where there is none."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title or None, title_justify="left")
    for column in columns:
        table.add_column(column, no_wrap=True)
    for row in rows:
        table.add_row(*(Text("" if cell is None else printable(str(cell))) for cell in row))
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH_UNSEEN)
    console.print(table)
