"""The coordinator's settings: ``coordinator.toml`` in its state directory, over it the environment."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from broker.ports import Files

FILE = "coordinator.toml"
ENVIRONMENT = "FEDBUS_COORDINATOR_"
PASSWORD = Path("keys") / "broker.password"


class ConfigError(Exception):
    """A setting that cannot be used. The text names file, setting, cause and remedy."""


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``broker`` is where the coordinator connects; ``device_urls`` what tokens tell devices (the same, if
    empty). ``username`` is its user there (`schemas.ids.broker_user`, if empty), whose password is the file
    ``keys/broker.password``. ``ca`` is a PEM file with the authority that signed the broker's certificate (the
    system's, if empty); ``certificate`` and ``key`` are the coordinator's own, for a broker that wants one."""

    broker: str
    device_urls: list[str] = []
    username: str = ""
    ca: str = ""
    certificate: str = ""
    key: str = ""

    def urls_for_devices(self) -> list[str]:
        return self.device_urls or [self.broker]


def load_config(files: Files, directory: Path, environment: Mapping[str, str]) -> Config:
    """Raises `ConfigError`."""
    path = directory / FILE
    if not files.exists(path):
        raise ConfigError(
            f"{directory} is no coordinator's state directory ({FILE} is missing): "
            f"make one with `fedbus-coordinator init --dir {directory}`"
        )
    try:
        values = tomllib.loads(files.read(path).decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}; mend the line that it names") from error
    for name in ("broker", "username", "ca", "certificate", "key"):
        if ENVIRONMENT + name.upper() in environment:
            values[name] = environment[ENVIRONMENT + name.upper()]
    try:
        return msgspec.convert(values, Config)
    except msgspec.ValidationError as error:
        known = ", ".join(Config.__struct_fields__)
        raise ConfigError(f"{path}: {error}; the settings are {known}") from error


def config_text(config: Config) -> str:
    """The file that `init` writes."""
    urls = ", ".join(f'"{url}"' for url in config.device_urls)
    return (
        "# Settings of this fedbus coordinator. Change them while it is stopped.\n\n"
        "# The broker: embedded:PORT (its own, on this machine) or mqtt://host:port.\n"
        f'broker = "{config.broker}"\n\n'
        "# What devices connect to, if it is not the same address.\n"
        f"device_urls = [{urls}]\n\n"
        "# The coordinator's user at the broker, if it has another name than fedbus gives it; its password is\n"
        "# the file keys/broker.password.\n"
        f'username = "{config.username}"\n\n'
        "# For mqtts: and amqps:, PEM files: the authority that signed the broker's certificate, if it is not one\n"
        "# of the system's, and the coordinator's own certificate and key, if the broker wants one.\n"
        f'ca = "{config.ca}"\ncertificate = "{config.certificate}"\nkey = "{config.key}"\n'
    )
