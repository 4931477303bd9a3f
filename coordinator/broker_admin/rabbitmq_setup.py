"""``broker rabbitmq``: RabbitMQ's configuration file, and everything that its management API can make."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, unquote

from msgspec.structs import replace

from broker.connect import LOOPBACK, PORT_DEFAULTS
from broker.ports import write_atomic
from coordinator.broker_admin.management import Management
from coordinator.broker_admin.rabbitmq import RabbitUsers
from coordinator.broker_admin.site import PACKET_BYTES_MAX, PUBLIC_MODE, SECURE, Done, Site, Wish
from coordinator.cli.output import UsageFault
from coordinator.config import MANAGEMENT_PASSWORD
from coordinator.connection import authority

CONFIGURATION: Final = "rabbitmq.conf"
PROGRAM: Final = "rabbitmq"

CONFIGURATION_TEXT: Final = """\
# Written by `fedbus-coordinator broker rabbitmq`; run that again to change it.
# Plugins that it needs: rabbitmq-plugins enable rabbitmq_management rabbitmq_mqtt

mqtt.allow_anonymous = false
mqtt.vhost = {vhost}
mqtt.exchange = amq.topic
{listeners}
# The largest message of fedbus has 5 MiB; by default 128 MiB pass, and whoever reads one holds it in memory.
max_message_size = {message_bytes_max}
# Quorum queues keep what is in this file in memory, too (by default up to 512 MB of it).
raft.wal_max_size_bytes = 16777216
# Every connection has buffers of twice this size (by default some megabytes).
mqtt.tcp_listen_options.recbuf = 32768
mqtt.tcp_listen_options.sndbuf = 32768
# Connections that have sent large messages give their memory back within seconds, not minutes.
background_gc_enabled = true
background_gc_target_interval = 1000
"""

ENVIRONMENT: Final = "rabbitmq-env.conf"
ENVIRONMENT_TEXT: Final = """\
# Written by `fedbus-coordinator broker rabbitmq`; RabbitMQ reads one such file, so add this line to it.
# Erlang's processes let go of large messages at once, and their memory goes back to the system: what has
# 64 KiB or more lies in a piece of memory of its own.
SERVER_ADDITIONAL_ERL_ARGS="+hmbs 1024 -env ERL_FULLSWEEP_AFTER 0 +MBas aobf +MBsbct 64"
"""

LISTENERS_TEXT: Final = """\

