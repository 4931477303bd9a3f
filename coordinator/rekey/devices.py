"""The devices of an export: their throw-away keys, as an agent keeps its own, and their users at the broker.

``devices/<name>/`` is an agent's state directory: ``identity`` has its keys (edge_agent.identity),
``sequence`` the numbers that no message has yet. Of a device that joined more than once, ``identity.1``,
``identity.2``, … are its earlier lives, the oldest first.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Final

from broker.mailbox import RESERVED
from broker.ports import Ports, write_atomic
from coordinator.broker_admin.access import EmbeddedAccess
from coordinator.broker_admin.roster import Roster
from coordinator.config import PASSWORD_BYTES, Config
from coordinator.keystore import Identity
from coordinator.rekey.messages import Life
from coordinator.setup import embedded_broker
from coordinator.state import DeviceState, State
from schemas.codec import pack
from schemas.ids import DeviceId
from schemas.keys import Certificate, Kind, open_key_set, sign_struct

FOLDER: Final = "devices"
MARK: Final = "rekeyed"
"""Tells an export from the directory of a demo, whose agents lie in it, too."""


def put_devices(
    ports: Ports, directory: Path, config: Config, ours: Identity, lives: list[Life], state: State
) -> None:
    """Keep all ``lives``, in the order of joining, and let in whoever is a member in ``state``."""
    of_device: defaultdict[str, list[Life]] = defaultdict(list)
    for life in lives:
        of_device[life.joined.device].append(life)
    roster = Roster(ports, directory)
    ports.files.make_dir(directory / "broker")
    for name, all_lives in of_device.items():
        folder, device = directory / FOLDER / name, state.devices[name]
        password = ports.entropy.random_bytes(PASSWORD_BYTES).hex()
        ports.files.make_dir(folder)
        for number, life in enumerate(all_lives, 1):
            last = number == len(all_lives)
            active = not last or device.state is not DeviceState.JOINED
            document = _document(ports, config, ours, life, password, active=active)
            write_atomic(ports.files, folder / ("identity" if last else f"identity.{number}"), document)
        numbers = RESERVED.pack(device.window.incarnation, device.window.high + 1)
        write_atomic(ports.files, folder / "sequence", numbers)
        if device.state is not DeviceState.REVOKED:
            roster.put(DeviceId(name), password)
            if config.broker.startswith("embedded:"):
                broker = embedded_broker(ports, directory, config)
                EmbeddedAccess(ports, broker, ours.federation).put(DeviceId(name), password)
    write_atomic(ports.files, directory / MARK, b"all keys here were made for this recording\n", mode=0o644)


def _document(
    ports: Ports, config: Config, ours: Identity, life: Life, password: str, *, active: bool
) -> bytes:
    """An identity, as an agent reads it."""
    joined = life.joined
    certificate = Certificate(
        federation=ours.federation,
        device=joined.device,
        entity=joined.entity,
        signing=joined.signing,
        box=joined.box,
        key_set=open_key_set(ours.key_set, ours.root, ours.federation).number,
    )
    return pack(
        {
            "device": joined.device,
            "root": ours.root,
            "urls": config.urls_for_devices(),
            "password": password,
            "ca": "",
            "signing_seed": life.signing.seed,
            "box_secret": life.box.secret,
            "nonce": ports.entropy.random_bytes(32),
            "token": "",
            "key_set": ours.key_set,
            "certificate": sign_struct(Kind.CERTIFICATE, ours.online, certificate),
            "challenge": joined.challenge,
            "active": active,
        }
    )
