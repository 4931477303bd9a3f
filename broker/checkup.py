"""What the doctors of both sides find, and what they examine alike: clock, disk, secret files.

Everything here only looks. A finding says what was measured, and what to do about it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import pwd
import shutil
import stat
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, Final

RELEASED_WALL_S: Final = datetime(2026, 1, 1, tzinfo=UTC).timestamp()
"""This release was made later: a clock that shows less is wrong."""
CLOCK_SLACK_S: Final = 300.0
"""Tokens and certificates expire by the clock; less than this matters to neither."""
DISK_FAULT_BYTES: Final = 256 << 20
DISK_WARNING_BYTES: Final = 2 << 30

AGAIN: Final = "; the bus connects again"
"""How a bus ends what it says of a broken connection: a promise, not a remedy."""
BROKEN: Final = "the broker's log tells why it ended the connection"

_NO_ROOM: Final = (errno.ENOSPC, errno.EDQUOT)
_TIME_ERROR: Final = 5  # adjtimex(2): the kernel's clock follows no other clock


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    UNKNOWN = "unknown"  # could not be measured; the text says why
    WARNING = "warning"  # works, and could be better
    FAULT = "fault"  # loses something, or does not work


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was examined. ``remedy`` is what to change, to the line where that is known."""

    name: str
    level: Level
    measured: str
    remedy: str = ""


def document(findings: Iterable[Finding]) -> dict[str, Any]:
    """For programs. ``ok`` is True when no finding is a fault."""
    listed = list(findings)
    return {"ok": healthy(listed), "findings": [asdict(finding) for finding in listed]}


def healthy(findings: Iterable[Finding]) -> bool:
    """Whether none is a fault."""
    return all(finding.level is not Level.FAULT for finding in findings)


def lines(finding: Finding) -> list[str]:
    """For people."""
    told = [f"{finding.level:8} {finding.name:16} {finding.measured}"]
    return [*told, f"{'':8} {'change':16} {finding.remedy}"] if finding.remedy else told


def summary(findings: Iterable[Finding]) -> str:
    """One line for people: how many of each level."""
    levels = [finding.level for finding in findings]
    return ", ".join(f"{levels.count(level)} {level}" for level in Level if level in levels)


def told(name: str, error: Exception) -> Finding:
    """An error of ours as a fault: the end of its one line is its remedy."""
    text = bare(error)
    measured, _, remedy = text.rpartition("; ")
    otherwise = BROKEN if text != str(error) else ""
    return Finding(name, Level.FAULT, measured or remedy, remedy if measured else otherwise)


def bare(error: Exception) -> str:
    """The text of an error of ours, without what its bus is going to do about it."""
    return str(error).removesuffix(AGAIN)


def unwritable(directory: Path, error: OSError) -> Finding:
    """A state directory in which we cannot write, as a fault."""
    remedy = f"see that {directory} can be written, by the user who owns it"
    if error.errno in _NO_ROOM:
        remedy = f"free space on the file system of {directory}"
    measured = f"{error.filename or directory}: {error.strerror or error}: what needs it is not measured"
    return Finding("state directory", Level.FAULT, measured, remedy)


def other_owner(directory: Path) -> str:
    """Why this user must not work in a state directory: files that it makes there would be closed to the
    owner. Empty if it may, or if there is no such directory."""
    try:
        owner = directory.stat().st_uid
    except OSError:
        return ""
    if owner == os.geteuid():
        return ""
    try:
        who = pwd.getpwuid(owner).pw_name
    except KeyError:
        who = f"#{owner}"
    return f"{directory} belongs to {who}: run this as {who} (`sudo -u {who} …`)"


def clock(wall_s: float, known_wall_s: float, known: str) -> Finding:
    """This machine's clock against a moment that has certainly passed, which only finds one that is behind;
    ``known`` says whose moment that is."""
    if known_wall_s < RELEASED_WALL_S:
        known_wall_s, known = RELEASED_WALL_S, "this release of fedbus"
    if wall_s >= known_wall_s - CLOCK_SLACK_S:
        return Finding(
            "clock", Level.OK, f"{when(wall_s)}, not before {known}; whether it is ahead is not told"
        )
    measured = f"{when(wall_s)}, {span(known_wall_s - wall_s)} before {known} ({when(known_wall_s)})"
    return Finding("clock", Level.FAULT, measured, CLOCK_REMEDY)


def clock_compared(wall_s: float, other_wall_s: float, other: str) -> Finding:
    """This machine's clock against another's, asked just now."""
    off_s = wall_s - other_wall_s
    if abs(off_s) <= CLOCK_SLACK_S:
        return Finding("clock compared", Level.OK, f"within {max(abs(off_s), 1):.0f} s of {other}")
    word = "ahead of" if off_s > 0 else "behind"
    measured = f"{when(wall_s)}, {span(abs(off_s))} {word} {other} ({when(other_wall_s)})"
    return Finding("clock compared", Level.FAULT, measured, f"{CLOCK_REMEDY} (on the machine that is wrong)")


CLOCK_REMEDY: Final = "set the clock and keep it right: `timedatectl set-ntp true`"


def clock_source() -> Finding:
    """Whether the kernel's clock follows a time server (adjtimex(2), only asked)."""
    synchronised = _synchronised()
    if synchronised is None:
        return Finding(
            "clock source", Level.UNKNOWN, "the kernel does not tell whether its clock is kept right"
        )
    if synchronised:
        return Finding("clock source", Level.OK, "the kernel's clock follows a time server")
    return Finding("clock source", Level.WARNING, "the kernel's clock follows no time server", CLOCK_REMEDY)


def disk(
    path: Path, *, fault_bytes: int = DISK_FAULT_BYTES, warning_bytes: int = DISK_WARNING_BYTES
) -> Finding:
    """Free space where ``path`` lies. Raises OSError."""
    free = shutil.disk_usage(path).free
    level = Level.FAULT if free < fault_bytes else Level.WARNING if free < warning_bytes else Level.OK
    remedy = (
        "" if level is Level.OK else f"free space on the file system of {path}: {warning_bytes >> 20} MiB"
    )
    return Finding("disk", level, f"{free >> 20} MiB free in {path}", remedy)


def secrets_kept(paths: Iterable[Path], remedy: str) -> Finding:
    """Whether these files are ours to read, and nobody else's."""
    listed = list(paths)
    for path in listed:
        try:
            mode = stat.S_IMODE(path.stat().st_mode)
        except OSError as error:
            return Finding("keys", Level.FAULT, f"{path}: {error.strerror}", remedy)
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            return Finding("keys", Level.FAULT, f"{path} is open to other users (mode {mode:04o})", remedy)
        if not os.access(path, os.R_OK):
            return Finding("keys", Level.FAULT, f"{path} cannot be read by this user", remedy)
    return Finding("keys", Level.OK, f"{len(listed)} secret files, their owner's alone")


def when(wall_s: float) -> str:
    """A moment for people."""
    return datetime.fromtimestamp(wall_s, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def span(seconds: float) -> str:
    """A duration for people."""
    for size, unit in ((86_400, "days"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


class _Timex(ctypes.Structure):
    """``struct timex``: only ``modes`` is read by us, and 0 there means "change nothing"."""

    _fields_ = (("modes", ctypes.c_uint), ("rest", ctypes.c_byte * 508))


def _synchronised() -> bool | None:
    try:
        state: int = ctypes.CDLL(None).adjtimex(ctypes.byref(_Timex()))
    except (AttributeError, OSError):
        return None
    return None if state < 0 else state != _TIME_ERROR
