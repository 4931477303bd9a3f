"""Setting up the operator's broker for a federation: files, certificates, users, settings. All of it may be
done again, and changes nothing that is right already."""

from __future__ import annotations

import os
import pwd
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, urlsplit

import msgspec

from broker.ports import LockHeld, Ports, write_atomic
from coordinator.broker_admin.certificates import CertificateAuthority, Leaf
from coordinator.broker_admin.roster import FOLDER, TAP, Roster, tap_id
from coordinator.cli.output import UsageFault
from coordinator.config import (
    LOCK,
    PASSWORD,
    PASSWORD_BYTES,
    Config,
    ConfigError,
    change_settings,
    load_config,
)
from coordinator.connection import PROBES, probe_certificate, probe_session
from coordinator.keystore import Identity, load_identity
from schemas.ids import COORDINATOR, broker_user, device_id
from schemas.limits import MIB

SECURE: Final = ("mqtts", "amqps")
CLIENTS: Final = "certificates"
FOLDER_MODE: Final = 0o2750  # what is written into it belongs to the folder's group
PUBLIC_MODE: Final = 0o644
PACKET_BYTES_MAX: Final = 8 * MIB
"""What a broker that we set up takes in one piece; the rest is room above `MESSAGE_BYTES_MAX`."""
SHARED_MODE: Final = 0o640  # for the owner and the folder's group
OPTIONS: Final = {
    "out": "--out",
    "hosts": "--host",
    "clients": "--client-certificates",
    "listen": "--listen",
    "log_denied": "--log-denied",
}


