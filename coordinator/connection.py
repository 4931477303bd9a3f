"""The coordinator's way to its broker: which user, which password, which certificates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from broker.bus import Bus, Credentials, Tls
from broker.connect import connect
from broker.ports import Ports
from coordinator.config import PASSWORD, Config, ConfigError
from coordinator.keystore import Identity
from schemas.ids import COORDINATOR, broker_user


def bus_for(
    directory: Path,
    config: Config,
    identity: Identity,
    ports: Ports,
    subscriptions: Iterable[str],
    *,
    session: str = "",
) -> Bus:
    """The coordinator's bus, not entered. ``session`` names another session than its own (for probes).

    Raises `ConfigError` for files that cannot be read, `broker.bus.BusError` for a URL that cannot be used.
    """
    own = credentials(directory, config, identity, ports)
    if session:
        own = replace(own, client_id=session)
    return connect(config.broker, own, subscriptions, ports=ports)


def credentials(directory: Path, config: Config, identity: Identity, ports: Ports) -> Credentials:
    """Who the coordinator is to its broker. Raises `ConfigError`."""
    path = directory / PASSWORD
    password = ports.files.read(path).decode().strip() if ports.files.exists(path) else ""
    session = broker_user(identity.federation, COORDINATOR)
    return Credentials(
        client_id=session,
        username=(config.username or session) if password or config.certificate else None,
        password=password or None,
        tls=_tls(directory, config, ports),
    )


def _tls(directory: Path, config: Config, ports: Ports) -> Tls:
    ca = ""
    if config.ca:
        try:
            ca = ports.files.read(directory / config.ca).decode()
        except (OSError, UnicodeDecodeError) as error:
            cause = getattr(error, "strerror", "") or "not a PEM file"
            raise ConfigError(f"setting ca: {directory / config.ca}: {cause}; name the PEM file") from error
    return Tls(
        ca=ca,
        certificate=directory / config.certificate if config.certificate else None,
        key=directory / config.key if config.key else None,
    )
