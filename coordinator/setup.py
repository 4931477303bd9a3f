"""A new federation's state directory: keys, settings, broker user. Nothing is half-made: a directory
counts from the moment its settings file is there, which is written last."""

from __future__ import annotations

from pathlib import Path

from broker.embedded import EmbeddedBroker
from broker.ports import Ports, write_atomic
from coordinator.broker_admin.access import EmbeddedAccess
from coordinator.broker_admin.roster import FOLDER
from coordinator.config import FILE, PASSWORD, PASSWORD_BYTES, Config, ConfigError, check, config_text
from coordinator.keystore import Identity, make_identity


def init(ports: Ports, directory: Path, config: Config, password: str = "") -> Identity:
    """Make a federation in ``directory``. ``password`` is the coordinator's at a broker that exists; for the
    embedded broker one is made. Raises `ConfigError` if there is one already, and for settings
    that cannot be used."""
    if ports.files.exists(directory / FILE):
        raise ConfigError(f"{directory} holds a federation already; choose another directory")
    check(config)
    ports.files.make_dir(directory)
    identity = make_identity(ports.files, directory, ports.entropy)
    if config.broker.startswith("embedded:"):
        password = ports.entropy.random_bytes(PASSWORD_BYTES).hex()
        ports.files.make_dir(directory / FOLDER)
        broker = embedded_broker(ports, directory, config)
        EmbeddedAccess(ports, broker, identity.federation).admit_coordinator(password)
    write_atomic(ports.files, directory / PASSWORD, password.encode() + b"\n")
    write_atomic(ports.files, directory / FILE, config_text(config).encode(), mode=0o644)
    return identity


def embedded_broker(ports: Ports, directory: Path, config: Config) -> EmbeddedBroker:
    """The embedded broker that the settings name."""
    text = config.broker.partition(":")[2]
    if not text.isascii() or not text.isdigit() or int(text) > 65_535:
        raise ConfigError(f"broker {config.broker!r}: write embedded:PORT, with a port from 1 to 65535")
    return EmbeddedBroker(ports, directory / FOLDER, int(text))
