"""``fedbus-coordinator jobs …`` and ``models …``."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated, Any

import typer

from coordinator.cli.options import DIRECTORY_DEFAULT, AsJson, Directory
from coordinator.cli.output import UsageFault, print_json, print_table

jobs = typer.Typer(no_args_is_help=True, help="Submit and watch training jobs.")
models = typer.Typer(no_args_is_help=True, help="List and export model versions.")

JobName = Annotated[str, typer.Argument(metavar="JOB")]


@jobs.command()
def submit(
    file: Annotated[Path, typer.Argument(metavar="FILE.toml", help="The job's specification.")],
    directory: Directory = DIRECTORY_DEFAULT,
    parameters: Annotated[
        Path | None,
        typer.Option(metavar="FILE.safetensors", help="Initial parameters; without: the task makes them."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Submit a job."""
    from coordinator.cli.state import ask

    if parameters is not None and not parameters.is_file():
        raise UsageFault(f"there is no file {parameters} with initial parameters")
    command = {"op": "submit", "spec": _read_job(file)}
    if parameters is not None:
        command["parameters"] = str(parameters.absolute())
    view = ask(directory, command)
    if as_json:
        print_json(view)
    else:
        print(f"job {view['job']}: {view['state']}, {view['rounds']} rounds")
        print(f"next: fedbus-coordinator jobs show {view['job']} --dir {directory}")


@jobs.command("list")
def list_jobs(directory: Directory = DIRECTORY_DEFAULT, as_json: AsJson = False) -> None:
    """List all jobs."""
    from coordinator import views
    from coordinator.cli.state import look

    found = look(directory, {"op": "jobs"}, views.jobs)
    if as_json:
        print_json(found)
        return
    rows = [
        (view["job"], view["task"], view["state"], f"{view['rounds_done']}/{view['rounds']}", view["reason"])
        for view in found
    ]
    print_table("", ("job", "task", "state", "rounds", "reason"), rows)


@jobs.command()
def show(job: JobName, directory: Directory = DIRECTORY_DEFAULT, as_json: AsJson = False) -> None:
    """Show one job: state, rounds, and what it waits for."""
    import msgspec

    from coordinator import history, scores
    from coordinator.cli import show as showing
    from coordinator.cli.state import open_records, read_state

    view = _job_view(directory, job)
    with open_records(directory) as tables:
        view["history"] = history.history(tables, job)
        view["central"] = scores.central(tables, job)
        view["troubles"] = history.troubles(tables, job)
        spec = history.specification(tables, job)
    if spec is None:  # its submission was pruned before the records were made
        spec = read_state(directory).jobs[job].spec
    if as_json:
        print_json(view | {"server": msgspec.to_builtins(spec.server)})
    else:
        showing.print_job(view, spec, directory)


@jobs.command()
def report(
    job: JobName,
    out: Annotated[
        Path | None, typer.Argument(metavar="FILE.html", help="Written whole; without: JOB.html.")
    ] = None,
    directory: Directory = DIRECTORY_DEFAULT,
    as_json: AsJson = False,
) -> None:
    """Write a page with plots about one job: self-contained, for browsers and printers."""
    from broker.system import system_ports
    from coordinator.cli.state import ask, require_state_directory
    from coordinator.config import load_config
    from coordinator.control import NotServing
    from coordinator.report import gather as reporting

    require_state_directory(directory)
    reporting.require_plots()
    from coordinator.report.page import write

    target = out or Path(f"{job}.html")
    if target.is_dir():
        raise UsageFault(f"{target} is a folder; name the file to write, such as {target / job}.html")
    ports = system_ports()
    broker = load_config(ports.files, directory, os.environ).broker
    try:
        letters = ask(directory, {"op": "dead-letters"})
    except NotServing:
        letters = None
    found = reporting.gather(ports, directory, job, broker=broker, dead_letters=letters)
    size_bytes = write(ports, found, target)
    if as_json:
        print_json({"job": job, "file": str(target), "bytes": size_bytes, "entries": found.journal_index})
    else:
        print(f"{target}: job {job} after {found.job.rounds_done} rounds, {size_bytes} bytes")


@jobs.command()
def cancel(job: JobName, directory: Directory = DIRECTORY_DEFAULT, as_json: AsJson = False) -> None:
    """Cancel a job; its versions stay."""
    from coordinator.cli.state import ask

    view = ask(directory, {"op": "cancel", "job": job})
    if as_json:
        print_json(view)
    else:
        print(f"job {job}: {view['state']}")


@models.command("list")
def list_models(job: JobName, directory: Directory = DIRECTORY_DEFAULT, as_json: AsJson = False) -> None:
    """List a job's versions."""
    versions = _job_view(directory, job)["versions"]
    if as_json:
        print_json(versions)
    else:
        rows = [(version["version"], version["round"], version["model"]) for version in versions]
        print_table("", ("version", "round", "model (SHA-256)"), rows)


@models.command()
def export(
    job: JobName,
    out: Annotated[Path, typer.Argument(metavar="OUT.safetensors", help="Written whole or not at all.")],
    directory: Directory = DIRECTORY_DEFAULT,
    version: Annotated[int | None, typer.Option(min=0, help="Which one; without: the newest.")] = None,
    best: Annotated[bool, typer.Option("--best", help="The one that scored best.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write a version to a safetensors file."""
    from broker.system import system_ports
    from coordinator import exporting
    from coordinator.cli.state import read_state

    if out.is_dir():
        raise UsageFault(f"{out} is a folder; name the file to write, such as {out / job}.safetensors")
    if best and version is not None:
        raise UsageFault("--best and --version are two ways to say which one; give one of them")
    state = read_state(directory)
    if best:
        version = exporting.best_version(state, job)
    known, found = exporting.find_version(state, job, version)
    size_bytes = exporting.export(system_ports(), directory, known, found, out)
    if as_json:
        digest = found.model.hex()
        print_json(
            {"job": job, "version": found.number, "model": digest, "file": str(out), "bytes": size_bytes}
        )
    else:
        print(f"{out}: version {found.number} of job {job}, {size_bytes} bytes")


def _job_view(directory: Path, job: str) -> dict[str, Any]:
    from coordinator import views
    from coordinator.cli.state import look
    from coordinator.control import CommandFailed

    view: dict[str, Any] | None = look(
        directory, {"op": "job", "job": job}, lambda state: views.job(state, job)
    )
    if view is None:
        raise CommandFailed(f"there is no job {job}; `fedbus-coordinator jobs list` shows them")
    return view


def _read_job(file: Path) -> dict[str, Any]:
    """The document in ``file``, as it is; raises `UsageFault` unless it specifies a job."""
    from schemas.errors import JobRefused
    from schemas.jobs import parse_job

    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
        parse_job(document)
    except FileNotFoundError as error:
        raise UsageFault(f"there is no file {file}; give the path of a job's specification") from error
    except OSError as error:
        raise UsageFault(f"{file}: {error.strerror}; give the path of a job's specification") from error
    except JobRefused as error:
        raise UsageFault(f"{file}: {error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageFault(f"{file}: not TOML: {error}; correct that line") from error
    return document
