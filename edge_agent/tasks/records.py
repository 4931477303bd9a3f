"""The records of a CSV file (RFC 4180, UTF-8), line by line and in bounded memory."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Final, TextIO

from edge_agent.tasks import TaskError
from edge_agent.tasks.classification import reading

LINE_CHARS_MAX: Final = 1 << 20
DELIMITERS: Final = (",", ";", "\t", "|")
SHOWN_NAMES: Final = 12
SHOWN_CHARS: Final = 40


def read_table(path: Path, delimiter: str) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    """The names in the header, and each record below: the number of its (last) line, one field per name.

    Blank lines are left out. Both raise `TaskError` when the file cannot be read or is no such table.
    """
    records = _records(path, delimiter)
    _, header = next(records, (0, None))
    if header is None:
        raise TaskError(f"{path}: is empty; write a header row and at least one row of values")
    return [name.strip() for name in header], _as_wide_as(header, path, records)


def guess_delimiter(path: Path) -> str:
    """The one of `DELIMITERS` that the first line holds most often. Raises `TaskError`."""
    with reading(path), path.open(encoding="utf-8", errors="replace") as file:
        return max(DELIMITERS, key=file.readline(LINE_CHARS_MAX).count)


def shown(*texts: str) -> str:
    """What a file says, for people: the first `SHOWN_NAMES` texts, each quoted and cut short."""
    cut = [text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…" for text in texts[:SHOWN_NAMES]]
    more = f" and {len(texts) - SHOWN_NAMES} more" if len(texts) > SHOWN_NAMES else ""
    return ", ".join(map(repr, cut)) + more


def _records(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    with reading(path), path.open(encoding="utf-8-sig", newline="") as file:
        records = csv.reader(_lines(path, file), delimiter=delimiter, strict=True)
        try:
            for fields in records:
                if fields:
                    yield records.line_num, fields
        except csv.Error as error:
            raise TaskError(
                f"{path}: line {records.line_num} is not CSV ({error}); put fields that hold delimiters, "
                f"quotes or line breaks in double quotes, and double the quotes in them"
            ) from error
        except UnicodeDecodeError as error:
            line = _first_line_that_is_not_utf8(path)
            raise TaskError(f"{path}: line {line} is not UTF-8; save the file in that encoding") from error


def _as_wide_as(
    header: list[str], path: Path, records: Iterator[tuple[int, list[str]]]
) -> Iterator[tuple[int, list[str]]]:
    empty = True
    for line, fields in records:
        if len(fields) != len(header):
            widths = f"line {line} has {len(fields)} fields, the header {len(header)}"
            raise TaskError(f"{path}: {widths}; repair that line")
        yield line, fields
        empty = False
    if empty:
        raise TaskError(f"{path}: holds no rows below its header; give it at least one")


def _lines(path: Path, file: TextIO) -> Iterator[str]:
    number = 0
    while line := file.readline(LINE_CHARS_MAX):
        number += 1
        if len(line) == LINE_CHARS_MAX:
            text = f"line {number} has more than {LINE_CHARS_MAX} characters"
            raise TaskError(f"{path}: {text}; give a CSV file with one sample per line")
        yield line


def _first_line_that_is_not_utf8(path: Path) -> int:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return number
    return 0
