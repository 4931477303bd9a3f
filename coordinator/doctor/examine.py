"""``doctor``: what may keep a coordinator from its work, measured, each finding with its remedy.

Works beside a coordinator that serves: it opens sessions of its own, and only reads the state directory.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

from cryptography import x509

from broker import checkup
from broker.bus import Credentials
from broker.checkup import Finding, Level, healthy
from broker.journal import Journal, JournalError, JournalMissing
from broker.ports import Ports
from broker.reach import dated, reach
from coordinator import control, recovery
from coordinator.broker_admin import roster
from coordinator.broker_admin.management import Management
from coordinator.broker_admin.site import CLIENTS
from coordinator.config import MANAGEMENT_PASSWORD, Config
from coordinator.connection import authority, credentials
from coordinator.doctor import amqp, management, mqtt
from coordinator.doctor.checks import logged_in
from coordinator.doctor.probes import LOCK, Probes
from coordinator.doctor.remedies import Brand
from coordinator.entries import decode_entry
from coordinator.keystore import FOLDER, Identity
from schemas.errors import WireError

PUBLIC: Final = ("root.pub", "key-set")


async def examine(
    directory: Path, config: Config, identity: Identity, ports: Ports
) -> AsyncIterator[Finding]:
    """Everything, in an order in which a fault explains what is left out behind it.

    Holds `probes.LOCK` while it tries things out. Raises `coordinator.config.ConfigError` for settings that
    cannot be used, `broker.ports.LockHeld`.
    """
    for finding in machine(directory, identity, ports):
        yield finding
    own = credentials(directory, config, identity, ports)
    if own.tls.certificate is not None:
        yield _own_certificate(own.tls.certificate, ports)
    way = await reach(config.broker, own.tls, ports.clock.wall_s())
    if config.broker.startswith("embedded:") and not healthy(way):
        remedy = f"`fedbus-coordinator serve --dir {directory}` starts it, and stops it"
        yield Finding("broker", Level.WARNING, "the embedded broker does not run now", remedy)
        return
    for finding in way:
        yield finding
    if not healthy(way):
        return
    api = _management(directory, config, ports)
    if api is not None:
        told = management.examine(api, config, identity.federation, ports.clock)
        for finding in await ports.offload.run(list, told):
            yield finding
    with ExitStack() as stack:
        try:  # last, because it writes: all else is told even where a disk is full
            stack.enter_context(ports.lock.hold(directory / LOCK))
        except OSError as error:
            yield checkup.unwritable(directory, error)
            return
        async for finding in _tried(directory, config, identity, ports, api):
            yield finding


async def _tried(
    directory: Path, config: Config, identity: Identity, ports: Ports, api: Management | None
) -> AsyncIterator[Finding]:
    """What sessions beside the coordinator's find out about a broker that answers at its port."""
    own = credentials(directory, config, identity, ports)
    probes = Probes(directory, config, identity, ports)
    if config.broker.startswith("embedded:"):
        yield await logged_in(probes)
        yield Finding("durability", Level.OK, EMBEDDED)
        return
    if not config.broker.startswith("amqp"):
        async for finding in mqtt.examine(probes, Brand.RABBITMQ if config.management else Brand.UNKNOWN):
            yield finding
        return
    serving = await _serves(directory)
    differences = management.differences
    asked = partial(ports.offload.run, differences, api, config.vhost, own.client_id) if api else None
    async for finding in amqp.examine(probes, config.broker, own, asked, serving=serving):
        yield finding
        if finding.name in UNUSABLE and finding.level is Level.FAULT:
            return
    doors = [url for url in config.urls_for_devices() if url.startswith("mqtt")]
    if not doors:
        yield Finding("queue length", Level.UNKNOWN, UNTRIED)
    for url in doors:
        async for finding in _door(Probes(directory, config, identity, ports, url), url, own, ports):
            yield replace(finding, name=f"mqtt {finding.name}")


