"""The coordinator's log lines: on standard error, JSON for machines, columns for people."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping
from typing import TextIO

import structlog
from structlog.typing import Processor

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
LEVEL = "FEDBUS_LOG"


def set_up(stream: TextIO | None = None, environment: Mapping[str, str] = os.environ) -> None:
    """Configure structlog, and the standard library's logging through it; may be called again.

    One JSON document per line unless ``stream`` (standard error) is a terminal; JSON too when systemd reads
    it (``JOURNAL_STREAM``). The variable ``FEDBUS_LOG`` sets the least level: debug, info (default),
    warning, error.
    """
    target = stream or sys.stderr
    level = LEVELS.get(environment.get(LEVEL, "info").lower(), logging.INFO)
    readable = target.isatty() and "JOURNAL_STREAM" not in environment
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=not readable),
        structlog.stdlib.ExtraAdder(),
    ]
    ends: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if readable:
        ends.append(structlog.dev.ConsoleRenderer())
    else:
        ends += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    structlog.configure(
        processors=[*shared[:-1], structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(target)
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=ends))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level)
