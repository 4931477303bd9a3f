"""``fedbus-coordinator``: the coordinator's command line.

Exit status: 0 done, 1 could not be done, 2 cannot be used as typed. Errors are one line on standard error.
Imports stay light: whatever is heavy is imported by the command that needs it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from coordinator.cli.broker import broker as broker_commands
from coordinator.cli.doctor import doctor
from coordinator.cli.jobs import jobs, models
from coordinator.cli.journal import journal
from coordinator.cli.options import DIRECTORY_DEFAULT, AsJson, Directory
from coordinator.cli.output import print_error, print_json, print_table
from coordinator.cli.replay import replay
from coordinator.cli.status import dead_letters, status

FAILED = 1
MISUSED = 2

app = typer.Typer(
    name="fedbus-coordinator",
    help="Train one model across devices that keep their data.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
devices = typer.Typer(no_args_is_help=True, help="List and revoke devices.")
app.add_typer(devices, name="devices")
app.add_typer(jobs, name="jobs")
app.add_typer(models, name="models")
app.add_typer(broker_commands, name="broker")
app.add_typer(journal, name="journal")
app.command()(doctor)
app.command()(status)
app.command("dead-letters")(dead_letters)
app.command()(replay)

DeviceName = Annotated[str, typer.Argument(metavar="DEVICE")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    problem = misplaced_package()
    if problem:
        print_error(problem)
        return FAILED
    from coordinator.cli.errors import EXPECTED, MISUSE, text_of

    try:
        app(list(sys.argv[1:] if arguments is None else arguments))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else FAILED if end.code else 0
    except EXPECTED as error:
        print_error(text_of(error))
        return MISUSED if isinstance(error, MISUSE) else FAILED
    return 0


def misplaced_package() -> str:
    """Why the packages beside ours must not be used: one comes from elsewhere. Empty if all is well.

    Looks before anything of them is imported: a folder ``schemas`` in the working directory comes first
    under ``python -m``.
    """
    home = Path(__file__).resolve().parents[2]
    for name in ("broker", "schemas"):
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            return f"package {name} is missing beside {home / 'coordinator'}: install fedbus again"
        if Path(spec.origin).resolve().parent.parent != home:
            return (
                f"package {name} comes from {Path(spec.origin).parent}, not from {home}: another folder "
                f"of this name comes first on Python's path; run in another working directory, or `python -P`"
            )
    return ""


@app.command()
def init(
    directory: Directory = DIRECTORY_DEFAULT,
    broker: Annotated[
        str,
        typer.Option(
            help="embedded:PORT (0: a free one), mqtt(s)://[user[:password]@]host[:port] or amqp(s)://…[/vhost]."
        ),
    ] = "embedded:0",
    device_url: Annotated[
        list[str] | None, typer.Option(help="What devices connect to, if it is another; may be repeated.")
    ] = None,
    password_file: Annotated[
        Path | None, typer.Option(help="Holds the coordinator's password at the broker.")
    ] = None,
    ca: Annotated[Path | None, typer.Option(help="The authority of the broker's certificate (PEM).")] = None,
    certificate: Annotated[Path | None, typer.Option(help="The coordinator's own certificate.")] = None,
    key: Annotated[Path | None, typer.Option(help="Its key.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a new federation in a directory of its own."""
    from coordinator.cli.init import begin

    tls = {"ca": ca, "certificate": certificate, "key": key}
    made = begin(directory, broker, device_url or [], password_file, tls)
    if as_json:
        print_json(made)
        return
    print(f"federation {made['federation']} in {directory}, broker {made['broker']}")
    print(f"next: fedbus-coordinator serve --dir {directory}")


@app.command()
def serve(directory: Directory = DIRECTORY_DEFAULT) -> None:
    """Serve until SIGTERM or Ctrl-C."""
    from broker.system import system_ports
    from coordinator import logs
    from coordinator.serve import serve as serve_directory

    logs.set_up()
    serve_directory(directory, system_ports())


@app.command()
def invite(
    device: DeviceName,
    directory: Directory = DIRECTORY_DEFAULT,
    entity: Annotated[str, typer.Option(help="Who owns the device; without: its own name.")] = "",
    valid_h: Annotated[float, typer.Option(min=0.001, max=24 * 366, help="Hours until it expires.")] = 24.0,
    as_json: AsJson = False,
) -> None:
    """Make a token with which one device enrols, once."""
    from coordinator.cli.state import ask

    command = {"op": "invite", "device": device, "entity": entity, "valid_s": valid_h * 3600}
    made = ask(directory, command)
    if as_json:
        print_json(made)
        return
    # The token alone on standard output, so that it can be piped to where it belongs.
    print(made["token"])
    for note in made["notes"]:
        print(f"note: {note}", file=sys.stderr)
    print(f"on device {device}: fedbus-agent enroll --token-file FILE --dir DIR", file=sys.stderr)


@devices.command("list")
def list_devices(directory: Directory = DIRECTORY_DEFAULT, as_json: AsJson = False) -> None:
    """List all devices."""
    from coordinator import views
    from coordinator.cli.state import look

    found = look(directory, {"op": "devices"}, views.devices)
    if as_json:
        print_json(found)
        return
    columns = ("device", "entity", "state", "power", "cores", "tasks", "folded", "quarantine")
    for view in found:
        view["tasks"] = ", ".join(view["tasks"])
        kept = [f"{job} up to round {until}" for job, until in view["quarantine"].items()]
        view["quarantine"] = ", ".join(kept)
    print_table("", columns, [[view[key] for key in columns] for view in found])


@devices.command()
def revoke(
    device: DeviceName,
    directory: Directory = DIRECTORY_DEFAULT,
    reason: Annotated[str, typer.Option(help="Told to the device and recorded.")] = "",
    as_json: AsJson = False,
) -> None:
    """Shut a device out for good."""
    from coordinator.cli.state import ask

    view = ask(directory, {"op": "revoke", "device": device, "reason": reason})
    if as_json:
        print_json(view)
    else:
        print(f"device {device}: {view['state']}")


@devices.command()
def release(device: DeviceName, directory: Directory = DIRECTORY_DEFAULT, as_json: AsJson = False) -> None:
    """End a device's quarantine, in all jobs."""
    from coordinator.cli.state import ask

    view = ask(directory, {"op": "release", "device": device})
    if as_json:
        print_json(view)
    else:
        print(f"device {device}: {view['state']}")


@app.command()
def demo(
    device_count: Annotated[int | None, typer.Option("--devices", min=1, max=50)] = None,
    rounds: Annotated[int | None, typer.Option(min=1, max=1000)] = None,
    alpha: Annotated[float | None, typer.Option(help="Of the Dirichlet split; smaller: less even.")] = None,
    seed: Annotated[int | None, typer.Option(min=0)] = None,
    broker: Annotated[
        str | None, typer.Option(help="One that lets everybody in, as mqtt://host:port; without: an own one.")
    ] = None,
    directory: Annotated[Path, typer.Option("--dir", metavar="DIR")] = Path("fedbus-demo"),
    as_json: AsJson = False,
) -> None:
    """Train on real data across devices on this machine.

    Handwritten digits, by default on 5 devices in 20 rounds. On a directory whose demo was cut off it goes
    on; on a finished one it shows the result again. On one that `init` made for a broker of yours, and that
    has no jobs and devices, it uses that broker.
    """
    from coordinator.demo.command import demo as run_demo

    chosen = {"devices": device_count, "rounds": rounds, "alpha": alpha, "seed": seed, "broker": broker}
    run_demo(directory, {name: value for name, value in chosen.items() if value is not None}, as_json=as_json)
