"""The outbox on a slow link, and on one that breaks: what had arrived is never sent again."""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import pairwise
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from broker.memory import MemoryBus
from broker.transfer import Credits
from edge_agent import identity as identity_module
from edge_agent.app import Agent
from edge_agent.ledger import RequestState
from edge_agent.outbox import Entry, SealedUpdate
from schemas import chunks
from schemas import events as e
from schemas.envelope import Clear, Seal
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
            coordinator.grants = True
            await settled(party, RequestState.RECEIPTED)

    run(play)


COUNT = 6
CLEAR = Clear(1, 1, bytes(16), bytes(32), bytes(32), 1_000 * COUNT, 1_000, COUNT)
Message = tuple[str, object]


class Link(RuleBasedStateMachine):
    """An outbox entry and a coordinator, with a broker that keeps order between them. Either side may be as
    slow as it likes, both are killed, connections break with a message in doubt, the broker delivers again
    what a killed coordinator had not acknowledged, and may lose what it took."""

    def __init__(self) -> None:
        super().__init__()
        self.seq = 0
        self.have: set[int] = set()
        self.up: deque[Message] = deque()
        self.down: deque[Message] = deque()
        self.now_s = 0.0
        self.the_device_starts()
        self.the_coordinator_starts()

    @rule()
    def the_device_starts(self) -> None:
        """It remembers nothing of what it sent."""
        self.entry = Entry(
            Path("/x"), SealedUpdate(job="j", request=1, clear=CLEAR, seal=Seal(b"", b"", b""))
        )
        self.offer()

    @rule()
    def the_coordinator_starts(self) -> None:
        """It remembers chunks, and neither credit nor which offers it answered."""
        self.credits = Credits(bytes_max=3_000, lease_s=60.0)
        self.answered = -1

    @rule()
    def offer(self) -> None:
        self.seq += 1
        self.entry.offer(self.seq)
        self.up.append(("offer", self.seq))

    @precondition(lambda self: self.entry.granted)
    @rule()
    def send(self) -> None:
        self.up.append(("chunk", self.next_chunk()))

    def next_chunk(self) -> int:
        index = self.entry.next_chunk()
        assert index not in self.have, f"chunk {index} was sent again, though it had arrived"
        return index

    @rule(arrived=st.booleans())
    def the_devices_connection_breaks(self, arrived: bool) -> None:
        if self.entry.granted:
            index = self.next_chunk()
            if arrived:
                self.up.append(("chunk", index))
        if self.entry.read:
            self.offer()

    @precondition(lambda self: self.up)
    @rule(killed=st.booleans())
    def the_coordinator_reads(self, killed: bool = False) -> None:
        what, number = self.up[0]
        assert isinstance(number, int)
        if what == "chunk":
            self.have.add(number)
            self.credits.arrived("d", b"t", number, self.now_s)
        elif number > self.answered:
            self.answered = number
            self.down.append(("read", number))
            self.credits.offer("d", b"t", set(range(COUNT)) - self.have, 1_000, self.now_s)
        self.grant()
        if killed:
            self.the_coordinator_starts()  # and gets the same message again
        else:
            self.up.popleft()

    @precondition(lambda self: self.down)
    @rule()
    def the_device_reads(self) -> None:
        what, value = self.down.popleft()
        if what == "read":
            assert isinstance(value, int)
            self.entry.was_read(value)
        else:
            assert isinstance(value, tuple)
            self.entry.grant(value)

    @rule(up=st.booleans())
    def the_broker_loses_what_it_took_last(self, up: bool) -> None:
        queue = self.up if up else self.down
        if queue:
            queue.pop()

    @rule(seconds=st.floats(0.0, 100.0))
    def time_passes(self, seconds: float) -> None:
        self.now_s += seconds
        self.credits.expire(self.now_s)
        self.grant()

    def grant(self) -> None:
        self.down.extend(("grant", grant.chunks) for grant in self.credits.grant(self.now_s))

    @invariant()
    def credit_is_bounded(self) -> None:
        assert 0 <= self.credits.granted_bytes <= self.credits.bytes_max

    def teardown(self) -> None:
        """From here on nothing breaks, and the device offers whenever nothing is left to do: all arrives."""
        for _ in range(COUNT + 1):
            while self.up or self.down or self.entry.granted:
                if self.up:
                    self.the_coordinator_reads()
                elif self.down:
                    self.the_device_reads()
                else:
                    self.send()
            if len(self.have) == COUNT:
                return
            self.offer()
        raise AssertionError(f"{set(range(COUNT)) - self.have} never arrived")


TestLink = Link.TestCase