# What this federation does not need is closed, and AMQP open no further than its URLs say: over AMQP a
# device could put messages into everybody's queue. If other programs need a port, change its line, and
# have a firewall close it to devices.
{lines}
"""

SETTINGS: Final = {
    "amqp": "listeners.tcp",
    "amqps": "listeners.ssl",
    "mqtt": "mqtt.listeners.tcp",
    "mqtts": "mqtt.listeners.ssl",
}
"""Of the listeners for a scheme."""

TLS_TEXT: Final = """\
ssl_options.cacertfile = {folder}/ca.crt
ssl_options.certfile = {folder}/server.crt
ssl_options.keyfile = {folder}/server.key
ssl_options.versions.1 = tlsv1.3
ssl_options.versions.2 = tlsv1.2
ssl_options.verify = {verify}
ssl_options.fail_if_no_peer_cert = {clients}
"""


def configuration(vhost: str, folder: Path | None, listeners: Sequence[str], *, clients: bool) -> str:
    """The file for ``conf.d``; ``folder`` holds the certificates if there shall be TLS. ``clients`` must show
    one, too."""
    text = LISTENERS_TEXT.format(lines="\n".join(listeners)) if listeners else ""
    if folder is not None:
        verify = "verify_peer" if clients else "verify_none"
        text += TLS_TEXT.format(folder=folder, verify=verify, clients=str(clients).lower())
    return CONFIGURATION_TEXT.format(vhost=vhost, listeners=text, message_bytes_max=PACKET_BYTES_MAX)


def listeners(urls: Sequence[SplitResult]) -> list[str]:
    """What must be said of RabbitMQ's listeners so that these URLs can be reached, and little else. By itself
    it opens 5672 and 1883 on all addresses, and nothing with TLS."""
    lines = []
    for scheme, setting in SETTINGS.items():
        named = [url for url in urls if url.scheme == scheme]
        if not named:
            lines += [f"{setting} = none"] if scheme not in SECURE else []
            continue
        port = named[0].port or PORT_DEFAULTS[scheme]
        if scheme.startswith("amqp") and all(url.hostname in LOOPBACK for url in named):
            lines.append(f"{setting}.default = {LOOPBACK[0]}:{port}")
        elif scheme in SECURE:
            lines.append(f"{setting}.default = {port}")
    return lines


def set_up(
    site: Site, wish: Wish, *, management: str, password: str, vhost: str, store_credentials: bool
) -> Done:
    """Make RabbitMQ know this federation, and write its configuration and the settings that go with it.

    ``management`` is the URL of its API, ``password`` that of the user in it; both may be empty to use those
    that are stored. Raises `UsageFault`, `AccessError`, OSError, `coordinator.config.ConfigError`.
    """
    tls = site.tls(wish)
    files = site.ports.files
    management, password = _credentials(site, management, password)
    vhost = vhost or _vhost(site)
    api = Management(management, password, authority(site.config, files))
    with site.roster.locked():
        site.admit_coordinator()
        folder, notes = site.folder(wish, PROGRAM) if tls else (site.own_folder, [])
        done = Done(folder, notes=notes)
        changed = {"management": management, "vhost": vhost}
        if tls:
            done.certificates.append(site.server_certificate(wish, folder))
            changed["ca"] = site.config.ca or str(site.authority.path)
        if wish.clients:
            own, *probes = site.client_certificates()
            done.certificates += [own, *probes]
            changed |= {"certificate": str(own.certificate), "key": str(own.key)}
        opened = listeners(site.urls)
        _write(site, folder, configuration(vhost, folder if tls else None, opened, clients=wish.clients))
        users = RabbitUsers(api, replace(site.config, **changed), site.identity.federation)
        done.more = users.set_up(site.roster.read()) | {"configuration": str(folder / CONFIGURATION)}
        done.notes += site.remember(PROGRAM, wish)
        site.settings(**changed)
        stored = site.directory / MANAGEMENT_PASSWORD
        if store_credentials:
            write_atomic(files, stored, password.encode() + b"\n")
    target = f"/etc/rabbitmq/conf.d/50-fedbus-{site.identity.federation.hex()[:8]}.conf"
    done.next = [
        f"install -D -m 644 {folder / CONFIGURATION} {target}   # as root, on the broker's machine",
        f"cat {folder / ENVIRONMENT} >> /etc/rabbitmq/rabbitmq-env.conf   # once",
        "systemctl restart rabbitmq-server",
        f"fedbus-coordinator serve --dir {site.directory}",
    ]
    done.notes += [*site.restart(), *_closed(opened)]
    if not files.exists(stored):
        done.notes.append(
            "the credentials were not stored: run this again after each invitation and revocation, or once "
            "with --store-credentials"
        )
    return done


def _credentials(site: Site, management: str, password: str) -> tuple[str, str]:
    """The URL of the management API and its password: as given, or else as stored."""
    stored = site.directory / MANAGEMENT_PASSWORD
    management = management or site.config.management
    if not management:
        raise UsageFault("RabbitMQ: name its management API: --management http://user@host:15672")
    if not password and site.ports.files.exists(stored):
        password = site.ports.files.read(stored).decode().strip()
    if not password:
        raise UsageFault(
            "RabbitMQ: name the file with its administrator's password: --management-password-file"
        )
    return management, password


def _closed(opened: Sequence[str]) -> list[str]:
    """A note of what other programs at this broker may miss."""
    lines = [line for line in opened if line.endswith("none") or LOOPBACK[0] in line]
    if not lines:
        return []
    note = (
        f"{CONFIGURATION} closes what this federation does not need ({', '.join(lines)}); if other programs "
    )
    return [note + "need it, change these lines, and have a firewall close the ports to devices"]


def _write(site: Site, folder: Path, text: str) -> None:
    for name, content in ((CONFIGURATION, text), (ENVIRONMENT, ENVIRONMENT_TEXT)):
        write_atomic(site.ports.files, folder / name, content.encode(), mode=PUBLIC_MODE)


def _vhost(site: Site) -> str:
    """The one in an AMQP URL, or that of the settings."""
    named = {unquote(url.path[1:]) or "/" for url in site.urls if url.scheme.startswith("amqp")}
    if len(named) > 1:
        raise UsageFault(f"the URLs name several virtual hosts: {', '.join(sorted(named))}")
    return named.pop() if named else site.config.vhost
