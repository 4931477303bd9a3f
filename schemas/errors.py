"""Errors of the wire. Each says whether the thing definitely did not happen."""

from __future__ import annotations


class WireError(Exception):
    """Bytes from outside were refused; nothing was done with them. ``code`` is stable, for counters."""

    code = "wire"


class Malformed(WireError):
    """Not a message of ours: wrong magic, truncated, oversized, or not canonical."""

    code = "malformed"


class UnknownVersion(WireError):
    """A message of a protocol version that this build does not speak."""

    code = "version"

    def __init__(self, version: int, spoken: int) -> None:
        super().__init__(
            f"the message is of protocol version {version}, this build speaks version {spoken}: "
            f"update the older side"
        )
        self.version = version


class Forged(WireError):
    """A signature, a commitment or a binding does not hold."""

    code = "forged"


class WrongRecipient(WireError):
    """Sealed to somebody else, or for another federation."""

    code = "recipient"


class UnknownSender(WireError):
    """No active device or coordinator has that key."""

    code = "sender"


class KeyRefused(WireError):
    """A key of the wrong length, or of low order, or one that does not belong here."""

    code = "key"


class Replayed(WireError):
    """This (incarnation, sequence number) was seen before."""

    code = "replayed"


class TooOld(WireError):
    """Below the replay window: the sender must sign again under a newer sequence number."""

    code = "stale"

    def __init__(self, high_water: int) -> None:
        super().__init__(f"below the replay window; the newest number seen is {high_water}")
        self.high_water = high_water


class TokenRefused(WireError):
    """An enrolment token cannot be used. The text says why and what to do."""

    code = "token"


class LayoutMismatch(WireError):
    """Bytes do not fit the job's layout."""

    code = "layout"


class Orphan(WireError):
    """A chunk of a transfer that nobody waits for (any more)."""

    code = "orphan"


class JobRefused(ValueError):
    """A job specification that cannot work. The text names the field, the value and what is allowed."""
