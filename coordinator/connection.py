"""The coordinator's way to its broker: which user, which password, which certificates."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Final

from broker.bus import Bus, Credentials, Tls
from broker.connect import connect
from broker.ports import Files, Ports
from coordinator.config import PASSWORD, Config, ConfigError
from coordinator.keystore import Identity
from schemas.ids import COORDINATOR, broker_user

CREDENTIALS: Final = "CREDENTIALS_DIRECTORY"
"""The environment variable by which systemd names the folder of a service's secrets."""
PROBES: Final = ("", "-away")
"""The sessions that `probe` may name."""


def bus_for(
    directory: Path, config: Config, identity: Identity, ports: Ports, subscriptions: Iterable[str]
) -> Bus:
    """The coordinator's bus, not entered.

    Raises `ConfigError` for files that cannot be read, `broker.bus.BusError` for a URL that cannot be used.
    """
    own = credentials(directory, config, identity, ports)
    return connect(config.broker, own, subscriptions, ports=ports)


def credentials(directory: Path, config: Config, identity: Identity, ports: Ports) -> Credentials:
    """Who the coordinator is to its broker. Raises `ConfigError`."""
    password = _password(directory, ports.files)
    session = broker_user(identity.federation, COORDINATOR)
    tls = Tls(
        ca=authority(config, ports.files),
        certificate=Path(config.certificate) if config.certificate else None,
        key=Path(config.key) if config.key else None,
    )
    return Credentials(
        client_id=session,
        username=(config.username or session) if password or config.certificate else None,
        password=password or None,
        tls=tls,
    )


def probe(own: Credentials, config: Config, name: str = "", *, durable: bool = False) -> Credentials:
    """A session beside the coordinator's own, to try things out at the broker; ``name`` is one of `PROBES`.

    No device can have its name. Where Mosquitto's files are ours a session is named after its user, so there
    each is a user of its own, who shows a certificate of its own if the coordinator does.
    """
    session = probe_session(own.client_id, name)
    if not config.broker_files:
        return replace(own, client_id=session, durable=durable)
    tls = own.tls
    if tls.certificate is not None:
        certificate = probe_certificate(tls.certificate, name)
        tls = replace(tls, certificate=certificate, key=certificate.with_suffix(".key"))
    return replace(own, client_id=session, username=session, durable=durable, tls=tls)


def probe_session(coordinator: str, name: str) -> str:
    """The session, and at Mosquitto the user, of a probe."""
    return f"{coordinator}/probe{name}"


def probe_certificate(own: Path, name: str) -> Path:
    """Where a probe's certificate lies beside the coordinator's own."""
    return own.with_name(f"{own.stem}-probe{name}{own.suffix}")


def authority(config: Config, files: Files) -> str:
    """The PEM text of ``ca``; empty if none is set. Raises `ConfigError`."""
    if not config.ca:
        return ""
    try:
        return files.read(Path(config.ca)).decode()
    except (OSError, UnicodeDecodeError) as error:
        cause = getattr(error, "strerror", "") or "not a PEM file"
        raise ConfigError(f"setting ca: {config.ca}: {cause}; name the PEM file") from error


def _password(directory: Path, files: Files) -> str:
    """From systemd's credentials, or from the state directory; empty if there is none."""
    folders = [Path(os.environ[CREDENTIALS])] if os.environ.get(CREDENTIALS) else []
    for path in (*(folder / PASSWORD.name for folder in folders), directory / PASSWORD):
        if files.exists(path):
            return files.read(path).decode().strip()
    return ""
