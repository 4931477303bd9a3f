"""The report as one HTML page: no script, nothing from elsewhere, every text of others escaped."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path
from statistics import mean, median
from typing import Any, Final

import msgspec

from broker.ports import Ports, write_export
from coordinator.report import html, plots, scores
from coordinator.report.gather import Participation, Report
from coordinator.report.style import STYLE
from coordinator.state import ENDED_JOB, JobState

DEVICES_SHOWN: Final = 200
ROUNDS_SHOWN: Final = 200
LETTERS_SHOWN: Final = 20
UNFINISHED: Final = (JobState.CANCELLED, JobState.FAILED)
TABLES: Final = (
    "config",
    "local",
    "server",
    "asynchronous",
    "evaluation",
    "personal",
    "compression",
    "scaffold",
)  # of a job, told each by itself
POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"


def write(ports: Ports, report: Report, out: Path) -> int:
    """Write the page to ``out``, whole or not at all; its size in bytes. Raises OSError."""
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{out.parent}: no such folder; make it first")
    data = page(report, made_wall_s=ports.clock.wall_s()).encode()
    write_export(ports.files, out, data)
    return len(data)


def page(report: Report, *, made_wall_s: float) -> str:
    """The whole document. ``made_wall_s`` is when it was made."""
    title = f"{html.text(report.job.id)} – fedbus report"
    sections = (
        _header(report),
        _tiles(report),
        _training(report),
        scores.section(report),
        _setting(report),
        _devices(report),
        _rounds(report),
        _refused(report.dead_letters),
        _proof(report),
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(sections)
        + f"\n<footer>Made {html.local_time(made_wall_s)} from the journal of federation "
        f"<code>{report.federation}</code>.</footer>\n</main>\n</body>\n</html>\n"
    )


def _header(report: Report) -> str:
    job = report.job
    why = f" <small>{html.text(job.reason)}</small>" if job.state in UNFINISHED and job.reason else ""
    lasted = html.duration(max(report.newest_wall_s - report.began_wall_s, 0.0))
    when = f"ended after {lasted}" if job.state in ENDED_JOB else f"newest entry {lasted} later"
    devices = sum(1 for each in report.devices if each.folded)
    return (
        f'<header>\n<p class="kind">fedbus report</p>\n<h1>{html.text(job.id)} '
        f'<span class="state {job.state}">{job.state}</span>{why}</h1>\n'
        f"<p>Task <b>{html.text(job.spec.task)}</b>: {job.rounds_done} of {job.spec.rounds} rounds on "
        f"{devices} device{'' if devices == 1 else 's'} whose data stayed there; "
        f"submitted {html.local_time(report.began_wall_s)}, {when}.</p>\n</header>"
    )


def _tiles(report: Report) -> str:
    folded = sum(each.folded for each in report.devices)
    rejected = sum(sum(each.rejected.values()) for each in report.devices)
    declined = sum(sum(each.declined.values()) for each in report.devices)
    tiles = [("updates in the model", str(folded), f"{rejected} rejected, {declined} declined")]
    if report.comparison:
        compared = report.comparison
        beside = f"local only {mean(compared.local_only):.3f}, centralised {compared.centralised:.3f}"
        tiles.insert(0, ("accuracy on the test set", f"{compared.federated[-1]:.3f}", beside))
    elif evaluated := report.evaluated("accuracy_before"):
        at, score = evaluated[-1]
        tiles.insert(0, ("accuracy on the devices", f"{score:.3f}", f"of the model after round {at}"))
    if report.rounds:
        # Workers start in the first round.
        usual = report.rounds[1:] or report.rounds
        overhead_s = median(view["overhead_s"] for view in usual)
        time = html.duration(median(view["round_s"] for view in usual))
        tiles.append(("a round took", time, f"{html.duration(overhead_s)} besides training (medians)"))
    up = sum(each.traffic.up_bytes for each in report.devices)
    down = sum(each.traffic.down_bytes for each in report.devices)
    tiles.append(("devices sent", html.byte_count(up), f"and were sent {html.byte_count(down)}"))
    return (
        '<section class="tiles">\n'
        + "\n".join(
            f"<div><p>{name}</p><strong>{value}</strong><p>{note}</p></div>" for name, value, note in tiles
        )
        + "\n</section>"
    )


def _training(report: Report) -> str:
    figures = []
    evaluated, compared = report.evaluated("accuracy_before"), report.comparison
    tested = report.tested("accuracy")
    if evaluated or compared or tested:
        text = "Accuracy of the model after each round, on the devices' held-out parts, weighted by samples."
        if compared:
            text = (
                "Accuracy after each round: on a test set that no device saw, and as the devices measured it."
            )
        figures.append(html.figure(plots.svg(plots.accuracy(evaluated, compared, tested)), text))
    lost, lost_there = report.evaluated("loss_before"), report.tested("loss")
    if lost or lost_there:
        text = "Loss of the model after each round, on the devices' held-out parts, weighted by samples."
        figures.append(html.figure(plots.svg(plots.loss(lost, lost_there)), text))
    if report.rounds:
        times = [(view["train_s"], view["overhead_s"]) for view in report.rounds]
        text = "How long each round took: the slowest device's training, and everything else."
        figures.append(html.figure(plots.svg(plots.round_times(times)), text))
        kinds = ("reports", "rejected", "declined")
        asked = [(view["asked"], *(len(view[kind]) for kind in kinds)) for view in report.rounds]
        text = "What became of the requests to each round's devices."
        figures.append(html.figure(plots.svg(plots.answers(asked)), text))
    if not figures:
        return html.section("Training", "<p>No round is finished yet.</p>")
    return html.section("Training", '<div class="plots">\n' + "\n".join(figures) + "\n</div>")


def _setting(report: Report) -> str:
    spec: dict[str, Any] = msgspec.to_builtins(report.job.spec)
    groups = {
        "job": {key: value for key, value in spec.items() if key not in ("name", *TABLES)},
        "config": spec["config"],
        "local": spec["local"],
        "evaluation": spec["evaluation"] or {},
        "server": spec["server"] | {"learning_rate": report.job.spec.server.rate},
        "asynchronous": spec["asynchronous"],
        "personal": spec.get("personal"),
        "compression": spec["compression"],
        "scaffold": spec.get("scaffold"),
    }
    lists = [
        f"<div><h3>{name}</h3><dl>"
        + "".join(
            f"<dt>{html.text(key)}</dt><dd>{html.text(_value(value))}</dd>"
            for key, value in values.items()
            if value != ""
        )
        + "</dl></div>"
        for name, values in groups.items()
        if values
    ]
    return html.section("What was trained", '<div class="setting">' + "\n".join(lists) + "</div>")


def _value(value: object) -> str:
    return value if isinstance(value, str) and value else msgspec.json.encode(value).decode()


def _devices(report: Report) -> str:
    columns = [
        ("device", ""),
        ("owner", ""),
        ("asked", "n"),
        ("folded", "n"),
        ("rejected", ""),
        ("declined", ""),
        ("samples", "n"),
        ("training", "n"),
        ("sent", "n"),
        ("was sent", "n"),
    ]
    rows = [_device(each) for each in report.devices[:DEVICES_SHOWN]]
    hidden = len(report.devices) - len(rows)
    more = f"<p>… and {hidden} more: <code>fedbus-coordinator devices list</code></p>" if hidden else ""
    if not rows:
        return html.section("Devices", "<p>No device was asked yet.</p>")
    return html.section("Devices", html.table(columns, rows), more)


def _device(each: Participation) -> list[str]:
    return [
        f"<b>{html.text(each.device)}</b>",
        html.text(each.entity),
        str(each.asked),
        str(each.folded),
        html.tally(each.rejected) or "–",
        html.tally(each.declined) or "–",
        str(each.samples),
        html.duration(each.train_s),
        html.byte_count(each.traffic.up_bytes),
        html.byte_count(each.traffic.down_bytes),
    ]


def _rounds(report: Report) -> str:
    if not report.rounds:
        return ""
    columns = [
        ("round", "n"),
        ("updates", "n"),
        ("rejected", "n"),
        ("samples", "n"),
        ("accuracy before", "n"),
        ("loss before", "n"),
        ("seconds", "n"),
        ("overhead", "n"),
        ("model", ""),
    ]
    shown = report.rounds[-ROUNDS_SHOWN:]
    rows = [
        [
            str(view["round"]),
            str(len(view["reports"])),
            str(len(view["rejected"])),
            str(view["samples"]),
            "–" if view["accuracy_before"] is None else f"{view['accuracy_before']:.3f}",
            "–" if view["loss_before"] is None else f"{view['loss_before']:.3g}",
            f"{view['round_s']:.2f}",
            f"{view['overhead_s']:.3f}",
            f"<code>{view['model'][:16]}</code>",
        ]
        for view in shown
    ]
    name = "All rounds" if len(shown) == len(report.rounds) else f"The last {len(shown)} rounds"
    return f"<details>\n<summary>{name}</summary>\n{html.table(columns, rows)}\n</details>"


def _refused(dead_letters: dict[str, Any] | None) -> str:
    title = "Refused messages"
    if dead_letters is None:
        return html.section(
            title, "<p>Counted by a coordinator that serves; none did when this was made.</p>"
        )
    if not dead_letters["letters"]:
        return html.section(title, "<p>None since the coordinator started.</p>")
    columns = [("time", ""), ("claims to be", ""), ("code", ""), ("bytes", "n"), ("why", "text")]
    rows = [
        [
            html.local_time(letter["wall_s"]),
            html.text(letter["claimed"]),
            html.text(letter["code"]),
            str(letter["size_bytes"]),
            html.text(letter["text"]),
        ]
        for letter in dead_letters["letters"][-LETTERS_SHOWN:]
    ]
    tally = html.tally(Counter(dead_letters["counts"]))
    text = f"<p>To this coordinator, since it started, by code: {tally}. The newest:</p>"
    return html.section(title, text, html.table(columns, rows))


def _proof(report: Report) -> str:
    place, job = shlex.quote(str(report.directory)), shlex.quote(report.job.id)
    lines = []
    if report.job.versions:
        newest = report.job.versions[-1]
        lines.append(f"<dt>model, version {newest.number}</dt><dd><code>{newest.model.hex()}</code></dd>")
    lines += [
        f"<dt>journal</dt><dd>{report.journal_index} entries; head <code>{report.journal_head}</code></dd>",
        f"<dt>broker</dt><dd>{html.text(report.broker)}</dd>",
    ]
    commands = html.text(f"fedbus-coordinator replay {place} --job {job}")
    return html.section(
        "Proof",
        f'<dl class="proof">{"".join(lines)}</dl>',
        "<p>The digest is SHA-256 of the model's parameters. This computes every version again from the "
        f"recorded updates and compares the digests:</p>\n<pre>{commands}</pre>",
    )
