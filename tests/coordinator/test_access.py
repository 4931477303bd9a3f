"""Users at the embedded broker."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from broker.embedded import EmbeddedBroker
from broker.system import system_ports
from coordinator.access import EmbeddedAccess
from schemas.ids import DeviceId, FederationId


async def test_devices_admitted_at_the_same_time_are_all_admitted(tmp_path: Path) -> None:
    ports = system_ports()
    broker = EmbeddedBroker(ports, tmp_path, 0)
    access = EmbeddedAccess(ports, broker, FederationId(bytes(16)))
    names = [f"press-{number}" for number in range(16)]

    async with asyncio.TaskGroup() as tasks:
        for name in names:
            tasks.create_task(access.admit(DeviceId(name), "a password"), name=name)
    await access.shut_out(DeviceId(names[0]))

    users = [f"{name}@00000000" for name in names[1:]]
    assert sorted(json.loads(broker.users_path.read_text())) == sorted(users)
