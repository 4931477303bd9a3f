"""Mosquitto (2.0 or later): its configuration, password and ACL files, and telling it to read them again.

Measured on 2.0.11. A reload (SIGHUP) takes both files up, ends the connections of users that are gone, and
holds the others to the new rules at once; a new listener needs a restart. Where clients show certificates, no
password file is read: a user that is gone still connects, and may neither write nor read anything. With
``use_username_as_clientid`` nobody can take another's session. A denied message is acknowledged, and with
``max_queued_messages 0`` its sender's connection ends; the log names the sender ("Bad socket read/write"),
and with ``log_type debug`` the topic. A denied subscription is granted, and nothing ever comes of it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from broker.connect import LOOPBACK, PORT_DEFAULTS
from broker.ports import Files, Ports, write_atomic
from coordinator.broker_admin.roster import Login, User, user
from coordinator.broker_admin.site import PACKET_BYTES_MAX, SHARED_MODE, Done, Site, Wish
from coordinator.cli.output import UsageFault
from coordinator.config import Config
from coordinator.connection import PROBES, probe_session
from schemas import topics
from schemas.ids import COORDINATOR, DeviceId, FederationId

CONFIGURATION: Final = "mosquitto.conf"
PASSWORDS: Final = "mosquitto.passwd"
RULES: Final = "mosquitto.acl"
CHANGED: Final = "changed"
"""An empty file: both are to be read again. The path unit takes it away and starts again if it comes back, so
that nothing is missed that changes while the unit is at work."""
PROGRAM: Final = "mosquitto"
VERSION_TOPIC: Final = "$SYS/broker/version"
RELOAD: Final = "Mosquitto must read its users again: `systemctl reload mosquitto`, if no path unit does that"


CONFIGURATION_TEXT: Final = """\
# Written by `fedbus-coordinator broker mosquitto`; run that again to change it.
# If Mosquitto has another listener (of another federation, or yours), its own file must begin with
# `per_listener_settings true`: then each listener has users of its own.

{listener}
allow_anonymous false
acl_file {folder}/mosquitto.acl
# A session belongs to its user: no device can push another one out.
use_username_as_clientid true
{login}
# By default Mosquitto drops what exceeds 1000 messages for a client that is away, without a word.
max_queued_messages 0
max_queued_bytes 0
# The largest message of fedbus has 5 MiB; 256 pass by default. Who sends more is disconnected, and logged.
max_packet_size {packet_bytes_max}
set_tcp_nodelay true
# Killed, it forgets what it queued in this time (seconds); coordinator and devices send that again.
persistence true
autosave_interval 300

log_type error
log_type warning
log_type notice
log_type information
# Who subscribes to what.
log_type subscribe
"""

LOG_DENIED: Final = """\
# Shows "Denied PUBLISH from USER (…, 'TOPIC', …)"; and four lines for every other message, about 0.2 MB
# a day for an idle device. Debian rotates the log daily.
log_type debug
"""


@dataclass(frozen=True, slots=True)
class Listener:
    """Where Mosquitto listens; an empty ``host`` is all addresses. With ``tls`` its certificate is
    ``server.crt`` in its folder, with ``clients`` it also wants one that ``ca.crt`` signed."""

    host: str
    port: int
    tls: bool = False
    clients: bool = False


def configuration(listener: Listener, folder: Path, *, log_denied: bool) -> str:
    """The file to include in Mosquitto's own; ``folder`` is where all that it names lies."""
    where = [f"listener {listener.port} {listener.host}".rstrip()]
    if listener.tls:
        where += [f"certfile {folder}/server.crt", f"keyfile {folder}/server.key", "tls_version tlsv1.2"]
    login = f"password_file {folder}/{PASSWORDS}\n"
    if listener.clients:
        login = f"cafile {folder}/ca.crt\nrequire_certificate true\nuse_identity_as_username true\n"
    text = CONFIGURATION_TEXT.format(
        listener="\n".join(where), folder=folder, login=login, packet_bytes_max=PACKET_BYTES_MAX
    )
    return text + (LOG_DENIED if log_denied else "")


def passwords(users: Iterable[User]) -> str:
    """The password file."""
    return "".join(f"{known.name}:{known.login.mosquitto}\n" for known in users)


def rules(users: Iterable[User]) -> str:
    """The ACL file: what is not in it is denied."""
    parts = []
    for known in users:
        lines = [f"user {known.name}"]
        lines += [f"topic write {topic}" for topic in known.publish]
        lines += [f"topic read {topic}" for topic in known.subscribe]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def users_of(federation: FederationId, logins: Mapping[DeviceId, Login], username: str = "") -> list[User]:
    """All users of a federation; ``username`` is the coordinator's, if fedbus does not name it."""
    found = []
    for device, login in sorted(logins.items()):
        if device != COORDINATOR:
            found.append(user(federation, device, login))
            continue
        own = user(federation, device, login, username)
        seen = (*own.subscribe, VERSION_TOPIC)
        found.append(User(own.name, device, login, own.publish, seen))
        client = user(federation, device, login).name
        names = [probe_session(client, name) for name in PROBES]
        found += [User(name, device, login, (topics.probe(federation),), seen) for name in names]
    return found


