"""``fedbus-coordinator journal record``: a tap on a live bus."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import unquote, urlsplit

import typer

from coordinator.cli.options import AsJson
from coordinator.cli.output import Failed, UsageFault, print_json, print_lines

if TYPE_CHECKING:
    from broker import bus
    from broker.ports import Ports
    from coordinator.tap.place import Known
    from coordinator.tap.record import Tap
    from coordinator.verify import Damage

MIB = 1 << 20
FOREIGN_SHOWN = 10


def record(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of its own, made if missing.")],
    broker: Annotated[
        str, typer.Option(metavar="URL", help="mqtt(s)://… or amqp(s)://…; without: as in --tap.")
    ] = "",
    tap: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Credentials, as `broker tap NAME` printed them.")
    ] = None,
    federation: Annotated[
        str, typer.Option(metavar="ID", help="Without --tap: whose messages; user and password in the URL.")
    ] = "",
    certificate: Annotated[Path | None, typer.Option(help="For a broker that wants one (PEM).")] = None,
    key: Annotated[Path | None, typer.Option(help="Its key.")] = None,
    as_json: AsJson = False,
) -> None:
    """Record every message of a federation as it passes at the broker, until SIGTERM or Ctrl-C.

    Messages stay sealed. `journal ls`, `show` and `verify` read DIR.
    """
    from broker import service
    from broker.bus import Tls
    from broker.connect import connect
    from broker.system import system_ports
    from coordinator import logs
    from coordinator.tap.place import is_tap, read_known
    from coordinator.tap.record import recording, subscriptions

    ports = system_ports()
    if not federation and tap is None and is_tap(ports.files, directory):
        federation = read_known(ports.files, directory).federation
    known, who, url = _given(ports, broker, tap, federation)
    own = Tls(who.tls.ca, certificate, key)
    session = connect(url, _with(who, own), subscriptions(known.id), ports=ports)
    logs.set_up()
    with recording(ports, directory, known) as running:
        try:
            asyncio.run(service.run(lambda: running.run(session, ports)))
            if not running.recorded.connected:
                raise Failed(f"nothing was recorded: {running.problem}")
        finally:
            _tell(running, as_json=as_json)


def _with(who: bus.Credentials, tls: bus.Tls) -> bus.Credentials:
    from dataclasses import replace

    return replace(who, tls=tls)


def _given(
    ports: Ports, broker: str, tap: Path | None, federation: str
) -> tuple[Known, bus.Credentials, str]:
    """Whose messages, as who, from where."""
    from broker.bus import Credentials, Tls
    from coordinator.broker_admin.roster import TAP, tap_id
    from coordinator.tap.place import Known, check_federation, read_credentials
    from schemas.ids import COORDINATOR, broker_user

    if tap is not None and not federation:
        found = read_credentials(ports.files, tap)
        login = Credentials(found.user, found.user, found.password, Tls(found.ca), durable=False)
        known: Known = found
        broker = broker or found.urls[0]
    elif federation and broker and tap is None:
        fed = check_federation(federation)
        session = broker_user(fed, tap_id(ports.entropy.random_bytes(4).hex()))
        if _user(broker).startswith(TAP):  # whose session has its name, where we set the broker up
            session = _user(broker)
        login, known = Credentials(session, durable=False), Known(federation=fed.hex())
    else:
        raise UsageFault(
            "whose messages, and as which user? --tap FILE, which `fedbus-coordinator broker tap NAME` "
            "prints beside the coordinator; or --federation ID, which `fedbus-coordinator status` tells, and "
            "--broker URL with a user and password in it"
        )
    user = _user(broker)
    if user.startswith(f"{COORDINATOR}@") and not user.partition("/")[2]:
        raise UsageFault(
            f"user {user} is the coordinator's own: with it a tap would push the coordinator out; "
            "`fedbus-coordinator broker tap NAME` makes a user for the tap"
        )
    return known, login, broker


def _user(broker: str) -> str:
    """The one in a URL; empty if there is none, or no URL that anything can be made of."""
    try:
        return unquote(urlsplit(broker).username or "")
    except ValueError:
        return ""


def _tell(tap: Tap, *, as_json: bool) -> None:
    recorded, journal = tap.recorded, tap.journal
    view: dict[str, Any] = {
        "dir": str(tap.directory),
        "from_devices": recorded.up,
        "to_devices": recorded.down,
        "bytes": recorded.bytes,
        "gaps": recorded.gaps,
        "entries": journal.count,
        "head": journal.head.hex(),
    }
    if as_json:
        print_json(view)
        return
    print_lines(
        f"recorded {recorded.up} messages from devices and {recorded.down} to them, "
        f"{recorded.bytes / MIB:.1f} MiB; {_gaps(recorded.gaps)}",
        f"{tap.directory}: {journal.count} entries, head {journal.head.hex()}",
    )


def verify_tap(directory: Path, *, as_json: bool) -> list[Damage]:
    """Check a tap's recording and print what was found; the damage is the caller's to tell."""
    from broker.ports import LockHeld
    from broker.system import system_ports
    from coordinator.config import LOCK
    from coordinator.tap import place, read

    ports = system_ports()

    def live() -> bool:
        try:
            with ports.lock.hold(directory / LOCK):
                return False
        except LockHeld:
            return True

    found = read.verify(ports.files, directory, place.read_known(ports.files, directory), live)
    if as_json:
        counts = {
            name: getattr(found, name) for name in ("messages", "gaps", "signed", "unchecked", "chunks")
        }
        damage = [{"file": str(one.file), "offset": one.offset, "what": one.what} for one in found.damage]
        head = {"whole": not found.damage, "entries": found.entries, "segments": found.segments}
        last = {"head": found.head.hex(), "foreign": found.foreign, "damage": damage}
        print_json(head | counts | last)
    elif not found.damage:
        print_lines(
            f"{found.entries} entries in {found.segments} segments: each as it was written",
            f"{found.messages} messages, {_gaps(found.gaps)}; {found.signed} signatures hold, "
            f"{found.unchecked} could not be checked for want of a key; {found.chunks} chunks of updates are "
            f"those that were signed",
            *_foreign(found.foreign),
            f"head {found.head.hex()}",
        )
    return found.damage


def _gaps(count: int) -> str:
    return f"{count} gap{'' if count == 1 else 's'}"


def _foreign(entries: list[int]) -> list[str]:
    if not entries:
        return []
    shown = ", ".join(str(index) for index in entries[:FOREIGN_SHOWN])
    more = ", …" if len(entries) > FOREIGN_SHOWN else ""
    return [f"{len(entries)} messages passed that are not from whom they claim to be: entries {shown}{more}"]
