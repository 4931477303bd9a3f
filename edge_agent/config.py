"""The owner's settings: ``agent.toml`` in the state directory, each overridable by the environment.

Without the file nothing is allowed: a task is trained only once the owner named it in ``policy.tasks``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import msgspec

from broker.ports import Files, write_atomic
from schemas.jobs import ChunkBytes
from schemas.limits import CHUNK_BYTES_MAX
from schemas.work import Processor

FILE: Final = "agent.toml"
PREFIX: Final = "FEDBUS_"
KEPT: Final = {"ca": "broker-ca.crt", "certificate": "client.crt", "key": "client.key"}
"""Settings, and the files in the state directory that they name by default."""

Amount = Annotated[int, msgspec.Meta(ge=0)]
TaskName = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_.-]{1,64}\Z")]


class ConfigError(Exception):
    """The settings can't be used. The message names file or variable, key, and what is allowed."""


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the device's owner allows.

    ``train_s_max`` bounds one training; ``memory_bytes_max`` the worker's resident memory (0: no bound);
    ``cpu_share`` is the part of the time that training may compute. ``device`` is the processor that trains:
    "auto" is an accelerator if PyTorch finds one that the task can use, else the CPU.
    """

    tasks: Annotated[list[TaskName], msgspec.Meta(max_length=256)] = []
    power: Literal["mains", "battery"] = "mains"
    train_on_battery: bool = False
    train_s_max: Annotated[float, msgspec.Meta(gt=0, le=7 * 86_400)] = 3_600.0
    memory_bytes_max: Amount = 0
    threads: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 1
    cpu_share: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    device: Processor = "auto"


class Config(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All settings. ``broker`` replaces the URL of the token; ``data`` maps data sets to files;
    ``chunk_bytes`` bounds the chunks that updates are sent in, for slow links.

    ``ca``, ``certificate`` and ``key`` are PEM files for ``mqtts:`` and ``amqps:``: the authority that signed
    the broker's certificate, in place of the token's, and the device's own certificate with its key; by
    default those that `keep` put into the state directory.
    """

    broker: str = ""
    ca: str = ""
    certificate: str = ""
    key: str = ""
    worker_idle_s: Annotated[float, msgspec.Meta(ge=0, le=7 * 86_400)] = 60.0
    chunk_bytes: ChunkBytes = CHUNK_BYTES_MAX
    policy: Policy = Policy()
    data: dict[str, str] = {}


def load(files: Files, directory: Path, environ: Mapping[str, str]) -> Config:
    """The settings in ``directory``, those of ``environ`` first. Raises `ConfigError`."""
    path = directory / FILE
    document: dict[str, Any] = {}
    if files.exists(path):
        try:
            document = tomllib.loads(files.read(path).decode())
        except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(f"{path}: not TOML: {error}; correct that line") from error
        except OSError as error:
            raise ConfigError(f"{path}: can't be read: {error.strerror}; correct its permissions") from error
    _refuse_unknown(document, Config, f"{path}: ")
    for section in ("policy", "data"):
        if not isinstance(document.get(section, {}), dict):
            raise ConfigError(f"{path}: {section} must be a table: write [{section}]")
    _refuse_unknown(document.get("policy", {}), Policy, f"{path}: policy.")
    _override(document, environ)
    try:
        config = msgspec.convert(document, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(
            f"{path} (or a {PREFIX} variable): {error}; see docs for the allowed values"
        ) from error
    return _absolute(config, directory, files)


def keep(files: Files, directory: Path, given: Mapping[str, bytes]) -> None:
    """Keep files (by the names in `KEPT`, those that are not empty) in the state directory."""
    for name, data in given.items():
        if data:
            write_atomic(files, directory / KEPT[name], data)


def _refuse_unknown(table: Mapping[str, Any], kind: type[msgspec.Struct], where: str) -> None:
    known = [field.name for field in msgspec.structs.fields(kind)]
    for key in table:
        if key not in known:
            raise ConfigError(f"{where}{key} is not a setting; known are {', '.join(known)}")


def _override(document: dict[str, Any], environ: Mapping[str, str]) -> None:
    """Put what the environment says into ``document``, in the types that the settings have."""
    for kind, prefix in ((Config, PREFIX), (Policy, f"{PREFIX}POLICY_")):
        for field in msgspec.structs.fields(kind):
            name = prefix + field.name.upper()
            if field.name in {"policy", "data"} or name not in environ:
                continue
            text = environ[name]
            plain: object = [part.strip() for part in text.split(",") if part.strip()]
            try:
                value = msgspec.convert(plain if field.name == "tasks" else text, field.type, strict=False)
            except msgspec.ValidationError as error:
                raise ConfigError(f"environment variable {name}={text!r}: {error}") from error
            target = document.setdefault("policy", {}) if kind is Policy else document
            target[field.name] = value


def _absolute(config: Config, directory: Path, files: Files) -> Config:
    """Paths are relative to the state directory, not to wherever the agent was started."""
    data = {name: str(directory / Path(path).expanduser()) for name, path in config.data.items()}
    pem = {}
    for name, kept in KEPT.items():
        if path := getattr(config, name):
            pem[name] = str(directory / Path(path).expanduser())
        elif files.exists(directory / kept):
            pem[name] = str(directory / kept)
    return msgspec.structs.replace(config, data=data, **pem)
