"""The report: what it says follows from the log, and it holds nothing but itself."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from broker.worker import with_our_packages
from coordinator.cli.main import main
from coordinator.cli.state import open_journal
from coordinator.entries import Sent, decode_entry
from coordinator.report import plots
from coordinator.spread import CLAIM_MAX
from schemas import events as e
from tests.coordinator.serving import answer, served
from tests.standin import Federation, StandIn, spec

Capsys = pytest.CaptureFixture[str]

COUNT = 10
EVIL = "<img src=x onerror=alert(1)>"
VOID = {"meta", "img"}


class Page(HTMLParser):
    """The tags, the texts, and the tables of a page that is well-formed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(self.source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def row(self, first: str) -> list[str]:
        return next(row for row in self.rows if row[0] == first)


async def ended_job(fed: Federation, loss: float = 2.0) -> list[StandIn]:
    """Two rounds: one device reports twice, one is rejected and then declines. The loss is halved."""
    devices = [await fed.device(name) for name in ("good", "bad")]
    config = {"note": EVIL}
    await fed.command("submit", spec=spec(rounds=2, cohort=2, min_reports=1, deadline_s=3600, config=config))
    for number in (1, 2):
        requests = [await device.next(e.TrainingRequest) for device in devices]
        evaluation = {"accuracy": number / 4, "loss": loss / number}
        update = devices[0].update(
            requests[0], np.ones(COUNT, np.float32), 7, train_s=1.0, evaluation=evaluation
        )
        await devices[0].offer(devices[0].seal(requests[0], *update)[0])
        if number == 1:
            wrong = devices[1].update(requests[1], np.full(COUNT, np.nan, np.float32), 3)
            await devices[1].offer(devices[1].seal(requests[1], *wrong)[0])
        else:
            decline = e.Decline(job="job", request=requests[1].request, reason="busy", text=EVIL)
            await devices[1].say(decline)
    for device in devices:  # both hear of it, or the log would still grow while a test reads it
        await device.next(e.JobFinished)
    return devices


async def test_a_report_says_what_the_log_says_and_what_was_refused(tmp_path: Path, capsys: Capsys) -> None:
    out = tmp_path / "job.html"
    async with served(tmp_path / "home", COUNT) as fed:
        devices = await ended_job(fed)
        await devices[1].bus.publish(devices[1].up + EVIL, b"rubbish")
        await fed.until(lambda: bool(fed.coordinator.intake.dead.ring))
        told = json.loads(await answer(fed, capsys, "jobs", "report", "job", str(out), "--json"))
        job = fed.job("job")
        assert told["bytes"] == out.stat().st_size
        assert 0 < told["entries"] <= fed.coordinator.ledger.journal.count
    page = Page(out)
    assert page.row("good")[:7] == ["good", "good", "2", "2", "–", "–", "7"]
    assert page.row("bad")[:7] == ["bad", "bad", "2", "0", "finite 1", "busy 1", "0"]
    assert page.row("1")[:6] == ["1", "1", "1", "7", "0.250", "2"]
    assert page.row("2")[:6] == ["2", "1", "0", "7", "0.500", "1"]
    assert job.versions[-1].model.hex() in page.text
    assert "by code: malformed 1" in page.text
    assert "2 of 2 rounds on 1 device whose data stayed there" in page.text
    assert f"fedbus-coordinator replay {tmp_path / 'home'} --job job" in page.text
    assert sum(tag == "svg" for tag, _ in page.tags) == 4


async def test_a_report_is_self_contained_and_escapes_whatever_others_wrote(
    tmp_path: Path, capsys: Capsys
) -> None:
    out = tmp_path / "job.html"
    async with served(tmp_path / "home", COUNT) as fed:
        devices = await ended_job(fed)
        await devices[1].bus.publish(devices[1].up + EVIL, b"rubbish")
        await fed.until(lambda: bool(fed.coordinator.intake.dead.ring))
        await answer(fed, capsys, "jobs", "report", "job", str(out))
    page = Page(out)
    assert page.text.count(EVIL) >= 2, "in the config, and as a sender's name"
    assert not {"script", "img", "link", "iframe", "object"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not {name for name in attributes if name.startswith("on") or name in ("src", "href")}
        assert attributes.get("xlink:href", "#").startswith("#")
    assert set(re.findall(r"url\((.)", page.source)) <= {"#"}
    assert "@import" not in page.source
    policy = next(a["content"] for t, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def ends_logged(home: Path) -> int:
    """How many devices were told of the end, by the log on the disk, which may be behind what they heard."""
    journal = open_journal(home)
    entries = [decode_entry(logged.data) for logged in journal.entries()]
    journal.close()
    sent = [e.decode_from_coordinator(entry.inner) for entry in entries if isinstance(entry, Sent)]
    return sum(isinstance(event, e.JobFinished) for event in sent)


async def test_a_report_made_without_a_coordinator_says_the_same(tmp_path: Path, capsys: Capsys) -> None:
    live, dead = tmp_path / "live.html", tmp_path / "dead.html"
    async with served(tmp_path / "home", COUNT) as fed:
        await ended_job(fed)
        await fed.until(lambda: ends_logged(tmp_path / "home") == 2)
        await answer(fed, capsys, "jobs", "report", "job", str(live))
    await answer(fed, capsys, "jobs", "report", "job", str(dead))
    one, two = (re.sub(r"<footer>.*?</footer>", "", path.read_text()) for path in (live, dead))
    assert one != two
    assert one.replace("None since the coordinator started.", "") == two.replace(
        "Counted by a coordinator that serves; none did when this was made.", ""
    )


@pytest.mark.parametrize(
    ("claimed", "shown"),
    [(-2.0, "-2"), (CLAIM_MAX, "1e+15"), (1.7e308, "–"), (-1.7e308, "–"), (float("nan"), "–")],
)
async def test_whatever_a_device_claims_of_its_loss_there_is_a_report(
    tmp_path: Path, capsys: Capsys, claimed: float, shown: str
) -> None:
    out = tmp_path / "job.html"
    async with served(tmp_path / "home", COUNT) as fed:
        await ended_job(fed, loss=claimed)
        await answer(fed, capsys, "jobs", "report", "job", str(out))
    page = Page(out)
    assert page.row("1")[5] == shown
    assert sum(tag == "svg" for tag, _ in page.tags) == (3 if shown == "–" else 4)


def in_sight(figure: Figure) -> list[tuple[int, float]]:
    """The points of the figure's first curve that lie within its axes."""
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    points = axes.lines[0].get_xydata()
    return [(int(x), float(y)) for x, y in np.asarray(points) if low <= y <= high]


@pytest.mark.parametrize("draw", [plots.loss, plots.accuracy])
@pytest.mark.parametrize(
    "heights", [(2.0, 1.0), (1.0, -3.0), (-1.0, -3.0), (-2.0, -2.0), (0.0, 90.0), (1e15, 0.0)]
)
def test_every_point_of_a_curve_is_in_sight(
    draw: Callable[[plots.Curve], Figure], heights: tuple[float, ...]
) -> None:
    curve = list(enumerate(heights))
    figure = draw(curve)
    assert in_sight(figure) == curve
    assert "<svg" in plots.svg(figure)


def test_where_nothing_is_below_zero_a_loss_is_drawn_from_zero_on() -> None:
    assert plots.loss([(0, 2.0), (1, 1.0)]).axes[0].get_ylim()[0] == 0


async def test_a_job_without_a_round_has_a_report_too(tmp_path: Path, capsys: Capsys) -> None:
    out = tmp_path / "job.html"
    async with served(tmp_path / "home", COUNT) as fed:
        await fed.command("submit", spec=spec())
        await answer(fed, capsys, "jobs", "report", "job", str(out))
    page = Page(out)
    assert "No round is finished yet" in page.text
    assert "No device was asked yet" in page.text


def test_without_matplotlib_a_report_is_refused_with_the_remedy(
    tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    assert main(["init", "--dir", str(home)]) == 0
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["jobs", "report", "job", "--dir", str(home)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "install fedbus[report]" in line


def test_for_a_user_without_a_home_nothing_is_said_of_that() -> None:
    """As for the service's user; this process has asked matplotlib already."""
    script = (
        "from coordinator.report.gather import require_plots as go; go(); import coordinator.report.plots"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", script],
        env={**with_our_packages({}), "HOME": "/proc/nonexistent"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
