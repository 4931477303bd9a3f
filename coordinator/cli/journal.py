"""``fedbus-coordinator journal …``: what the log says, and whether it is whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coordinator.cli.options import DIRECTORY_DEFAULT, AsJson, Directory
from coordinator.cli.output import Failed, UsageFault, print_json, print_lines, print_table, printable
from coordinator.cli.record import record

if TYPE_CHECKING:
    from broker.journal import Journal
    from coordinator.explain import Reader
    from coordinator.tap.read import Reader as TapReader
    from coordinator.verify import Damage

LAST_DEFAULT = 50
MIB = 1 << 20
DAMAGE_SHOWN = 10
COLUMNS = ("index", "time", "from", "to", "what", "job", "round", "bytes")

journal = typer.Typer(no_args_is_help=True, help="Read and check the log of everything that happened.")


journal.command()(record)


@journal.command("ls")
def list_entries(
    directory: Directory = DIRECTORY_DEFAULT,
    device: Annotated[str, typer.Option(help="Only what it said, was told, or is about it.")] = "",
    job: Annotated[str, typer.Option(help="Only what is about this job.")] = "",
    round_: Annotated[int, typer.Option("--round", min=0, help="Only of this round; 0: of any.")] = 0,
    what: Annotated[
        str, typer.Option(help="Only these messages, inputs or outcomes: update, verdict, …")
    ] = "",
    last: Annotated[int, typer.Option(min=0, help="At most so many, the newest; 0: all.")] = LAST_DEFAULT,
    as_json: AsJson = False,
) -> None:
    """List entries: who said what to whom, about which job and round."""
    wanted = {"job": job, "round": round_, "what": what}
    found: deque[dict[str, Any]] = deque(maxlen=last or None)
    with _reading(directory) as (log, reader):
        for _, _, line in reader.lines(log):
            theirs = not device or device in (line["from"], line["to"], line["device"])
            if theirs and all(not value or line[name] == value for name, value in wanted.items()):
                del line["content"]
                found.append(line)
    if as_json:
        print_json(list(found))
        return
    rows = [
        [_time(line["wall_s"]) if name == "time" else line[name] or "" for name in COLUMNS] for line in found
    ]
    print_table("", COLUMNS, rows)


@journal.command()
def show(
    index: Annotated[int, typer.Argument(metavar="INDEX", min=1, help="As `journal ls` shows it.")],
    directory: Directory = DIRECTORY_DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Explain one entry: who, what, which job and round, the verdict and why."""
    from coordinator import explain
    from coordinator.tap import read

    with _reading(directory) as (log, reader):
        first, count = log.before.index + 1, log.count
        if isinstance(reader, read.Reader):
            view, sentences = reader.explain(log, index), read.sentences
        else:
            view, sentences = explain.explain(reader, log, index), explain.sentences
    if view is None:
        raise Failed(f"there is no entry {index}: the journal of {directory} has {first} to {count}")
    if as_json:
        print_json(view)
        return
    place = f"{Path(view['file']).name} at byte {view['offset']}"
    print_lines(f"entry {index}, {_time(view['wall_s'])}, in {place}")
    print_lines(*(printable(line) for line in sentences(view)))


@journal.command()
def verify(directory: Directory = DIRECTORY_DEFAULT, as_json: AsJson = False) -> None:
    """Read all of it, with bodies and snapshots, and check every byte.

    Exit status 1 names the files that are damaged, and where.
    """
    from broker.system import system_ports
    from coordinator.cli.record import verify_tap
    from coordinator.cli.state import durable_entries
    from coordinator.keystore import load_identity
    from coordinator.tap.place import is_tap
    from coordinator.verify import verify as verify_all

    if is_tap(system_ports().files, directory):
        _refuse_damage(verify_tap(directory, as_json=as_json), directory)
        return
    files, durable = system_ports().files, durable_entries(directory)
    found = verify_all(files, directory, load_identity(files, directory).federation, durable)
    if as_json:
        print_json(
            {
                "whole": not found.damage,
                "entries": found.entries,
                "segments": found.segments,
                "head": found.head.hex(),
                "bodies": found.bodies,
                "strays": found.strays,
                "snapshots": found.snapshots,
                "damage": [
                    {"file": str(one.file), "offset": one.offset, "what": one.what} for one in found.damage
                ],
            }
        )
    elif not found.damage:
        print_lines(
            f"{found.entries} entries in {found.segments} segments, {found.bodies} bodies and "
            f"{found.snapshots} snapshots: each as it was written",
            f"head {found.head.hex()}",
        )
    _refuse_damage(found.damage, directory)


def _refuse_damage(damage: list[Damage], directory: Path) -> None:
    if damage:
        more = len(damage) - DAMAGE_SHOWN
        shown = "; ".join(str(one) for one in damage[:DAMAGE_SHOWN])
        raise Failed(f"{shown}{f'; {more} more' if more > 0 else ''}; restore {directory} from a backup")


