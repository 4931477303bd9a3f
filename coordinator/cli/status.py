"""``fedbus-coordinator status`` and ``dead-letters``: how a coordinator does, what it refused."""

from __future__ import annotations

from datetime import datetime

from coordinator.cli.options import DIRECTORY_DEFAULT, AsJson, Directory
from coordinator.cli.output import print_json, print_lines, print_table, printable

ALARMS_SHOWN = 5
COLUMNS = ("time", "claims to be", "code", "bytes", "topic", "why")


def status(directory: Directory = DIRECTORY_DEFAULT, as_json: AsJson = False) -> None:
    """Show how the serving coordinator does, and how much it refused."""
    from coordinator.cli.state import ask

    view = ask(directory, {"op": "status"})
    if as_json:
        print_json(view)
        return
    problem = view["broker_problem"]
    print_lines(
        f"federation {view['federation']}, up for {view['run_s']:.0f} s in all",
        f"broker {view['broker']}: {printable(problem) if problem else 'connected'}",
        f"journal: {view['journal_index']} entries, head {view['journal_head'][:16]}",
        f"disk: {printable(view['disk_problem']) or 'has room'}",
        *_transfers(view["transfers"]),
        f"dead letters: {_counts(view['dead_letters'])}",
        f"dropped messages: {_counts(view['dropped_messages'])}",
    )
    for alarm in view["alarms"][-ALARMS_SHOWN:]:
        print_lines(f"ALARM: job {alarm['job']}, version {alarm['version']} ({alarm['by']}): {alarm['text']}")
    if view["dead_letters"]:
        print_lines(f"see `fedbus-coordinator dead-letters --dir {directory}`")


def dead_letters(directory: Directory = DIRECTORY_DEFAULT, as_json: AsJson = False) -> None:
    """Show messages that were not taken, the newest last, since the coordinator started."""
    from coordinator.cli.state import ask

    view = ask(directory, {"op": "dead-letters"})
    if as_json:
        print_json(view)
        return
    if view["letters"]:
        print_table("", COLUMNS, [_row(letter) for letter in view["letters"]])
    print_lines(f"dead letters since the start: {_counts(view['counts'])}")


def _transfers(transfers: dict[str, int]) -> tuple[str, str]:
    from schemas.limits import GRANT_BYTES_MAX, MIB

    up, down = (
        f"{transfers[way]}, {transfers[f'{way}_waiting']} of them waiting, "
        f"{transfers[f'{way}_granted_bytes'] / MIB:.1f} of {GRANT_BYTES_MAX // MIB} MiB granted"
        for way in ("uploads", "pulls")
    )
    return f"uploads: {up}; {transfers['offers_put_off']} offers were put off", f"pulls: {down}"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items())) or "none"


def _row(letter: dict[str, object]) -> tuple[object, ...]:
    time = datetime.fromtimestamp(float(str(letter["wall_s"]))).astimezone().isoformat(" ", "seconds")
    return time, *(letter[name] for name in ("claimed", "code", "size_bytes", "topic", "text"))
