"""Users at the broker, whichever kind it is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from broker.embedded import EmbeddedBroker
from broker.system import system_ports
from coordinator.broker_admin import access
from coordinator.broker_admin.access import Access, EmbeddedAccess, ListedAccess
from coordinator.broker_admin.roster import AccessError, Login, Roster, matches
from schemas.ids import DeviceId, FederationId

PRESS = DeviceId("press-07")


class UnreachableUsers:
    """A broker that cannot be told for a while."""

    overhears = False

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.known: set[DeviceId] = set()
        self.told: list[DeviceId] = []

    def update(self, logins: Mapping[DeviceId, Login], changed: DeviceId) -> str:
        if self.failures:
            self.failures -= 1
            raise AccessError("the broker cannot be reached")
        self.known = set(logins)
        self.told.append(changed)
        return f"{changed} is up to you"


@pytest.mark.parametrize("kind", ["embedded", "listed"])
async def test_devices_admitted_at_the_same_time_are_all_admitted(kind: str, tmp_path: Path) -> None:
    ports = system_ports()
    broker = EmbeddedBroker(ports, tmp_path / "broker", 0)
    ports.files.make_dir(tmp_path / "broker")
    users: Access
    if kind == "embedded":
        users = EmbeddedAccess(ports, broker, FederationId(bytes(16)))
    else:
        users = ListedAccess(ports, tmp_path, UnreachableUsers(0))
    names = [f"press-{number}" for number in range(16)]

    async with asyncio.TaskGroup() as tasks:
        for name in names:
            tasks.create_task(users.admit(DeviceId(name), "a password"), name=name)
    await users.shut_out(DeviceId(names[0]))

    if kind == "embedded":
        found = [name.partition("@")[0] for name in json.loads(broker.users_path.read_text())]
    else:
        found = list(Roster(ports, tmp_path).read())
    assert sorted(found) == sorted(names[1:])


async def test_what_is_left_to_the_operator_is_told(tmp_path: Path) -> None:
    users = ListedAccess(system_ports(), tmp_path, UnreachableUsers(0))
    assert await users.admit(PRESS, "right") == "press-07 is up to you"


async def test_an_invitation_that_the_broker_was_not_told_of_fails(tmp_path: Path) -> None:
    users = ListedAccess(system_ports(), tmp_path, UnreachableUsers(1))
    with pytest.raises(AccessError, match="cannot be reached"):
        await users.admit(PRESS, "right")
    await users.admit(PRESS, "another")
    assert matches(Roster(system_ports(), tmp_path).read()[PRESS], "another")


async def test_a_revoked_device_is_shut_out_once_the_broker_can_be_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "RESEND_FIRST_S", 0.01)
    broker = UnreachableUsers(0)
    users = ListedAccess(system_ports(), tmp_path, broker)
    await users.admit(PRESS, "right")
    broker.failures = 3
    await users.shut_out(PRESS)
    assert (broker.failures, broker.known) == (0, set())


async def test_one_that_was_invited_again_meanwhile_stays(tmp_path: Path) -> None:
    broker = UnreachableUsers(0)
    users = ListedAccess(system_ports(), tmp_path, broker)
    await users.admit(PRESS, "right")
    broker.failures = 1
    async with asyncio.TaskGroup() as tasks:
        farewell = tasks.create_task(users.shut_out(PRESS), name="farewell")
        while broker.failures:  # noqa: ASYNC110 - it is counted down in a thread
            await asyncio.sleep(0)
        await users.admit(PRESS, "another")
        await farewell
    assert broker.known == {PRESS}


async def test_a_broker_that_may_miss_what_it_is_told_is_told_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "AGAIN_S", 0.01)
    broker = UnreachableUsers(0)
    broker.overhears = True
    await ListedAccess(system_ports(), tmp_path, broker).admit(PRESS, "right")
    assert broker.told == [PRESS, PRESS]


async def test_a_revocation_is_told_twice_too_but_not_what_was_told_before_a_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(access, "AGAIN_S", 0.01)
    monkeypatch.setattr(access, "RESEND_FIRST_S", 0.01)
    broker = UnreachableUsers(0)
    users = ListedAccess(system_ports(), tmp_path, broker)
    await users.admit(PRESS, "right")
    broker.overhears, broker.failures = True, 1
    await users.shut_out(PRESS)
    assert broker.told == [PRESS] * 3
    await users.shut_out(PRESS)
    assert broker.told == [PRESS] * 4
