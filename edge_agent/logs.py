"""Log lines of the resident: readable on a terminal, one JSON document per line elsewhere.

Standard library only: structlog loads Rich where it is installed, 2 MiB that an idle device can't spare.
"""

from __future__ import annotations

import json
import logging
from typing import Final, TextIO

FIELDS: Final = ("job", "round", "request")


class JsonLines(logging.Formatter):
    """One JSON object per record: time (UTC offset included), level, event, device, and known fields."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        entry: dict[str, object] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
            "device": self._device,
            **_fields(record),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


class ForPeople(logging.Formatter):
    """``12:30:01 info  what happened  job=a round=3``."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        known = "".join(f"  {name}={value}" for name, value in _fields(record).items())
        clock = self.formatTime(record, "%H:%M:%S")
        line = f"{clock} {record.levelname.lower():<8}{record.getMessage()}{known}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _fields(record: logging.LogRecord) -> dict[str, object]:
    return {name: getattr(record, name) for name in FIELDS if hasattr(record, name)}


def configure(stream: TextIO, device: str, *, verbose: bool = False) -> None:
    """Send the log of this process to ``stream``."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(ForPeople() if stream.isatty() else JsonLines(device))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("fedbus", "broker"):
        logging.getLogger(name).setLevel(logging.DEBUG if verbose else logging.INFO)
