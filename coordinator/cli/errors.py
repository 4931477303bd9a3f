"""Which errors the command line expects: they are told in one line; anything else is a defect."""

from __future__ import annotations

from typing import Final

from broker.bus import BusError
from broker.journal import JournalError
from broker.ports import LockHeld
from coordinator.broker_admin.roster import AccessError
from coordinator.cli.output import Failed, UsageFault
from coordinator.config import ConfigError
from coordinator.control import CommandFailed, NotServing
from coordinator.evaluating import EvaluationFailed
from coordinator.exporting import NoSuchVersion
from coordinator.keystore import KeysMissing
from coordinator.onto import OntoRefused
from coordinator.rekey import ExportRefused
from coordinator.store import Altered
from coordinator.strategies import NoSuchOptimiser
from schemas.errors import WireError

EXPECTED: Final = (
    AccessError,
    Altered,
    BusError,
    CommandFailed,
    ConfigError,
    EvaluationFailed,
    ExportRefused,
    Failed,
    JournalError,
    KeysMissing,
    LockHeld,
    NoSuchOptimiser,
    NoSuchVersion,
    NotServing,
    OntoRefused,
    OSError,  # its text names the file and what the system said
    UsageFault,
    WireError,
)
MISUSE: Final = (ConfigError, UsageFault)


def text_of(error: Exception) -> str:
    """What to tell a person."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__