class MosquittoUsers:
    """The users in Mosquitto's files (`access.Users`). A signal to read them that comes while it reads them
    is lost on it."""

    def __init__(self, ports: Ports, config: Config, federation: FederationId) -> None:
        self._files = ports.files
        self._folder = Path(config.broker_files)
        self._pid_file = config.broker_pid_file
        self.overhears = bool(self._pid_file)
        self._username = config.username
        self._federation = federation

    def update(self, logins: Mapping[DeviceId, Login], changed: DeviceId) -> str:
        """Raises OSError."""
        del changed
        new = write_users(self._files, self._folder, users_of(self._federation, logins, self._username))
        # Even if nothing is new: who died before it told must do so now.
        if not self._pid_file:
            write_atomic(self._files, self._folder / CHANGED, b"", mode=SHARED_MODE)
            return RELOAD if new else ""
        problem = reload(self._files, Path(self._pid_file))
        return problem and f"Mosquitto must read its users again, `systemctl reload mosquitto`: {problem}"


def write_users(files: Files, folder: Path, users: Sequence[User]) -> bool:
    """Both files; whether anything is new. The rules come first: a user without rules may do nothing."""
    new = False
    for name, text in ((RULES, rules(users)), (PASSWORDS, passwords(users))):
        path, data = folder / name, text.encode()
        if not files.exists(path) or files.read(path) != data:
            write_atomic(files, path, data, mode=SHARED_MODE)
            new = True
    return new


def reload(files: Files, pid_file: Path) -> str:
    """Have Mosquitto read its files again. Empty when it was told to, else why not."""
    try:
        pid = int(files.read(pid_file))
        program = files.read(Path(f"/proc/{pid}/comm")).decode().strip()
        if program != PROGRAM:  # a process id that was given away again
            return f"{pid_file} names process {pid}, which is {program}"
        os.kill(pid, signal.SIGHUP)
    except OSError as error:
        return f"{pid_file}: {error.strerror}"
    except ValueError:
        return f"{pid_file} holds no process id"
    return ""


def set_up(site: Site, wish: Wish, *, listen: tuple[str, int] | None, pid_file: Path | None) -> Done:
    """Write all that Mosquitto needs for this federation, and the settings that go with it.

    ``listen`` is a host and a port, by default those of the URLs; ``pid_file`` names the file of the process
    that shall be told. Raises `UsageFault`, `AccessError`, OSError, `coordinator.config.ConfigError`.
    """
    for url in site.urls:
        if not url.scheme.startswith("mqtt"):
            raise UsageFault(
                f"{url.geturl()}: Mosquitto speaks MQTT; write mqtt:// or mqtts:// into the settings"
            )
    tls = site.tls(wish)
    host, port = listen or _listen(site)
    with site.roster.locked():
        site.admit_coordinator()
        folder, notes = site.folder(wish, PROGRAM)
        done = Done(folder, notes=notes)
        changed = {"broker_files": str(folder)}
        if pid_file is not None:
            changed["broker_pid_file"] = str(pid_file.absolute())
        if tls:
            done.certificates.append(site.server_certificate(wish, folder))
            changed["ca"] = str(site.authority.path)
        if wish.clients:
            own, *probes = site.client_certificates()
            done.certificates += [own, *probes]
            changed |= {"certificate": str(own.certificate), "key": str(own.key)}
        listener = Listener(host, port, tls=tls, clients=wish.clients)
        text = configuration(listener, folder, log_denied=wish.log_denied)
        write_atomic(site.ports.files, folder / CONFIGURATION, text.encode(), mode=SHARED_MODE)
        done.notes += site.remember(PROGRAM, wish)
        site.settings(**changed)
        told = MosquittoUsers(site.ports, site.config, site.identity.federation).update(
            site.roster.read(), COORDINATOR
        )
    link = f"/etc/mosquitto/conf.d/fedbus-{site.identity.federation.hex()[:8]}.conf"
    done.next = [
        f"ln -sf {folder / CONFIGURATION} {link}   # as root, on the broker's machine",
        "systemctl restart mosquitto   # a reload is enough when only users or certificates changed",
        f"fedbus-coordinator serve --dir {site.directory}",
    ]
    if site.config.broker_pid_file and told:
        done.notes.append(told)
    done.notes += site.restart()
    done.more = {"configuration": str(folder / CONFIGURATION), "listen": f"{host}:{port}", "tls": tls}
    return done


def _listen(site: Site) -> tuple[str, int]:
    """Where the URLs say that the broker is: on all addresses, unless they are this machine's own."""
    ports = {url.port or PORT_DEFAULTS[url.scheme] for url in site.urls}
    if len(ports) > 1:
        raise UsageFault(
            f"the URLs name several ports ({', '.join(map(str, sorted(ports)))}): name one, --listen"
        )
    local = all(url.hostname in LOOPBACK for url in site.urls)
    return LOOPBACK[0] if local else "", ports.pop()
