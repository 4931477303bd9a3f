"""Devices whose updates are rejected again and again for what they held are left alone for some rounds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from coordinator import views
from coordinator.cli.main import main
from coordinator.effects import Fold
from coordinator.facts import DeviceQuarantined, DeviceReleased
from coordinator.inputs import Release
from coordinator.turn import CommandRefused
from schemas import events as e
from tests.coordinator.drive import Drive, checked, job_spec
from tests.replay.history import found, spill
from tests.sim import virtual_loop
from tests.sim.machine import sim_ports
from tests.standin import federation, spec

BAD = "finite: the update holds NaN, infinity or numbers beyond 1e19"
AFTER, ROUNDS = 2, 3


def started(devices: str = "abc", *, after: int = AFTER) -> Drive:
    drive = Drive()
    drive.enrol(*devices)
    spec = job_spec(rounds=20, cohort=len(devices), min_reports=2)
    drive.submit(replace(spec, quarantine_after=after, quarantine_rounds=ROUNDS))
    drive.settle()
    return drive


def play(drive: Drive, problems: dict[str, str]) -> None:
    """A round in which every device that is asked answers; ``problems`` are found in their updates."""
    for device in drive.asked():
        drive.update(device)
    while drive.pending:
        order = drive.pending.pop(0)
        told = checked(order, problems.get(order.device, "")) if isinstance(order, Fold) else None
        outcome = told or drive.work(order)
        if outcome is not None:
            drive.step(outcome)


def test_after_so_many_rejections_in_a_row_a_device_is_not_asked_for_so_many_rounds() -> None:
    drive = started()
    asked = []
    for _ in range(2 + ROUNDS + 1):
        asked.append("".join(drive.asked()))
        play(drive, {"c": BAD})
    assert asked == ["abc", "abc", *["ab"] * ROUNDS, "abc"]
    (fact,) = drive.recorded(DeviceQuarantined)
    assert (fact.job, fact.device, fact.until, fact.reason) == ("job", "c", 2 + ROUNDS, BAD)


def test_one_that_is_folded_ends_the_row() -> None:
    drive = started()
    for bad in ("c", "", "c", "", "c"):
        play(drive, {bad: BAD})
    assert not drive.recorded(DeviceQuarantined)


@pytest.mark.parametrize("text", ["key: the request's key was destroyed", "late: round 1 was closed"])
def test_what_is_not_the_devices_fault_counts_nothing(text: str) -> None:
    drive = started()
    for _ in range(AFTER + 1):
        play(drive, {"c": text})
    assert drive.asked() == ["a", "b", "c"]
    assert not drive.state.jobs["job"].strikes


def test_a_job_that_says_nothing_of_it_keeps_nobody_out() -> None:
    drive = started(after=0)
    for _ in range(4):
        play(drive, {"c": BAD})
    assert drive.asked() == ["a", "b", "c"]
    assert not drive.state.jobs["job"].strikes


def test_an_operator_lifts_it_and_the_row_begins_anew() -> None:
    drive = started()
    for _ in range(AFTER):
        play(drive, {"c": BAD})
    assert drive.asked() == ["a", "b"]
    drive.step(Release(device="c"))
    assert drive.recorded(DeviceReleased) == [DeviceReleased(device="c")]
    play(drive, {})
    assert drive.asked() == ["a", "b", "c"]
    play(drive, {"c": BAD})
    assert drive.asked() == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("device", "text"), [("z", "there is no device z"), ("a", "is in no job's quarantine")]
)
def test_who_is_in_none_cannot_be_released(device: str, text: str) -> None:
    drive = started()
    with pytest.raises(CommandRefused, match=text):
        drive.step(Release(device=device))


def test_with_too_few_left_the_round_waits_until_the_operator_lifts_it() -> None:
    drive = started("ab")
    play(drive, {"b": BAD})  # one report is too few: the round asks again at its deadline
    drive.tick(1_000.0)
    drive.settle()
    play(drive, {"b": BAD})
    assert drive.recorded(DeviceQuarantined)
    drive.tick(1_000.0)
    drive.settle()
    assert drive.asked() == []
    drive.step(Release(device="b"))
    drive.tick(1_000.0)
    drive.settle()
    assert drive.asked() == ["b"]


def test_views_name_the_quarantine_while_it_holds() -> None:
    drive = started()
    for _ in range(AFTER):
        play(drive, {"c": BAD})
    shown = {view["device"]: view["quarantine"] for view in views.devices(drive.state)}
    assert shown == {"a": {}, "b": {}, "c": {"job": AFTER + ROUNDS}}
    view = views.job(drive.state, "job")
    assert view is not None
    assert view["quarantine"] == {"c": AFTER + ROUNDS}
    for _ in range(ROUNDS):
        play(drive, {})
    assert not any(view["quarantine"] for view in views.devices(drive.state))


def test_the_command_line_names_it_and_the_way_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ports, home = sim_ports(), Path("/c")

    async def play() -> None:
        async with federation(home, ports, 4) as fed:
            a, b = [await fed.device(name) for name in ("press-07", "press-08")]
            told = spec(rounds=3, cohort=2, quarantine_after=1, quarantine_rounds=5)
            await fed.command("submit", spec=told)
            bad, good = await a.next(e.TrainingRequest), await b.next(e.TrainingRequest)
            await a.answer(bad, np.full(4, np.nan, np.float32))
            await a.next(e.Verdict)
            await b.answer(good, np.ones(4, np.float32))
            await fed.until(lambda: fed.job("job").rounds_done == 1)

    virtual_loop.run(play)
    spill(dict(found(ports.files, home)), tmp_path)
    capsys.readouterr()
    assert main(["devices", "list", "--dir", str(tmp_path)]) == 0
    assert "job up to round 6" in capsys.readouterr().out
    assert main(["jobs", "show", "job", "--dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "press-07: in quarantine up to round 6" in shown
    assert f"`fedbus-coordinator devices release press-07 --dir {tmp_path}`" in shown.replace("\n", " ")
