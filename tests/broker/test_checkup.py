"""What the doctors of both sides examine alike: clock, disk, secret files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from broker import checkup
from broker.checkup import Finding, Level
from broker.reach import dated

NOW_S = checkup.RELEASED_WALL_S + 100 * 86_400
DAY_S = 86_400.0


@pytest.mark.parametrize("behind_s", [DAY_S, 3_600.0])
def test_a_clock_that_shows_less_than_what_has_passed_is_a_fault(behind_s: float) -> None:
    found = checkup.clock(NOW_S - behind_s, NOW_S, "the newest entry of the journal")
    assert found.level is Level.FAULT
    assert "before the newest entry of the journal" in found.measured
    assert "timedatectl set-ntp true" in found.remedy


def test_a_clock_from_before_this_release_is_a_fault_even_when_nothing_is_known() -> None:
    found = checkup.clock(0.0, 0.0, "the newest entry of the journal")
    assert found.level is Level.FAULT
    assert "before this release of fedbus" in found.measured


def test_a_clock_that_is_a_little_behind_is_no_fault() -> None:
    assert checkup.clock(NOW_S - 1, NOW_S, "the newest entry").level is Level.OK


@pytest.mark.parametrize(("off_s", "words"), [(DAY_S, "24 h ahead of"), (-2 * DAY_S, "2 days behind")])
def test_a_clock_that_differs_from_the_brokers_is_a_fault(off_s: float, words: str) -> None:
    found = checkup.clock_compared(NOW_S + off_s, NOW_S, "RabbitMQ's machine")
    assert found.level is Level.FAULT
    assert f"{words} RabbitMQ's machine" in found.measured
    assert checkup.clock_compared(NOW_S + 1, NOW_S, "RabbitMQ's machine").level is Level.OK


def test_the_kernels_clock_is_asked_and_never_set() -> None:
    assert checkup.clock_source().level is not Level.FAULT


def test_a_disk_without_room_is_a_fault_and_one_with_little_a_warning(tmp_path: Path) -> None:
    assert checkup.disk(tmp_path, fault_bytes=1 << 62).level is Level.FAULT
    little = checkup.disk(tmp_path, fault_bytes=0, warning_bytes=1 << 62)
    assert little.level is Level.WARNING
    assert str(tmp_path) in little.remedy
    assert checkup.disk(tmp_path, fault_bytes=0, warning_bytes=0).level is Level.OK


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_secret_that_others_may_read_is_a_fault(tmp_path: Path, mode: int) -> None:
    secret = tmp_path / "root.key"
    secret.touch(0o600)
    assert checkup.secrets_kept([secret], "chmod").level is Level.OK
    secret.chmod(mode)
    found = checkup.secrets_kept([secret], "chmod")
    assert (found.level, found.remedy) == (Level.FAULT, "chmod")
    assert str(secret) in found.measured
    assert f"{mode:04o}" in found.measured


def test_a_secret_that_is_gone_is_a_fault(tmp_path: Path) -> None:
    assert checkup.secrets_kept([tmp_path / "root.key"], "restore").level is Level.FAULT


@pytest.mark.parametrize(
    ("left_s", "level", "words"),
    [
        (400 * DAY_S, Level.OK, "400 days left"),
        (5 * DAY_S, Level.WARNING, "5 days left"),
        (-3 * DAY_S, Level.FAULT, "expired 3 days ago"),
    ],
)
def test_a_certificate_is_judged_by_how_long_it_holds(left_s: float, level: Level, words: str) -> None:
    found = dated(NOW_S - 10 * DAY_S, NOW_S + left_s, NOW_S)
    assert found.level is level
    assert words in found.measured
    assert bool(found.remedy) == (level is not Level.OK)


def test_a_certificate_from_the_future_puts_the_clock_in_doubt() -> None:
    found = dated(NOW_S + DAY_S, NOW_S + 2 * DAY_S, NOW_S)
    assert found.level is Level.FAULT
    assert "clock" in found.remedy


def test_findings_are_one_document_for_programs_and_lines_for_people() -> None:
    findings = [Finding("disk", Level.OK, "much"), Finding("clock", Level.FAULT, "late", "set it")]
    document = json.loads(json.dumps(checkup.document(findings)))
    assert document["ok"] is False
    assert document["findings"][1] == {
        "name": "clock",
        "level": "fault",
        "measured": "late",
        "remedy": "set it",
    }
    assert len(checkup.lines(findings[0])) == 1
    assert checkup.lines(findings[1])[1].endswith("set it")
    assert checkup.summary(findings) == "1 ok, 1 fault"


def test_an_error_of_ours_is_told_as_what_was_found_and_what_to_do() -> None:
    found = checkup.told("login", ValueError("broker x: user y refused; z; check the password"))
    assert (found.measured, found.remedy) == ("broker x: user y refused; z", "check the password")
    assert checkup.told("login", ValueError("no more")).measured == "no more"


def test_that_the_bus_connects_again_is_no_remedy() -> None:
    broken = ValueError("broker x: the connection broke; check its rules; the bus connects again")
    found = checkup.told("login", broken)
    assert (found.measured, found.remedy) == ("broker x: the connection broke", "check its rules")
    found = checkup.told("login", ValueError("broker x: closed; the bus connects again"))
    assert found.measured == "broker x: closed"
    assert "log" in found.remedy
