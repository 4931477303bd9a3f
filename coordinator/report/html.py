"""Pieces of the report's HTML. Every text that somebody else wrote goes through `text`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape

from coordinator.cli.output import printable

Column = tuple[str, str]  # its name, and the class of its cells


def text(value: object) -> str:
    """Somebody's text for HTML."""
    return escape(printable(str(value)))


def local_time(wall_s: float) -> str:
    """A moment, with its offset from UTC."""
    return datetime.fromtimestamp(wall_s).astimezone().isoformat(" ", "seconds")


def duration(duration_s: float) -> str:
    """In the unit that suits."""
    if duration_s < 120:
        return f"{duration_s:.3g} s"
    if duration_s < 7_200:
        return f"{duration_s / 60:.1f} min"
    return f"{duration_s / 3_600:.1f} h" if duration_s < 172_800 else f"{duration_s / 86_400:.1f} days"


def byte_count(count: int) -> str:
    """In the decimal unit that suits."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return f"{count} B"


def tally(counts: Counter[str]) -> str:
    """Each text with its count, the most frequent first."""
    return ", ".join(f"{text(name)} {count}" for name, count in counts.most_common())


def section(title: str, *parts: str) -> str:
    """A part of the page, of HTML; empty parts are left out."""
    return f"<section>\n<h2>{title}</h2>\n" + "\n".join(part for part in parts if part) + "\n</section>"


def table(columns: Sequence[Column], rows: Iterable[Sequence[str]]) -> str:
    """A table that scrolls by itself where it is too wide; ``rows`` hold HTML."""
    head = "".join(f'<th class="{kind}">{name}</th>' for name, kind in columns)
    body = "\n".join(
        "<tr>"
        + "".join(f'<td class="{kind}">{cell}</td>' for (_, kind), cell in zip(columns, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table></div>'
    )


def figure(svg: str, caption: str) -> str:
    """A drawing with its caption, which also stands for it where it cannot be seen."""
    drawing = svg.replace("<svg", f'<svg role="img" aria-label="{caption}"', 1)
    return f"<figure>{drawing}<figcaption>{caption}</figcaption></figure>"
