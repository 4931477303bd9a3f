"""``fedbus-coordinator replay``: every model again from the log, as it was or as it would have been."""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coordinator.cli.options import AsJson
from coordinator.cli.output import Failed, UsageFault, print_json, print_lines, print_table

if TYPE_CHECKING:
    from coordinator.evaluating import Evaluate
    from coordinator.recording import Recording
    from coordinator.whatif import Settings
    from schemas.jobs import JobSpec

Row = dict[str, Any]
Onto = Annotated[
    str, typer.Option(metavar="URL", help="Play the devices to the staging coordinator at this broker.")
]
Device = Annotated[
    str, typer.Option(metavar="NAME", help="With --onto: play the coordinator to this device's agent.")
]
Speed = Annotated[str, typer.Option(metavar="N|max", help="With --onto: so many times as fast.")]
Authority = Annotated[Path | None, typer.Option(help="With --onto: the broker's authority (PEM).")]


def replay(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="A coordinator's state directory.")],
    job: Annotated[str, typer.Option(help="Only this job.")] = "",
    until: Annotated[int, typer.Option(min=0, help="Up to this version; 0: all.")] = 0,
    what_if: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Fold the same updates under these settings.")
    ] = None,
    blame: Annotated[
        bool, typer.Option(help="Rank the devices of --round by what leaving them out changes.")
    ] = False,
    round_: Annotated[int, typer.Option("--round", min=0, help="For --blame.")] = 0,
    evaluate: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="With --what-if or --blame: a data set of the job's task."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw what --what-if found.")] = None,
    onto: Onto = "",
    device: Device = "",
    speed: Speed = "1",
    ca: Authority = None,
    as_json: AsJson = False,
) -> None:
    """Compute every model again and compare the digests.

    Folds the recorded updates in the order of the log; exit status 1 if a version differs. With --onto the
    recording is played instead, and what is answered compared.
    """
    from coordinator.cli.state import require_state_directory
    from coordinator.recording import NothingToReplay

    if onto:
        from coordinator.cli.onto import parse_speed, play_onto

        if what_if or blame or until or round_ or evaluate or plot:
            raise UsageFault("--onto goes with --job, --device, --speed, --ca and --json only")
        require_state_directory(directory)
        play_onto(directory, onto, parse_speed(speed), job=job, device=device, ca=ca, as_json=as_json)
        return
    if device or ca or speed != "1":
        raise UsageFault("--device, --speed and --ca need --onto")
    if (blame and (what_if or not round_)) or (round_ and not blame):
        raise UsageFault("--blame and --round belong together, and --what-if is another question")
    if (evaluate and not (blame or what_if)) or (plot and not what_if):
        raise UsageFault("--evaluate needs --what-if or --blame, and --plot needs --what-if")
    require_state_directory(directory)
    try:
        if what_if:
            _what_if(directory, job, what_if, until, evaluate, plot, as_json=as_json)
        elif blame:
            _blame(directory, job, round_, evaluate, as_json=as_json)
        else:
            _verify(directory, job, until, as_json=as_json)
    except NothingToReplay as error:
        raise Failed(str(error)) from error


def _verify(directory: Path, job: str, until: int, *, as_json: bool) -> None:
    from broker.system import system_ports
    from coordinator.replay import first_difference
    from coordinator.replay import replay as replay_log

    result = replay_log(system_ports(), directory, job=job, until=until)
    if as_json:
        print_json(result)
    else:
        for name, versions in result["jobs"].items():
            equal = sum(version["equal"] for version in versions)
            pruned = result["pruned"][name]
            print(
                f"job {name}: {len(versions)} versions computed again from the log, {equal} digests equal"
                + (f"; versions 0 to {pruned - 1} were pruned" if pruned else "")
            )
    difference = first_difference(directory, result)
    if difference:
        raise Failed(f"{difference}; compare with a backup")


def _document(path: Path) -> Row:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageFault(f"{path}: {error}") from error


def _settings(path: Path, document: Row, spec: JobSpec) -> Settings:
    from coordinator.whatif import parse_settings
    from schemas.errors import JobRefused

    try:
        return parse_settings(document, spec)
    except JobRefused as error:
        raise UsageFault(f"{path}: {error}") from error


