"""A device on a thin line that stands now and then: what is on its way is not taken for lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

from broker.bus import Connected, Delivery
from broker.system import system_ports
from schemas.chunks import MAGIC
from schemas.limits import CHUNK_BYTES_CHOSEN_MIN
from tests.residents import Resident
from tests.sim import virtual_loop
from tests.sim.machine import SimClock, SimOffload
from tests.standin import Federation, spec
from tests.watch import Watch, WatchedBus

BYTES_PER_S = 50_000
CHUNKS = 40
COUNT = CHUNKS * CHUNK_BYTES_CHOSEN_MIN // 4
STANDS_EVERY, STANDS_S = 8, 2.75  # chunks, seconds


class ThinLine(WatchedBus):
    """Model chunks take as long as the line is thin; after some of them it stands."""

    async def incoming(self) -> AsyncIterator[Delivery | Connected]:
        came = 0
        async for item in super().incoming():
            if not isinstance(item, Connected) and "/down/" in item.topic and item.payload.startswith(MAGIC):
                came += 1
                await asyncio.sleep(len(item.payload) / BYTES_PER_S)
                if came % STANDS_EVERY == 0:
                    await asyncio.sleep(STANDS_S)
            yield item


def test_no_model_chunk_is_sent_again_because_the_line_stood(tmp_path: Path) -> None:
    watch = Watch()

    async def run() -> None:
        ports = replace(system_ports(), clock=SimClock(), offload=SimOffload())
        fed = Federation(tmp_path / "c", ports, COUNT, around=lambda bus: ThinLine(bus, watch))
        async with asyncio.TaskGroup() as tasks:
            fed.start(tasks)
            device = Resident(fed, "press-07", COUNT)
            await device.enrol()
            agent = tasks.create_task(device.run(), name="agent")
            job = spec(chunk_bytes=CHUNK_BYTES_CHOSEN_MIN, deadline_s=36_000.0, update_norm_max=1e9)
            await fed.command("submit", spec=job)
            while device.ledger().verdict is None:  # noqa: ASYNC110 - virtual time
                await asyncio.sleep(1.0)
            agent.cancel()
            await fed.stop()

    virtual_loop.run(run)
    assert watch.came("down") == CHUNKS
    assert set(watch.count("down")) == {1}