async def _door(probes: Probes, url: str, own: Credentials, ports: Ports) -> AsyncIterator[Finding]:
    """The devices' way to a RabbitMQ; it may lead past this machine."""
    for finding in (way := await reach(url, own.tls, ports.clock.wall_s())):
        level = Level.WARNING if finding.level is Level.FAULT else finding.level
        remedy = finding.remedy.replace("`broker`", "`device_urls`")
        yield replace(finding, level=level, remedy=remedy)
    if healthy(way):
        async for finding in mqtt.door(probes):
            yield finding


UNUSABLE: Final = ("login", "publishing")
UNTRIED: Final = "not tried out over AMQP; what bounds a queue stands under queue and policies"


def _own_certificate(path: Path, ports: Ports) -> Finding:
    try:
        known = x509.load_pem_x509_certificate(ports.files.read(path))
    except (OSError, ValueError) as error:
        remedy = "name its PEM file: `certificate = ` in the settings"
        return Finding("own certificate", Level.FAULT, f"{path}: {error}", remedy)
    begins_s, ends_s = known.not_valid_before_utc.timestamp(), known.not_valid_after_utc.timestamp()
    renew = "`fedbus-coordinator broker mosquitto` (or `rabbitmq`) with --client-certificates renews it"
    return dated(begins_s, ends_s, ports.clock.wall_s(), name="own certificate", renew=renew)


def _management(directory: Path, config: Config, ports: Ports) -> Management | None:
    """RabbitMQ's management API, if this coordinator may ask it."""
    path = directory / MANAGEMENT_PASSWORD
    if not config.management or not ports.files.exists(path):
        return None
    password = ports.files.read(path).decode().strip()
    return Management(config.management, password, authority(config, ports.files))


async def _serves(directory: Path) -> bool:
    try:
        await control.call(directory, {"op": "status"})
    except (control.NotServing, control.CommandFailed):
        return False
    return True


EMBEDDED: Final = (
    "the embedded broker is for one machine and loses what it holds when it ends; devices send again what "
    "has no receipt, so no update is lost"
)


def machine(directory: Path, identity: Identity, ports: Ports) -> Iterator[Finding]:
    """State directory, journal, clock, disk. Blocks while it reads the whole journal."""
    yield _secrets(directory)
    journal, newest_wall_s = _journal(directory, identity, ports)
    yield journal
    yield checkup.clock(ports.clock.wall_s(), newest_wall_s, "the newest entry of the journal")
    yield checkup.clock_source()
    yield checkup.disk(directory)


def _secrets(directory: Path) -> Finding:
    keys, broker = directory / FOLDER, directory / roster.FOLDER
    own = [path for path in sorted(keys.rglob("*")) if path.is_file() and path.name not in PUBLIC]
    others = [broker / "ca.key", broker / roster.FILE]
    others += [*sorted(broker.glob("coordinator*.key")), *sorted((broker / CLIENTS).glob("*.key"))]
    others = [path for path in others if path.exists()]  # the server's key is its group's, too
    looks = [checkup.secrets_kept(own, f"`chmod -R go-rwx {keys}`, as the user who serves")]
    looks += [
        checkup.secrets_kept([path], f"`chmod go-rwx {path}`, as the user who serves") for path in others
    ]
    wrong = [found for found in looks if found.level is Level.FAULT]
    return wrong[0] if wrong else checkup.secrets_kept([*own, *others], "")


def _journal(directory: Path, identity: Identity, ports: Ports) -> tuple[Finding, float]:
    """Whether the journal can be read, and the wall time of its last entry."""
    try:
        journal = Journal.open(ports.files, directory / recovery.FOLDER, identity.federation, read_only=True)
    except JournalMissing:
        return Finding("journal", Level.OK, "none yet: nobody has served here"), 0.0
    except (JournalError, OSError) as error:
        change = f"restore {directory} from a backup, whole"
        return Finding("journal", Level.FAULT, str(error), change), 0.0
    last = b""
    try:
        for entry in journal.entries(journal.count - 1):
            last = entry.data
        newest_wall_s = decode_entry(last).at.wall_s if last else 0.0
    except (JournalError, WireError, OSError) as error:
        return Finding("journal", Level.FAULT, str(error), f"restore {directory} from a backup, whole"), 0.0
    finally:
        journal.close()
    return Finding("journal", Level.OK, f"{journal.count} entries, each as its checksum says"), newest_wall_s