def _what_if(
    directory: Path,
    job: str,
    settings_file: Path,
    until: int,
    dataset: Path | None,
    plot: Path | None,
    *,
    as_json: bool,
) -> None:
    from broker.ports import write_atomic
    from broker.system import system_ports
    from coordinator.cli.state import read_state
    from coordinator.recording import Recording
    from coordinator.whatif import what_if

    document = _document(settings_file)
    if plot:
        from coordinator.report.gather import require_plots

        require_plots()
    recording = Recording(system_ports(), directory)
    jobs = read_state(directory).jobs
    job = _only(job or str(document.get("name", "")), list(jobs), directory)
    settings = _settings(settings_file, document, jobs[job].spec)
    rows: list[Row] = []

    async def compare(evaluate: Evaluate | None) -> None:
        for parted in what_if(recording, job, settings, until):
            row = dict(parted.row)
            if evaluate:
                row |= {
                    "recorded_evaluation": await evaluate(parted.recorded),
                    "evaluation": await evaluate(parted.other),
                }
            rows.append(row)

    _evaluating(recording, jobs[job].spec, dataset, compare)
    if plot:
        from coordinator.report.parting import draw

        write_atomic(system_ports().files, plot, draw(job, rows), mode=0o644)
    if as_json:
        print_json({"job": job, "settings": document, "versions": rows})
        return
    _print_parted(job, settings_file, rows, measured=dataset is not None)
    if plot:
        print_lines(f"plot {plot}")


def _print_parted(job: str, settings_file: Path, rows: list[Row], *, measured: bool) -> None:
    columns = [
        "version",
        "updates",
        "distance",
        "relative",
        "cosine",
        "drift",
        *(["accuracy", "recorded"] if measured else []),
    ]
    print_table(f"job {job} under {settings_file}", columns, [_line(row, columns) for row in rows])


def _line(row: Row, columns: list[str]) -> list[str]:
    told = row | {"updates": f"{row['updates']} of {row['recorded_updates']}"}
    for name, where in (("accuracy", "evaluation"), ("recorded", "recorded_evaluation")):
        told[name] = row.get(where, {}).get("accuracy")
    return [_short(told[name]) for name in columns]


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def _blame(directory: Path, job: str, round_: int, dataset: Path | None, *, as_json: bool) -> None:
    from broker.system import system_ports
    from coordinator.cli.state import read_state
    from coordinator.recording import Recording
    from coordinator.whatif import blame

    recording = Recording(system_ports(), directory)
    jobs = read_state(directory).jobs
    job = _only(job, list(jobs), directory)
    recorded, blamed = blame(recording, job, round_)
    rows: list[Row] = []
    whole: dict[str, float] = {}

    async def compare(evaluate: Evaluate | None) -> None:
        if evaluate:
            whole.update(await evaluate(recorded))
        for each in blamed:
            measured = {"without": await evaluate(each.without)} if evaluate else {}
            rows.append(each.row | measured)  # no generator can wait

    _evaluating(recording, jobs[job].spec, dataset, compare)
    if "loss" in whole:
        rows.sort(key=lambda row: row["without"]["loss"])
    elif "accuracy" in whole:
        rows.sort(key=lambda row: -row["without"]["accuracy"])
    if as_json:
        print_json({"job": job, "round": round_, "evaluation": whole, "devices": rows})
        return
    measured = [name for name in ("loss", "accuracy") if name in whole]
    columns = ["device", "samples", "norm", "cosine", "change", "relative"]
    lines = [[_short(row[name]) for name in columns] for row in rows]
    if dataset:
        columns += [f"{name} without it" for name in measured]
        for line, row in zip(lines, rows, strict=True):
            line += [_short(row["without"][name]) for name in measured]
    order = "whose update pulled against the others', most first"
    if measured:
        order = f"without whose update the version is best by {measured[0]}, first"
    print_table(f"job {job}, round {round_}: {order}", columns, lines)
    if dataset:
        print_lines("with all: " + ", ".join(f"{name} {_short(whole[name])}" for name in measured))


def _only(job: str, names: list[str], directory: Path) -> str:
    """The job that is meant."""
    if job in names:
        return job
    if not job and len(names) == 1:
        return names[0]
    there = ", ".join(sorted(names)) or "none"
    raise UsageFault(f"{directory}: {f'no job {job}' if job else '--job is missing'}; its jobs: {there}")


def _evaluating(
    recording: Recording,
    spec: JobSpec,
    dataset: Path | None,
    compare: Callable[[Evaluate | None], Awaitable[None]],
) -> None:
    """Run ``compare`` with what evaluates models on ``dataset``, or with None."""
    from broker.system import system_ports
    from coordinator.evaluating import evaluating

    async def run(path: Path) -> None:
        layout = recording.store.layout(spec.name)
        async with evaluating(system_ports(), spec, layout, path) as evaluate:
            await compare(evaluate)

    async def without() -> None:
        await compare(None)

    asyncio.run(run(dataset.absolute()) if dataset else without())
