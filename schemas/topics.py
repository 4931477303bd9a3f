"""Topics: the only place where they are built or taken apart.

``fedbus/<federation>/up/<device>`` carries what a device says, ``…/down/<device>`` what it is told.
"""

from __future__ import annotations

from schemas.errors import Malformed
from schemas.ids import NAME, DeviceId, FederationId

ROOT = "fedbus"


def up(federation: FederationId, device: DeviceId) -> str:
    """Where a device speaks."""
    return f"{ROOT}/{federation.hex()}/up/{device}"


def down(federation: FederationId, device: DeviceId) -> str:
    """Where a device listens."""
    return f"{ROOT}/{federation.hex()}/down/{device}"


def all_up(federation: FederationId) -> str:
    """The coordinator's subscription."""
    return f"{ROOT}/{federation.hex()}/up/+"


def all_down(federation: FederationId) -> str:
    """What the coordinator may publish to."""
    return f"{ROOT}/{federation.hex()}/down/+"


def probe(federation: FederationId) -> str:
    """Where the coordinator's user may try out what the broker does; no device reads or writes here."""
    return f"{ROOT}/{federation.hex()}/probe/coordinator"


def up_device(topic: str, federation: FederationId) -> DeviceId:
    """The device whose ``up`` topic this is: a hint for answers, proven by nothing. Raises `Malformed`."""
    prefix = f"{ROOT}/{federation.hex()}/up/"
    name = topic.removeprefix(prefix)
    if name == topic or not NAME.fullmatch(name):
        raise Malformed(f"topic {topic!r} is not a device's of this federation")
    return DeviceId(name)
