"""The federation's users at its broker: one list, from which each kind of broker is told.

``broker/roster.json`` in the state directory. It holds passwords as the brokers want them, hashed, so that a
broker that was set up anew, or another one, learns them without inviting devices again. Passwords that fedbus
makes are random with 192 bits, so quick hashes give nothing away.
"""

from __future__ import annotations

import hmac
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import pbkdf2_hmac, sha256
from pathlib import Path
from typing import Final

import msgspec

from broker.ports import LockHeld, Ports, write_atomic
from schemas import topics
from schemas.ids import COORDINATOR, DeviceId, FederationId, broker_user, checked_name

FOLDER: Final = "broker"
FILE: Final = "roster.json"
LOCK: Final = "roster.lock"
PBKDF2_ROUNDS: Final = 101  # mosquitto_passwd's own default
MOSQUITTO_SALT_BYTES: Final = 12
RABBITMQ_SALT_BYTES: Final = 4
TAP: Final = "tap@"
"""Before the name of a tap, which reads all and writes nothing; no device can be called so."""


class AccessError(Exception):
    """The broker's users could not be changed. The text names the thing, the cause and the remedy."""


class Login(msgspec.Struct, frozen=True):
    """A password as brokers store it: Mosquitto's ``$7$`` (PBKDF2-SHA512), RabbitMQ's salted SHA-256."""

    mosquitto: str
    rabbitmq: str


@dataclass(frozen=True, slots=True)
class User:
    """A user at the broker, and what it may do there (topic filters)."""

    name: str
    device: DeviceId
    login: Login
    publish: tuple[str, ...]
    subscribe: tuple[str, ...]


class Roster:
    """The list of one federation. All calls block. Whoever changes something holds `locked`."""

    def __init__(self, ports: Ports, directory: Path) -> None:
        self._ports = ports
        self._path = directory / FOLDER / FILE

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the list, so that the coordinator and a command don't undo each other's changes.

        Raises `AccessError` while another process holds it.
        """
        self._ports.files.make_dir(self._path.parent)
        try:
            with self._ports.lock.hold(self._path.with_name(LOCK)):
                yield
        except LockHeld as error:
            raise AccessError(f"the broker's users are being changed by another process: {error}") from error

    def read(self) -> dict[DeviceId, Login]:
        """All devices and the coordinator. Raises `AccessError` for a damaged file."""
        if not self._ports.files.exists(self._path):
            return {}
        try:
            return msgspec.json.decode(self._ports.files.read(self._path), type=dict[DeviceId, Login])
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise AccessError(f"{self._path}: damaged ({error}); restore it from a backup") from error

    def put(self, device: DeviceId, password: str) -> None:
        """Add or replace a user; nothing changes if it has this password already."""
        known = self.read()
        if device not in known or not matches(known[device], password):
            self._write(known | {device: hashed(password, self._ports)})

    def remove(self, device: DeviceId) -> None:
        """No error if it is not there."""
        self._write({name: login for name, login in self.read().items() if name != device})

    def _write(self, logins: Mapping[DeviceId, Login]) -> None:
        data = msgspec.json.format(msgspec.json.encode(logins, order="sorted"), indent=1)
        write_atomic(self._ports.files, self._path, data + b"\n")


def hashed(password: str, ports: Ports) -> Login:
    """A password for storing."""
    return Login(
        mosquitto=_mosquitto(password, ports.entropy.random_bytes(MOSQUITTO_SALT_BYTES)),
        rabbitmq=_rabbitmq(password, ports.entropy.random_bytes(RABBITMQ_SALT_BYTES)),
    )


def matches(login: Login, password: str) -> bool:
    """Whether this is the password."""
    salt = b64decode(login.rabbitmq)[:RABBITMQ_SALT_BYTES]
    return hmac.compare_digest(_rabbitmq(password, salt), login.rabbitmq)


def _mosquitto(password: str, salt: bytes) -> str:
    digest = pbkdf2_hmac("sha512", password.encode(), salt, PBKDF2_ROUNDS)
    return f"$7${PBKDF2_ROUNDS}${b64encode(salt).decode()}${b64encode(digest).decode()}"


def _rabbitmq(password: str, salt: bytes) -> str:
    return b64encode(salt + sha256(salt + password.encode()).digest()).decode()


def tap_id(name: str) -> DeviceId:
    """A tap's place in the roster. ValueError for what can be no name."""
    return DeviceId(TAP + checked_name(name, "tap"))


def is_tap(device: DeviceId) -> bool:
    """Whether it stands for a tap."""
    return device.startswith(TAP)


def user(federation: FederationId, device: DeviceId, login: Login, username: str = "") -> User:
    """A device (the coordinator, a tap) as the broker knows it; ``username`` if it has another name there."""
    name = username or broker_user(federation, device)
    if is_tap(device):
        return User(name, device, login, (), (topics.all_up(federation), topics.all_down(federation)))
    if device == COORDINATOR:
        probe = topics.probe(federation)
        return User(
            name, device, login, (topics.all_down(federation), probe), (topics.all_up(federation), probe)
        )
    return User(name, device, login, (topics.up(federation, device),), (topics.down(federation, device),))
