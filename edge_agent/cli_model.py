"""``fedbus-agent model``: the models that this device took part in making, listed and taken out for use."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_agent.cli_errors import CommandFailed, Misused

if TYPE_CHECKING:
    from edge_agent.exporting import Damaged, Kept

COLUMNS = ("job", "version", "state", "task", "parameters", "bytes", "received")


def add(commands: Any) -> list[argparse.ArgumentParser]:
    """Add ``model list`` and ``model export`` to the program's commands; returns their parsers."""
    model = commands.add_parser("model", help="the models that this device helped to train")
    verbs = model.add_subparsers(required=True, metavar="COMMAND")
    listing = verbs.add_parser("list", help="the newest model of each job")
    listing.set_defaults(command=_list)
    export = verbs.add_parser("export", help="write the newest model of a job to a safetensors file")
    export.add_argument("job", metavar="JOB")
    export.add_argument("out", metavar="FILE.safetensors", type=Path, help="written whole or not at all")
    export.set_defaults(command=_export)
    for verb in (listing, export):
        verb.add_argument("--json", action="store_true", help="one JSON document on standard output")
    return [listing, export]


def _list(arguments: argparse.Namespace) -> None:
    from broker.system import system_ports
    from edge_agent import exporting, identity

    files, directory = system_ports().files, arguments.dir
    models, damaged = _told(
        directory, lambda: exporting.kept(files, directory, identity.load(files, directory))
    )
    views = [_view(model) for model in models] + [_view_of_damaged(model) for model in damaged]
    views.sort(key=lambda view: (view["job"], view["version"]))
    if arguments.json:
        print(json.dumps(views, indent=2))
    elif views:
        print("\n".join([_table(views), *(_printable(model.problem) for model in damaged)]))
    else:
        print("no model yet: the first comes with the first training")


def _export(arguments: argparse.Namespace) -> None:
    from broker.system import system_ports
    from edge_agent import exporting, identity

    files, directory, out = system_ports().files, arguments.dir, arguments.out
    if out.is_dir():
        raise Misused(f"{out} is a folder; name the file to write, such as {out / arguments.job}.safetensors")
    model, size_bytes = _told(
        directory,
        lambda: exporting.export(files, directory, identity.load(files, directory), arguments.job, out),
    )
    if arguments.json:
        print(json.dumps(_view(model) | {"file": str(out), "bytes": size_bytes}, indent=2))
    else:
        which = "the last" if model.last else "a later one is to come"
        print(f"{out}: version {model.version} of job {model.job} ({which}), {size_bytes} bytes")


def _told(directory: Path, look: Callable[[], Any]) -> Any:
    """What ``look`` returns; its errors in words."""
    from edge_agent.exporting import NoModel
    from edge_agent.identity import IdentityError
    from edge_agent.ledger import LedgerError

    try:
        return look()
    except (NoModel, IdentityError, LedgerError) as error:
        raise CommandFailed(str(error)) from error
    except OSError as error:
        raise CommandFailed(f"{error.filename or directory}: {error.strerror or error}") from error


def _view(model: Kept) -> dict[str, Any]:
    from edge_agent.status import when

    return {
        "job": model.job,
        "version": model.version,
        "state": model.state,
        "last": model.last,
        "task": model.card.offer.task,
        "config": model.card.offer.config,
        "parameters": model.parameters,
        "bytes": model.manifest.model_bytes,
        "model": model.manifest.model.hex(),
        "received": when(model.card.received_wall_s),
        "whole": model.whole,
        "problem": "",
    }


def _view_of_damaged(model: Damaged) -> dict[str, Any]:
    return {
        "job": model.job,
        "version": model.version,
        "state": "damaged",
        "last": False,
        "task": "",
        "config": {},
        "parameters": 0,
        "bytes": 0,
        "model": "",
        "received": "",
        "whole": model.whole,
        "problem": model.problem,
    }


def _table(views: list[dict[str, Any]]) -> str:
    rows = [COLUMNS, *(tuple(_cell(view, column) for column in COLUMNS) for view in views)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(COLUMNS))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _cell(view: dict[str, Any], column: str) -> str:
    if column == "received" and not view["whole"]:
        return "not whole yet"
    if column == "state" and not (view["whole"] or view["problem"]):
        return "on its way"  # its job may have finished; nobody shall take that for the model
    text = str(view[column])
    if column == "state" and not view["last"] and view["state"] not in ("running", "damaged"):
        text += ", the last version has not come yet"
    return _printable(text)


def _printable(text: str) -> str:
    """A task's name came over the wire: nothing in it shall steer the terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
