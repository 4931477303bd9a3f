"""The coordinator's settings: ``coordinator.toml`` in its state directory, over it the environment."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from broker.bus import BusError
from broker.connect import check_device_url
from broker.ports import Files, write_atomic

FILE = "coordinator.toml"
LOCK = "lock"  # held by the coordinator that serves
ENVIRONMENT = "FEDBUS_COORDINATOR_"
PASSWORD = Path("keys") / "broker.password"
PASSWORD_BYTES = 24  # of those that are made here
MANAGEMENT_PASSWORD = Path("keys") / "management.password"
PATHS = ("ca", "certificate", "key", "broker_files", "broker_pid_file")


class ConfigError(Exception):
    """A setting that cannot be used. The text names file, setting, cause and remedy."""


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """``broker`` is where the coordinator connects; ``device_urls`` what tokens say (empty: the same).

    ``username`` is its user there (`schemas.ids.broker_user`, if empty), whose password is the file
    ``keys/broker.password``. ``ca`` is a PEM file with the authority that signed the broker's certificate
    (empty: the system's); ``certificate`` and ``key`` are the coordinator's own, for a broker that wants one.

    Of the devices that are invited or revoked the broker learns in one of two ways, if it is set.
    ``broker_files`` is the folder of Mosquitto's password and ACL files, and ``broker_pid_file`` names the
    process to tell when they changed. ``management`` is the URL, with a user, of RabbitMQ's management API,
    whose password is the file ``keys/management.password``, and ``vhost`` the virtual host there.
    """

    broker: str
    device_urls: list[str] = []
    username: str = ""
    ca: str = ""
    certificate: str = ""
    key: str = ""
    broker_files: str = ""
    broker_pid_file: str = ""
    management: str = ""
    vhost: str = "/"

    def urls_for_devices(self) -> list[str]:
        return self.device_urls or [self.broker]

    def on_rabbitmq(self) -> bool:
        """As far as the settings tell."""
        return bool(self.management) or any(
            url.startswith("amqp") for url in (self.broker, *self.urls_for_devices())
        )


def load_config(files: Files, directory: Path, environment: Mapping[str, str]) -> Config:
    """The settings; paths in them are relative to ``directory``. Raises `ConfigError`."""
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
    for name in Config.__struct_fields__:
        if name != "device_urls" and ENVIRONMENT + name.upper() in environment:
            values[name] = environment[ENVIRONMENT + name.upper()]
    try:
        config = msgspec.convert(values, Config)
    except msgspec.ValidationError as error:
        known = ", ".join(Config.__struct_fields__)
        raise ConfigError(f"{path}: {error}; the settings are {known}") from error
    if config.broker_files and config.management:
        raise ConfigError(f"{path}: broker_files is Mosquitto's and management RabbitMQ's; clear one of them")
    check(config)
    named = {name: getattr(config, name) for name in PATHS}
    absolute = {name: str((directory / value).absolute()) for name, value in named.items() if value}
    return msgspec.structs.replace(config, **absolute)


def check(config: Config) -> None:
    """Whether devices may be sent where the settings say. Raises `ConfigError`."""
    for url in config.urls_for_devices():
        try:
            check_device_url(url)
        except BusError as error:
            setting = "device_urls" if config.device_urls else "broker, without device_urls (--device-url)"
            raise ConfigError(f"{setting}: {error}") from error


TEXT = """\
# Settings of this fedbus coordinator. Change them while it is stopped.

# The broker: embedded:PORT (its own, on this machine), mqtt://host:port, mqtts://host:port,
# amqp://host:port/vhost or amqps://host:port/vhost.
broker = {broker}

# What devices connect to, if it is not the same address.
device_urls = {device_urls}

# The coordinator's user at the broker, if it has another name than fedbus gives it; its password is
# the file keys/broker.password.
username = {username}

# For mqtts: and amqps:, PEM files: the authority that signed the broker's certificate, if it is not
# one of the system's, and the coordinator's own certificate and key, if the broker wants one.
ca = {ca}
certificate = {certificate}
key = {key}

# `fedbus-coordinator broker mosquitto` sets the folder of its password and ACL files, and the file
# that holds its process id, if this coordinator may tell it to read them again.
broker_files = {broker_files}
broker_pid_file = {broker_pid_file}

# `fedbus-coordinator broker rabbitmq` sets its management API, http(s)://user@host:port, whose
# password is the file keys/management.password, and the virtual host.
management = {management}
vhost = {vhost}
"""


def config_text(config: Config) -> str:
    """The file that `init` writes."""
    return TEXT.format_map({name: _quoted(getattr(config, name)) for name in Config.__struct_fields__})


def change_settings(files: Files, directory: Path, **changed: str) -> None:
    """Write these settings into the file, and leave everything else in it as it is."""
    path = directory / FILE
    text = files.read(path).decode()
    for name, value in changed.items():
        line = f"{name} = {_quoted(value)}\n"
        found = re.search(rf"^{name}[ \t]*=.*\n?", text, re.MULTILINE)
        text = text[: found.start()] + line + text[found.end() :] if found else line + text
    write_atomic(files, path, text.encode(), mode=0o644)


def _quoted(value: str | list[str]) -> str:
    """As TOML writes it, whose strings and lists are those of JSON but for one character."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