class Wish(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the operator wants; all but ``tls``, which the URLs say again, holds for the next time, too.
    ``hosts`` are further names in the server's certificate; empty, ``out`` and ``listen`` leave the choice to
    fedbus."""

    tls: bool = False
    out: str = ""
    hosts: tuple[str, ...] = ()
    clients: bool = False
    listen: str = ""
    log_denied: bool = True


@dataclass(slots=True)
class Done:
    """What was done, for printing."""

    folder: Path
    certificates: list[Leaf] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    next: list[str] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """For ``--json``."""
        made = [
            {
                "file": str(leaf.certificate),
                "key": str(leaf.key),
                "names": list(leaf.names),
                "valid_until": until(leaf),
                "renewed": leaf.renewed,
            }
            for leaf in self.certificates
        ]
        told = {"folder": str(self.folder), "certificates": made, "notes": self.notes, "next": self.next}
        return told | self.more


def until(leaf: Leaf) -> str:
    """The day on which a certificate ends."""
    return datetime.fromtimestamp(leaf.ends_wall_s, UTC).strftime("%Y-%m-%d")


class Site:
    """A federation's directory, with a broker of the operator's. Raises `UsageFault` for an embedded one,
    `coordinator.config.ConfigError`, `coordinator.keystore.KeysMissing`."""

    def __init__(self, ports: Ports, directory: Path) -> None:
        self.ports = ports
        self.directory = directory.absolute()
        self.config: Config = load_config(ports.files, self.directory, {})
        self.identity: Identity = load_identity(ports.files, self.directory)
        self.roster = Roster(ports, self.directory)
        self.own_folder = self.directory / FOLDER
        self.authority = CertificateAuthority(ports, self.own_folder)
        self._changed = False
        if self.config.broker.startswith("embedded:"):
            raise UsageFault(
                f"{directory} has a broker of its own ({self.config.broker}); for yours, make another "
                f"federation: `fedbus-coordinator init --broker mqtt://host`"
            )
        owner = self.directory.stat().st_uid
        if owner != os.geteuid():
            who = _user_name(owner)
            raise UsageFault(f"{directory} belongs to {who}: run this as {who} (`sudo -u {who} …`)")

    @property
    def urls(self) -> list[SplitResult]:
        """Where coordinator and devices connect."""
        found = dict.fromkeys([self.config.broker, *self.config.urls_for_devices()])
        return [urlsplit(url) for url in found]

    @property
    def user(self) -> str:
        """The coordinator's session at the broker."""
        return broker_user(self.identity.federation, COORDINATOR)

    def wish(self, program: str, **asked: Any) -> Wish:
        """What was asked for, and where that is None, what was asked for before: a set-up that is done again
        takes nothing back. Raises `coordinator.config.ConfigError` for a damaged file."""
        given = {name: value for name, value in asked.items() if value is not None}
        return msgspec.structs.replace(
            self._remembered(program) or Wish(out=self.config.broker_files), **given
        )

    def remember(self, program: str, wish: Wish) -> list[str]:
        """Keep it for the next time; a note for every option that was another before."""
        before = self._remembered(program)
        own = wish.out == str(self.own_folder)  # which may be moved, with the directory
        kept = msgspec.structs.replace(wish, tls=False, out="" if own else wish.out)
        data = msgspec.json.format(msgspec.json.encode(kept), indent=1)
        write_atomic(self.ports.files, self._wish_path(program), data + b"\n")
        if before is None:
            return []
        pairs = [(option, getattr(before, name), getattr(wish, name)) for name, option in OPTIONS.items()]
        return [
            f"{option} is {_said(new)} now, and was {_said(old)}" for option, old, new in pairs if old != new
        ]

    def _remembered(self, program: str) -> Wish | None:
        path, files = self._wish_path(program), self.ports.files
        if not files.exists(path):
            return None
        try:
            found = msgspec.json.decode(files.read(path), type=Wish)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise ConfigError(f"{path}: {error}; restore it, or move it away and name all options") from error
        return msgspec.structs.replace(found, out=self.config.broker_files or found.out)

    def _wish_path(self, program: str) -> Path:
        return self.own_folder / f"{program}.json"

    def admit_coordinator(self) -> None:
        """Put the coordinator itself into the roster, with its password, or a new one."""
        path = self.directory / PASSWORD
        files = self.ports.files
        password = files.read(path).decode().strip() if files.exists(path) else ""
        if not password:
            password = self.ports.entropy.random_bytes(PASSWORD_BYTES).hex()
            write_atomic(files, path, password.encode() + b"\n")
        self.roster.put(COORDINATOR, password)

    def folder(self, wish: Wish, service_user: str) -> tuple[Path, list[str]]:
        """The folder for the broker's files, open to the group of its service where that can be done, and
        what the operator must know about it.
        """
        folder = Path(wish.out or self.own_folder)
        self.ports.files.make_dir(folder)
        with suppress(KeyError, PermissionError):
            group = pwd.getpwnam(service_user).pw_gid
            if closed_to(service_user, folder.parent) is None and folder.stat().st_gid != group:
                os.chown(folder, -1, group)
                folder.chmod(FOLDER_MODE)
        self._regroup(folder)
        closed = closed_to(service_user, folder)
        if closed is None:
            return folder, []
        better = f"/etc/{service_user}/fedbus"
        make = f"install -d -o {_user_name(os.geteuid())} -g {service_user} -m 2750 {better}"
        note = f"user {service_user}, as whom the broker runs, cannot enter {closed}; as root, make a folder "
        return folder, [f"{note}for both of you, `{make}`, and run this again with --out {better}"]

    def _regroup(self, folder: Path) -> None:
        """What was written before the folder had its group gets it, too."""
        kept = folder.stat()
        for path in folder.iterdir() if kept.st_mode & stat.S_ISGID else ():
            found = path.lstat()
            shared = stat.S_ISREG(found.st_mode) and stat.S_IMODE(found.st_mode) == SHARED_MODE
            if shared and found.st_gid != kept.st_gid:
                write_atomic(self.ports.files, path, self.ports.files.read(path), mode=SHARED_MODE)

    def server_certificate(self, wish: Wish, folder: Path) -> Leaf:
        """The broker's, for all names in the URLs and those that were asked for."""
        self.authority.ensure(f"fedbus {self.user.partition('@')[2]}")
        hosts = [url.hostname for url in self.urls if url.hostname]
        leaf = self.authority.server(folder, [*hosts, *wish.hosts])
        if folder != self.own_folder:
            copy = self.ports.files.read(self.authority.path)
            write_atomic(self.ports.files, folder / self.authority.path.name, copy, mode=PUBLIC_MODE)
        return leaf

    def client_certificates(self) -> list[Leaf]:
        """The coordinator's, and those of its probes."""
        own = self.own_folder / "coordinator.crt"
        users = {own: self.user}
        users |= {probe_certificate(own, name): probe_session(self.user, name) for name in PROBES}
        return [self.authority.client(path, name) for path, name in users.items()]

    def device_certificate(self, name: str) -> Leaf:
        """A device's own. Raises `UsageFault` where there is no authority."""
        if not self.ports.files.exists(self.authority.path):
            raise UsageFault(
                f"{self.authority.path} is missing: this federation has no authority of its own; "
                f"`fedbus-coordinator broker mosquitto --tls --client-certificates` makes one"
            )
        return self.authority.client(self.own_folder / CLIENTS / f"{name}.crt", self.user_of(name))

    def user_of(self, name: str) -> str:
        """A device's user at the broker, or a tap's. Raises `UsageFault` for what can be no such name."""
        try:
            if name.startswith(TAP):
                return broker_user(self.identity.federation, tap_id(name.removeprefix(TAP)))
            return broker_user(self.identity.federation, device_id(name))
        except ValueError as error:
            raise UsageFault(str(error)) from error

    def settings(self, **changed: str) -> None:
        """Change those that are not so already; paths inside the directory are written relative to it."""
        before = self.config
        prefix = f"{self.directory}/"
        relative = {name: value.removeprefix(prefix) for name, value in changed.items()}
        change_settings(self.ports.files, self.directory, **relative)
        self.config = load_config(self.ports.files, self.directory, {})
        self._changed |= self.config != before

    def restart(self) -> list[str]:
        """A note, if a coordinator serves that has not read the settings as they are now."""
        if self._changed:
            with suppress(LockHeld), self.ports.lock.hold(self.directory / LOCK):
                return []
            return ["the coordinator reads its settings when it starts: start it again"]
        return []

    def tls(self, wish: Wish) -> bool:
        """Whether there shall be TLS: by the URLs, with which the wish must agree. Raises `UsageFault`."""
        plain = [url.geturl() for url in self.urls if url.scheme not in SECURE]
        secure = len(plain) < len(self.urls)
        if (wish.tls or secure or wish.clients) and plain:
            raise UsageFault(
                f"{plain[0]} is without TLS: for TLS, write {plain[0].replace(':', 's:', 1)} in "
                f"{self.directory}/coordinator.toml (broker, device_urls)"
            )
        return secure


def closed_to(user: str, folder: Path) -> Path | None:
    """The first folder on the way to ``folder`` that ``user`` cannot enter; None if there is none, or no such
    user on this machine.
    """
    try:
        known = pwd.getpwnam(user)
    except KeyError:
        return None
    groups = os.getgrouplist(user, known.pw_gid)
    for part in reversed([folder, *folder.parents]):
        found = part.stat()
        bit = stat.S_IXOTH
        if found.st_uid == known.pw_uid:
            bit = stat.S_IXUSR
        elif found.st_gid in groups:
            bit = stat.S_IXGRP
        if not found.st_mode & bit:
            return part
    return None


def _said(value: object) -> str:
    """An option's value, for people."""
    if isinstance(value, tuple):
        value = ", ".join(value)
    return {True: "on", False: "off", "": "not set"}.get(value, f"{value}")


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
