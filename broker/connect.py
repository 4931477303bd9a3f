"""From a URL to a bus. Transports are imported only when their URL asks for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urlsplit

from broker.bus import Bus, BusError, Credentials
from broker.ports import Ports

if TYPE_CHECKING:
    from broker.memory import MemoryBroker

MQTT_PORT_DEFAULT = 1883
_KNOWN = "mqtt://host:port, embedded:PORT, memory:NAME"


def connect(
    url: str,
    credentials: Credentials,
    subscriptions: Iterable[str],
    *,
    ports: Ports,
    memory: Mapping[str, MemoryBroker] | None = None,
) -> Bus:
    """A bus that is not entered yet; nothing is connected before ``async with``.

    ``subscriptions`` are MQTT topic filters. A user and password in the URL replace those of
    ``credentials``. ``memory`` names the in-process brokers that ``memory:NAME`` may mean.
    Raises `BusError` for a URL that no transport understands; the message never shows a password.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise BusError(f"broker URL: {error}; expected one of: {_KNOWN}") from error
    match parts.scheme:
        case "mqtt":
            if not parts.hostname:
                raise BusError("broker URL mqtt: names no host; expected mqtt://host:port")
            credentials = _with_login(credentials, parts)
            return _mqtt(parts.hostname, port or MQTT_PORT_DEFAULT, credentials, subscriptions, ports)
        case "embedded":
            return _mqtt("127.0.0.1", _embedded_port(parts.path), credentials, subscriptions, ports)
        case "memory":
            return _memory(parts.path, credentials, subscriptions, memory or {})
        case scheme:
            raise BusError(f"broker URL: scheme {scheme!r} is not supported; expected one of: {_KNOWN}")


def _mqtt(host: str, port: int, credentials: Credentials, subscriptions: Iterable[str], ports: Ports) -> Bus:
    from broker.mqtt import MqttBus

    return MqttBus(host, port, credentials, subscriptions, clock=ports.clock, entropy=ports.entropy)


def _memory(
    name: str, credentials: Credentials, subscriptions: Iterable[str], brokers: Mapping[str, MemoryBroker]
) -> Bus:
    from broker.memory import MemoryBus

    if name not in brokers:
        raise BusError(
            f"broker URL memory:{name}: there is no such broker in this process; memory brokers serve "
            "tests and simulation, use embedded:PORT for a broker on this machine"
        )
    return MemoryBus(brokers[name], credentials, subscriptions)


def _embedded_port(text: str) -> int:
    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 65536:
        raise BusError(f"broker URL embedded:{text}: not a port; expected embedded:PORT with 1 to 65535")
    return int(text)


def _with_login(credentials: Credentials, parts: SplitResult) -> Credentials:
    if parts.username is None:
        return credentials
    password = None if parts.password is None else unquote(parts.password)
    return replace(credentials, username=unquote(parts.username), password=password)
