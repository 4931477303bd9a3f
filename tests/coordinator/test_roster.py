"""The list of a federation's users at its broker."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from broker.system import system_ports
from coordinator.broker_admin.mosquitto import users_of
from coordinator.broker_admin.roster import LOCK, AccessError, Roster, matches
from schemas.ids import COORDINATOR, DeviceId, FederationId
from tests.brokers import require

PRESS = DeviceId("press-07")


def roster(directory: Path) -> Roster:
    return Roster(system_ports(), directory)


def test_a_password_that_is_known_already_changes_nothing(tmp_path: Path) -> None:
    known = roster(tmp_path)
    with known.locked():
        known.put(PRESS, "right")
        before = known.read()
        known.put(PRESS, "right")
        assert known.read() == before
        known.put(PRESS, "another")
    assert matches(known.read()[PRESS], "another")
    assert not matches(known.read()[PRESS], "right")


def test_a_stored_password_is_what_mosquittos_own_program_writes(tmp_path: Path) -> None:
    """The same form, field by field: `mosquitto_passwd` never shows its salt's source."""
    require("mosquitto")
    theirs = tmp_path / "passwd"
    subprocess.run(
        ["mosquitto_passwd", "-b", "-c", str(theirs), "press-07", "right"], check=True, capture_output=True
    )
    known = roster(tmp_path)
    with known.locked():
        known.put(PRESS, "right")
    ours = known.read()[PRESS].mosquitto.split("$")
    wanted = theirs.read_text().strip().partition(":")[2].split("$")
    assert ours[:3] == wanted[:3]
    assert [len(part) for part in ours] == [len(part) for part in wanted]


def test_one_that_is_gone_is_removed_once(tmp_path: Path) -> None:
    known = roster(tmp_path)
    with known.locked():
        known.put(PRESS, "right")
        for _ in range(2):
            known.remove(PRESS)
    assert known.read() == {}


def test_who_else_changes_it_is_named(tmp_path: Path) -> None:
    known = roster(tmp_path)
    with known.locked(), pytest.raises(AccessError, match=LOCK), roster(tmp_path).locked():
        pass


def test_a_damaged_list_is_named_with_the_remedy(tmp_path: Path) -> None:
    known = roster(tmp_path)
    with known.locked():
        (tmp_path / "broker" / "roster.json").write_text('{"press-07": 1}')
    with pytest.raises(AccessError, match=r"roster\.json: damaged .* restore it from a backup"):
        known.read()


def test_no_device_can_have_the_name_of_another_user(tmp_path: Path) -> None:
    """Two devices, the coordinator and its probes: every user once, and no slash in a device's name."""
    known = roster(tmp_path)
    with known.locked():
        for name in (COORDINATOR, DeviceId("coordinator-probe"), PRESS):
            known.put(name, "right")
    names = [user.name for user in users_of(FederationId(bytes(16)), known.read())]
    assert len(names) == len(set(names)) == 5
    assert sorted(name for name in names if "/" in name) == [
        "coordinator@00000000/probe",
        "coordinator@00000000/probe-away",
    ]
