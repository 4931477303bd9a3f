"""The outbox on a slow link."""

from __future__ import annotations

import asyncio
from itertools import pairwise

from broker.memory import MemoryBus
from edge_agent import identity as identity_module
from edge_agent.app import Agent
from edge_agent.ledger import RequestState
from schemas import chunks
from schemas import events as e
from schemas.limits import RESEND_CAP_S
from tests.edge_agent.party import HERE, LARGE, Party, settled, tiny_model
from tests.sim.virtual_loop import run

CHUNK_S = 25.0


class SlowBus(MemoryBus):
    """A chunk takes its time on the way to the broker."""

    async def publish(self, topic: str, payload: bytes) -> None:
        if payload.startswith(chunks.MAGIC):
            await asyncio.sleep(CHUNK_S)
        await super().publish(topic, payload)


class SlowParty(Party):
    def agent(self) -> Agent:
        identity = identity_module.load(self.machine.files, HERE)
        bus = SlowBus(self.broker, identity.credentials(), [identity.down_topic])
        return Agent(HERE, self.config, self.machine.ports, bus, identity, installed=lambda: ["vision"])


def test_an_update_is_offered_again_between_chunks_that_take_long_when_nothing_is_granted() -> None:
    async def play() -> None:
        party = SlowParty()
        async with party.coordinator() as coordinator, party.device():
            coordinator.grants = False
            await coordinator.request(tiny_model(party.federation, count=LARGE))
            times: list[float] = []
            for count in (1, 2, 3, 4):
                await coordinator.until(lambda wanted=count: len(coordinator.offers) >= wanted)  # type: ignore[misc]
                times.append(asyncio.get_running_loop().time())
                if count == 1:
                    offer = coordinator.offers[0]
                    indexes = list(range(offer.clear.chunks))
                    assert len(indexes) * CHUNK_S > 4 * RESEND_CAP_S
                    await coordinator.send(e.Grant(transfer=offer.transfer, chunks=indexes))
            assert all(later - earlier <= RESEND_CAP_S + CHUNK_S for earlier, later in pairwise(times))
            assert len(coordinator.chunks[offer.transfer]) < len(indexes), "they came while it was sending"
            await settled(party, RequestState.RECEIPTED)

    run(play)
