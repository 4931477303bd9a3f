"""What a probe makes of what happens to its session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from broker.bus import Connected, Credentials, Delivery
from broker.memory import MemoryBroker, MemoryBus
from coordinator.doctor import probes
from coordinator.doctor.probes import Session


@pytest.mark.parametrize(("connections", "shared"), [(0, False), (1, False), (2, True)])
async def test_a_session_that_broke_once_is_still_its_own(
    connections: int, shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probes, "SHARED_S", 0.05)

    async def arrivals() -> AsyncIterator[Delivery | Connected]:
        for count in range(connections):
            yield Connected(count + 2)
        await asyncio.Event().wait()

    session = Session(MemoryBus(MemoryBroker(), Credentials("probe"), []), arrivals(), [])
    assert await session.stirs() is shared
