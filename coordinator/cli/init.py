"""``fedbus-coordinator init``: from what the operator typed to a federation."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

from broker.connect import PORT_DEFAULTS
from broker.ports import Entropy
from broker.system import system_ports
from coordinator.cli.output import Failed, UsageFault
from coordinator.config import Config
from coordinator.setup import init

URL = re.compile(r"[!#-\[\]-~]{1,400}")  # printable, without what would end a TOML string
FORMS = "mqtt(s)://host:port, amqp(s)://host:port/vhost, embedded:PORT"
NO_FILES: Mapping[str, Path | None] = {}
HOST = "127.0.0.1"
# Where no system hands out ports to outgoing connections, which could take ours while the broker is down.
PORTS = range(20_000, 32_000)
PORT_TRIES_MAX = 100


def begin(
    directory: Path,
    broker: str,
    device_urls: list[str],
    password_file: Path | None,
    tls: Mapping[str, Path | None] = NO_FILES,
) -> dict[str, Any]:
    """Make a federation in ``directory``; what was made, for printing. ``tls`` holds the files that the
    settings ca, certificate and key shall name.

    A user and password in ``broker`` go to the settings and the password file, not into tokens.
    Raises `UsageFault`, `Failed`, `coordinator.config.ConfigError`, OSError.
    """
    ports = system_ports()
    for url in (broker, *device_urls):
        if not URL.fullmatch(url):
            raise UsageFault(f"broker {url!r}: a URL has no spaces, quotes or backslashes")
    for url in device_urls:
        _split(url)
    files = {name: _readable(name, path) for name, path in tls.items() if path is not None}
    password = password_in(password_file)
    if broker.startswith("embedded:"):
        config = Config(broker=with_port(broker, ports.entropy), device_urls=device_urls)
    else:
        parts = _split(broker)
        bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
        username = unquote(parts.username or "")
        config = Config(broker=bare, device_urls=device_urls, username=username, **files)
        password = password or unquote(parts.password or "")
    identity = init(ports, directory, config, password)
    return {
        "dir": str(directory),
        "federation": identity.federation.hex(),
        "broker": config.broker,
        "device_urls": config.urls_for_devices(),
        "username": config.username,
    }


def _split(broker: str) -> SplitResult:
    try:
        parts = urlsplit(broker)
        known = parts.scheme in PORT_DEFAULTS and parts.hostname and parts.port != 0
    except ValueError as error:
        raise UsageFault(f"broker URL: {error}; write one of {FORMS}") from error
    if not known:
        raise UsageFault(f"broker URL: not one of {FORMS}")
    return parts


def _readable(name: str, path: Path) -> str:
    try:
        path.read_bytes()
    except OSError as error:
        raise UsageFault(f"--{name} {path}: {error.strerror}; name the PEM file") from error
    return str(path.absolute())


def password_in(file: Path | None) -> str:
    """The password in a file; empty without one. Raises `UsageFault`."""
    if file is None:
        return ""
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageFault(f"password file {file}: {getattr(error, 'strerror', '') or error}") from error


def with_port(broker: str, entropy: Entropy) -> str:
    """An embedded broker with a port, for 0 a free one. Raises `UsageFault`, `Failed`."""
    text = broker.removeprefix("embedded:") or "0"
    if not text.isascii() or not text.isdigit() or int(text) > 65_535:
        raise UsageFault(f"broker {broker!r}: write embedded:PORT, with a port from 1 to 65535, or 0 for any")
    return f"embedded:{int(text) or _free_port(entropy)}"


def _free_port(entropy: Entropy) -> int:
    """A port that nobody listens on now; recorded, so that the tokens name it."""
    for _ in range(PORT_TRIES_MAX):
        port = PORTS[int.from_bytes(entropy.random_bytes(4), "little") % len(PORTS)]
        try:
            socket.create_server((HOST, port)).close()
        except OSError:
            continue
        return port
    raise Failed(f"no free port found on {HOST}; name one with --broker embedded:PORT")
