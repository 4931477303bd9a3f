"""64 MiB to a device and 64 MiB back over every transport, while chunks are lost, doubled and reordered.

It is the product's own transfer: a real coordinator and a real agent.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from broker.bus import Bus
from broker.faults import FaultPlan, Faults, FaultyBus
from broker.system import system_ports
from coordinator.config import Config
from coordinator.state import JobState
from schemas.chunks import MAGIC, parse_chunk
from tests.contract.transports import RealTransport, Transport
from tests.residents import Resident
from tests.standin import IN_MEMORY, Federation, spec

COUNT = 16 * 1024 * 1024  # parameters of 4 bytes
CHUNK_BYTES = 256 * 1024
CHUNKS = 256
LOST = {25, 26, 90, 140, 255}
PATIENCE_S = 200.0
ODD = Faults(duplicate=0.1, hold=0.2, hold_s_max=0.02)


class Wire(FaultyBus):
    """Doubles and reorders what passes; some chunks are lost when they are sent for the first time."""

    def __init__(self, bus: Bus, rng: random.Random) -> None:
        super().__init__(bus, rng, FaultPlan(sending=ODD, receiving=ODD))
        self.sent: Counter[int] = Counter()
        """How often each chunk was sent."""

    async def publish(self, topic: str, payload: bytes) -> None:
        if payload.startswith(MAGIC):
            index = parse_chunk(payload).index
            self.sent[index] += 1
            if index in LOST and self.sent[index] == 1:
                return
        await super().publish(topic, payload)


@pytest.mark.live
@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_64_mib_arrive_whole_both_ways_although_chunks_are_lost_doubled_and_reordered(
    transport: Transport, tmp_path: Path
) -> None:
    rng, wires = random.Random(7), list[Wire]()

    def faulty(bus: Bus) -> Bus:
        wires.append(Wire(bus, random.Random(rng.random())))
        return wires[-1]

    config, admit = IN_MEMORY, None
    if isinstance(transport, RealTransport):
        config = Config(broker=f"{transport.scheme}://127.0.0.1:{transport.port}")
        admit = transport.admit
    federation = Federation(tmp_path / "c", system_ports(), COUNT, config=config, admit=admit, around=faulty)
    resident = Resident(federation, "d0", COUNT)
    async with asyncio.timeout(PATIENCE_S), asyncio.TaskGroup() as tasks:
        federation.start(tasks)
        await resident.enrol()
        agent = tasks.create_task(resident.run(), name="agent")
        await federation.command("submit", spec=spec(chunk_bytes=CHUNK_BYTES, update_norm_max=1e9))
        await federation.until(lambda: "job" in federation.coordinator.ledger.state.jobs)
        while federation.job("job").state is not JobState.FINISHED:  # noqa: ASYNC110 - it sets no event
            await asyncio.sleep(0.05)
        agent.cancel()
        await federation.stop()
    version = federation.job("job").versions[-1]
    model = np.fromfile(tmp_path / "c/models/job" / f"{version.model.hex()}.model", "<f4")
    assert (len(model), len(np.unique(model))) == (COUNT, 1)
    assert model[0] != 0.0
    for sent in (wires[0].sent, wires[-1].sent):
        assert set(sent) == set(range(CHUNKS))
        assert min(sent[index] for index in LOST) > 1
