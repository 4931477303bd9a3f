"""From a URL to a bus. Transports are imported only when their URL asks for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, unquote, urlsplit

from broker.bus import Bus, BusError, Credentials
from broker.ports import Ports

if TYPE_CHECKING:
    from broker.memory import MemoryBroker

PORT_DEFAULTS = {"mqtt": 1883, "mqtts": 8883, "amqp": 5672, "amqps": 5671}
LOOPBACK = ("127.0.0.1", "localhost")
LOCAL_RETRY_MAX_S = 0.8
"""A broker on this machine is not spared by waiting longer, and comes back soon."""
_KNOWN = "mqtt(s)://host:port, amqp(s)://host:port/vhost, embedded:PORT, memory:NAME"


def connect(
    url: str,
    credentials: Credentials,
    subscriptions: Iterable[str],
    *,
    ports: Ports,
    memory: Mapping[str, MemoryBroker] | None = None,
    return_max_s: float = 0.0,
) -> Bus:
    """A bus that is not entered yet; nothing is connected before ``async with``.

    ``mqtts:`` and ``amqps:`` are TLS with ``credentials.tls``. An AMQP URL may name a virtual host as its
    path, `/` in it as `%2F`. ``subscriptions`` are MQTT topic filters. A user and password in the URL replace
    those of ``credentials``. ``memory`` names the in-process brokers that ``memory:NAME`` may mean. A fleet's
    devices give ``return_max_s`` (`broker.pacing`); it is for MQTT on other machines.
    Raises `BusError` for a URL that no transport understands, certificate files that cannot be used, and a
    transport that is not installed; the message never shows a password.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise BusError(f"broker URL: {error}; expected one of: {_KNOWN}") from error
    match parts.scheme:
        case "mqtt" | "mqtts" | "amqp" | "amqps":
            host, port = _host(parts), port or PORT_DEFAULTS[parts.scheme]
            own = _with_login(credentials, parts)
            if parts.scheme.startswith("amqp"):
                return _amqp(host, port, parts, own, subscriptions, ports)
            return _mqtt(host, port, parts, own, subscriptions, ports, return_max_s)
        case "embedded":
            return _embedded(parts.path, credentials, subscriptions, ports)
        case "memory":
            return _memory(parts.path, credentials, subscriptions, memory or {})
        case scheme:
            raise BusError(f"broker URL: scheme {scheme!r} is not supported; expected one of: {_KNOWN}")


def check_device_url(url: str) -> None:
    """Devices speak MQTT: from another machine than the broker's none may speak AMQP.

    Over AMQP, RabbitMQ asks its topic permissions for a message's own key only, and its headers ``CC`` and
    ``BCC`` lead past them into every queue. So AMQP stays closed to devices, at both ends.
    Raises `BusError`.
    """
    with suppress(ValueError):  # which `connect` tells
        parts = urlsplit(url)
        if parts.scheme.startswith("amqp") and parts.hostname not in LOOPBACK:
            raise BusError(
                f"broker URL {parts.scheme}://{parts.hostname or ''}: not for a device: over AMQP RabbitMQ's "
                "topic permissions can be passed; name its MQTT plugin: mqtt(s)://host:port"
            )


def _mqtt(
    host: str,
    port: int,
    parts: SplitResult,
    credentials: Credentials,
    subscriptions: Iterable[str],
    ports: Ports,
    return_max_s: float,
) -> Bus:
    from broker.mqtt import mqtt_bus

    secure = parts.scheme == "mqtts"
    return mqtt_bus(
        host,
        port,
        credentials,
        subscriptions,
        clock=ports.clock,
        entropy=ports.entropy,
        secure=secure,
        return_max_s=return_max_s,
    )


def _amqp(
    host: str,
    port: int,
    parts: SplitResult,
    credentials: Credentials,
    subscriptions: Iterable[str],
    ports: Ports,
) -> Bus:
    try:
        from broker.amqp import amqp_bus
    except ModuleNotFoundError as error:
        raise BusError(
            f"broker URL {parts.scheme}: aiormq is not installed; "
            "`pip install 'fedbus[coordinator]'` brings it"
        ) from error
    return amqp_bus(
        host,
        port,
        credentials,
        subscriptions,
        clock=ports.clock,
        entropy=ports.entropy,
        vhost=unquote(parts.path[1:]) or "/",
        secure=parts.scheme == "amqps",
    )


def _embedded(text: str, credentials: Credentials, subscriptions: Iterable[str], ports: Ports) -> Bus:
    from broker.mqtt import mqtt_bus

    if not text.isascii() or not text.isdigit() or not 0 < int(text) < 65536:
        raise BusError(f"broker URL embedded:{text}: not a port; expected embedded:PORT with 1 to 65535")
    return mqtt_bus(
        "127.0.0.1",
        int(text),
        credentials,
        subscriptions,
        clock=ports.clock,
        entropy=ports.entropy,
        retry_max_s=LOCAL_RETRY_MAX_S,
    )


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


def _host(parts: SplitResult) -> str:
    if not parts.hostname:
        raise BusError(f"broker URL {parts.scheme}: names no host; expected {parts.scheme}://host:port")
    try:
        parts.hostname.encode("idna")
    except UnicodeError as error:
        raise BusError(
            f"broker URL: {parts.hostname!r} is no host name; expected one of: {_KNOWN}"
        ) from error
    return parts.hostname


def _with_login(credentials: Credentials, parts: SplitResult) -> Credentials:
    if parts.username is None:
        return credentials
    password = None if parts.password is None else unquote(parts.password)
    return replace(credentials, username=unquote(parts.username), password=password)
