"""``fedbus-coordinator broker``: make the operator's own broker ready for a federation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coordinator.cli.options import DIRECTORY_DEFAULT, AsJson, Directory
from coordinator.cli.output import UsageFault, print_json, print_lines

if TYPE_CHECKING:
    from coordinator.broker_admin.site import Done

broker = typer.Typer(no_args_is_help=True, help="Set up your own broker: users, rules, queues, certificates.")

Out = Annotated[Path | None, typer.Option(help="Where the broker's files go; at first broker/ in DIR.")]
Tls = Annotated[bool, typer.Option("--tls", help="Make TLS certificates; needs URLs with mqtts or amqps.")]
Hosts = Annotated[
    list[str] | None,
    typer.Option("--host", help="A further name of the broker; name all of them, or '' for none."),
]
Clients = Annotated[
    bool | None,
    typer.Option("--client-certificates/--no-client-certificates", help="Clients must show certificates."),
]


@broker.command()
def mosquitto(
    directory: Directory = DIRECTORY_DEFAULT,
    listen: Annotated[
        str | None, typer.Option(metavar="[HOST:]PORT", help="At first, and with '', by the URLs.")
    ] = None,
    tls: Tls = False,
    host: Hosts = None,
    client_certificates: Clients = None,
    log_denied: Annotated[
        bool | None,
        typer.Option(
            "--log-denied/--no-log-denied", help="Have denied messages logged (log_type debug); at first yes."
        ),
    ] = None,
    pid_file: Annotated[
        Path | None, typer.Option(help="Names the process to tell of new users; must be ours to signal.")
    ] = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Write Mosquitto's configuration, users and rules, and certificates if asked.

    Options that are left away are as they were before.
    """
    from broker.system import system_ports
    from coordinator.broker_admin.mosquitto import PROGRAM, set_up
    from coordinator.broker_admin.site import Site

    site = Site(system_ports(), directory)
    asked = _asked(out, host, client_certificates) | {"listen": listen, "log_denied": log_denied}
    wish = site.wish(PROGRAM, tls=tls, **asked)
    done = set_up(site, wish, listen=_address(wish.listen), pid_file=pid_file)
    _tell(done, f"Mosquitto's files are in {done.folder}", as_json=as_json)


@broker.command()
def rabbitmq(
    directory: Directory = DIRECTORY_DEFAULT,
    management: Annotated[
        str, typer.Option(metavar="URL", help="Its management API: http(s)://[user@]host[:port].")
    ] = "",
    management_password_file: Annotated[
        Path | None, typer.Option(help="Its administrator's password.")
    ] = None,
    vhost: Annotated[str, typer.Option(help="Virtual host; without: that of the URL, or /.")] = "",
    store_credentials: Annotated[
        bool, typer.Option("--store-credentials", help="Let this coordinator make and remove users itself.")
    ] = False,
    tls: Tls = False,
    host: Hosts = None,
    client_certificates: Clients = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Make virtual host, users, permissions and queues through the management API.

    Options that are left away are as they were before.
    """
    from broker.system import system_ports
    from coordinator.broker_admin.rabbitmq_setup import PROGRAM, set_up
    from coordinator.broker_admin.site import Site
    from coordinator.cli.init import password_in

    site = Site(system_ports(), directory)
    done = set_up(
        site,
        site.wish(PROGRAM, tls=tls, **_asked(out, host, client_certificates)),
        management=management,
        password=password_in(management_password_file),
        vhost=vhost,
        store_credentials=store_credentials,
    )
    count = len(done.more["users"])
    _tell(
        done, f"RabbitMQ knows {count} users of this federation; {done.folder} has its files", as_json=as_json
    )


@broker.command()
def certificate(
    device: Annotated[str, typer.Argument(metavar="DEVICE")],
    directory: Directory = DIRECTORY_DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Make a device's own certificate, or a tap's (tap@NAME), for a broker that wants one."""
    from broker.system import system_ports
    from coordinator.broker_admin.roster import TAP
    from coordinator.broker_admin.site import Done, Site

    site = Site(system_ports(), directory)
    leaf = site.device_certificate(device)
    done = Done(leaf.certificate.parent, [leaf])
    there = "fedbus-agent enroll --certificate FILE --key FILE --token-file TOKEN --dir DIR"
    if device.startswith(TAP):
        there = "fedbus-coordinator journal record --certificate FILE --key FILE --tap FILE DIR"
    done.next = [f"give {leaf.certificate} and {leaf.key} to it, secretly", f"there: {there}"]
    _tell(done, f"user {site.user_of(device)}", as_json=as_json)


@broker.command()
def tap(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    directory: Directory = DIRECTORY_DEFAULT,
    remove: Annotated[bool, typer.Option("--remove", help="Shut this tap out.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let a tap in at the broker, to read all of the federation's messages; prints its credentials.

    It may publish nothing. Run this again for a new password and the keys of devices that joined since.
    """
    from coordinator.cli.state import ask

    made = ask(directory, {"op": "tap", "name": name, "remove": remove})
    if as_json:
        print_json(made)
        return
    if remove:
        print_lines(f"tap {name}: removed")
        return
    # The credentials alone on standard output, so that they can be piped to where they belong.
    print_lines(made["credentials"])
    for note in made["notes"]:
        print(f"note: {note}", file=sys.stderr)
    print("there: fedbus-coordinator journal record --tap FILE DIR", file=sys.stderr)


def _asked(out: Path | None, hosts: list[str] | None, clients: bool | None) -> dict[str, Any]:
    """What `coordinator.broker_admin.site.Wish` has for every broker, None where nothing was said."""
    names = tuple(name for name in hosts if name) if hosts else None
    return {"out": str(out.absolute()) if out else None, "hosts": names, "clients": clients}


def _address(text: str) -> tuple[str, int] | None:
    if not text:
        return None
    host, _, port = text.rpartition(":")
    if not port.isascii() or not port.isdigit() or not 0 < int(port) < 65_536:
        raise UsageFault(f"--listen {text}: write HOST:PORT or PORT, with a port from 1 to 65535")
    return host.strip("[]"), int(port)


def _tell(done: Done, what: str, *, as_json: bool) -> None:
    from coordinator.broker_admin.site import until

    if as_json:
        print_json(done.document())
        return
    print_lines(what)
    for leaf in done.certificates:
        names = f" for {', '.join(leaf.names)}" if leaf.names else ""
        print_lines(
            f"certificate {leaf.certificate}{names}: valid until {until(leaf)}; run this again to renew"
        )
    for note in done.notes:
        print_lines(f"note: {note}")
    print_lines(*(f"next: {step}" for step in done.next))