@journal.command()
def prune(directory: Directory = DIRECTORY_DEFAULT, as_json: AsJson = False) -> None:
    """Remove the oldest segments and bodies that nothing needs any more.

    The last 20 versions stay verifiable, of all jobs together and of each that has not ended.
    """
    from broker.system import system_ports
    from coordinator.cli.state import require_state_directory
    from coordinator.prune import prune as prune_log

    require_state_directory(directory)
    done = prune_log(system_ports(), directory)
    if as_json:
        print_json(
            {
                "first_entry": done.first,
                "segments": done.segments,
                "bodies": done.bodies,
                "freed_bytes": done.freed_bytes,
            }
        )
    elif done.segments:
        print_lines(
            f"removed {done.segments} segments and {done.bodies} bodies, {done.freed_bytes / MIB:.1f} MiB; "
            f"the journal begins with entry {done.first}"
        )
    else:
        print_lines(f"nothing to remove: the journal begins with entry {done.first}")


@journal.command()
def export(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A state directory that is made.")],
    directory: Directory = DIRECTORY_DEFAULT,
    rekey: Annotated[
        bool, typer.Option("--rekey", help="Under throw-away keys, with neutral names. Always given.")
    ] = False,
    bodies: Annotated[
        str, typer.Option(metavar="keep|truncate|drop", help="What becomes of the updates' content.")
    ] = "keep",
    as_json: AsJson = False,
) -> None:
    """Copy the recording for others: without any key or name of this federation."""
    from broker.system import system_ports
    from coordinator.cli.init import with_port
    from coordinator.cli.state import durable_entries
    from coordinator.config import Config
    from coordinator.rekey.export import export as export_log
    from coordinator.rekey.updates import Content

    if not rekey:
        raise UsageFault("export what? with --rekey; what shall keep its keys and names is copied as it is")
    if bodies not in set(Content):
        raise UsageFault(f"--bodies {bodies}: one of {', '.join(Content)}")
    ports, durable = system_ports(), durable_entries(directory)
    config = Config(broker=with_port("embedded:0", ports.entropy))
    made = export_log(ports, directory, target, config, Content(bodies), durable=durable)
    if as_json:
        print_json(
            {
                "dir": str(target),
                "federation": made.federation.hex(),
                "entries": made.entries,
                "devices": made.devices,
                "updates": made.updates,
                "bodies": bodies,
            }
        )
        return
    print_lines(
        f"{target}: {made.entries} entries, {made.devices} devices, {made.updates} updates "
        f"(content: {bodies}), as federation {made.federation.hex()}",
        "its keys were made for it; times, sizes, measured numbers and the models are the recording's",
    )


@journal.command()
def stage(
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="A state directory that is made.")],
    directory: Directory = DIRECTORY_DEFAULT,
    broker: Annotated[str, typer.Option(help="Its broker; without: an embedded one, as the export's.")] = "",
    job: Annotated[str, typer.Option(help="The job; without: the only one that was trained.")] = "",
    as_json: AsJson = False,
) -> None:
    """Make a coordinator at the beginning of a re-keyed export, for `replay --onto`."""
    from coordinator.cli.onto import stage_for

    made = stage_for(directory, target, broker, job)
    if as_json:
        print_json(made)
        return
    print_lines(
        f"{target}: job {made['job']} at version 0, at the broker {made['broker']}",
        f"next: fedbus-coordinator serve --dir {target}, and beside it "
        f"fedbus-coordinator replay {directory} --onto {made['broker']} --speed max",
    )


@contextmanager
def _reading(directory: Path) -> Iterator[tuple[Journal, Reader | TapReader]]:
    """The log, beside a coordinator or tap that writes, or without one."""
    from broker.bodies import Bodies
    from broker.journal import Journal
    from broker.system import system_ports
    from coordinator.cli.state import require_state_directory
    from coordinator.explain import Reader
    from coordinator.keystore import load_identity
    from coordinator.recovery import FOLDER, open_whole
    from coordinator.state import State
    from coordinator.tap import place, read

    files = system_ports().files
    if place.is_tap(files, directory):
        known = place.read_known(files, directory)
        log = Journal.open(files, directory / FOLDER, known.id, read_only=True)
        try:
            yield log, read.Reader(known)
        finally:
            log.close()
        return
    require_state_directory(directory)
    identity = load_identity(files, directory)
    log, base = open_whole(files, directory, identity.federation)
    try:
        state = base.recovered.state if base else State()
        yield log, Reader(identity, Bodies(files, directory / "bodies"), state)
    finally:
        log.close()


def _time(wall_s: float) -> str:
    return datetime.fromtimestamp(wall_s).astimezone().isoformat(" ", "seconds")
