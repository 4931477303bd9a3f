"""What a tap is given, and the folder that it records into."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Self

import msgspec

from broker.ports import Files, write_atomic
from coordinator.config import LOCK, ConfigError
from schemas.errors import WireError
from schemas.ids import FEDERATION_BYTES, FederationId, federation_id, key_id
from schemas.keys import KeySet, open_key_set

MARK: Final = "tap.json"
"""In a tap's folder: whose messages these are, and by which keys they are signed. It holds no secret."""
ONLY_A_TAP: Final = (
    "is a tap's recording: sealed messages, with neither the coordinator's keys nor its decisions; for this, "
    "name the coordinator's state directory, or a copy of it with its keys/ (a tap's takes `journal ls`, "
    "`show` and `verify`)"
)


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """What a tap knows of its federation: its id in hex, the coordinator's public keys (``key_set`` is signed
    by ``root``; both may be empty) and those that devices sign with, as far as they were told."""

    federation: str
    root: bytes = b""
    key_set: bytes = b""
    devices: dict[str, list[bytes]] = {}

    @property
    def id(self) -> FederationId:
        return FederationId(bytes.fromhex(self.federation))

    def keys(self) -> KeySet | None:
        """The coordinator's keys, if they were told. Raises `WireError` if they are not this federation's."""
        return open_key_set(self.key_set, self.root, self.id) if self.key_set else None

    def signers(self) -> dict[bytes, tuple[str, bytes]]:
        """By id, the device and its key."""
        return {key_id(key): (name, key) for name, keys in self.devices.items() for key in keys}

    def with_keys_of(self, other: Self) -> Self:
        """Both together, of one federation."""
        names = sorted(self.devices.keys() | other.devices.keys())
        devices = {
            name: list(dict.fromkeys([*self.devices.get(name, []), *other.devices.get(name, [])]))
            for name in names
        }
        newer = other if other.key_set else self
        return msgspec.structs.replace(self, root=newer.root, key_set=newer.key_set, devices=devices)


class Credentials(Known, frozen=True, kw_only=True):
    """The file that ``broker tap`` makes. With ``password``, ``user`` may read the federation's topics, and
    do nothing else, at the broker behind ``urls``, whose certificate ``ca`` signed (PEM; empty: a system's).
    """

    user: str
    password: str
    urls: list[str]
    ca: str = ""

    def __repr__(self) -> str:
        return f"Credentials(user={self.user!r}, federation={self.federation})"


def encode_credentials(credentials: Credentials) -> str:
    """As the file has it."""
    return msgspec.json.format(msgspec.json.encode(credentials), indent=1).decode()


def read_credentials(files: Files, path: Path) -> Credentials:
    """Raises `ConfigError` for a file that is not as it was printed, OSError."""
    try:
        found = msgspec.json.decode(files.read(path), type=Credentials)
        if federation_id(found.root) != check_federation(found.federation):
            raise ConfigError(f"{path}: its root key is another federation's; make it anew")
        found.keys()
    except (msgspec.DecodeError, WireError) as error:
        raise ConfigError(
            f"{path}: not a tap's credentials ({error}); `fedbus-coordinator broker tap NAME` makes them"
        ) from error
    return found


def check_federation(text: str) -> FederationId:
    """An id as people write it. Raises `ConfigError`."""
    try:
        found = bytes.fromhex(text)
    except ValueError:
        found = b""
    if len(found) != FEDERATION_BYTES:
        raise ConfigError(
            f"federation {text!r}: write its 32 digits, as `fedbus-coordinator status` shows them"
        )
    return FederationId(found)


def is_tap(files: Files, directory: Path) -> bool:
    """Whether a tap recorded there."""
    return files.exists(directory / MARK)


def read_known(files: Files, directory: Path) -> Known:
    """Raises `ConfigError` if the mark is damaged."""
    path = directory / MARK
    try:
        found = msgspec.json.decode(files.read(path), type=Known)
        check_federation(found.federation)
        found.keys()
    except (msgspec.DecodeError, ConfigError, WireError) as error:
        raise ConfigError(f"{path}: damaged ({error}); restore it from a backup") from error
    return found


def check_place(files: Files, directory: Path, federation: str) -> None:
    """Whether a tap may record there: nothing else is. Raises `ConfigError`."""
    if is_tap(files, directory):
        theirs = read_known(files, directory).federation
        if theirs != federation:
            raise ConfigError(
                f"{directory}: holds a recording of federation {theirs}, not of {federation}; "
                "name another folder"
            )
        return
    others = set(files.names(directory)) - {LOCK, f"{MARK}.new", "lost+found"}
    if others:
        raise ConfigError(
            f"{directory}: holds something else ({', '.join(sorted(others)[:3])}); name a new or empty "
            "folder, or one that a tap recorded into"
        )


def claim(files: Files, directory: Path, known: Known) -> None:
    """Write down whose recording this is, with all keys that were ever told. The caller holds the lock."""
    before = read_known(files, directory) if is_tap(files, directory) else None
    plain = Known(federation=known.federation, root=known.root, key_set=known.key_set, devices=known.devices)
    after = before.with_keys_of(plain) if before else plain
    if after != before:
        data = msgspec.json.format(msgspec.json.encode(after), indent=1)
        write_atomic(files, directory / MARK, data + b"\n")
