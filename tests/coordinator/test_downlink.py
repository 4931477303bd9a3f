"""Models on their way to devices: bounded over all of them, shared, given back, not sent twice in vain."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from broker.bus import Bus, BusLost
from coordinator.downlink import DEVICE_PULLS_MAX
from schemas import events as e
from schemas.chunks import HEAD, MAGIC, parse_chunk
from schemas.limits import (
    CHUNK_BYTES_CHOSEN_MIN,
    CHUNK_OVERHEAD_BYTES,
    GRANT_CHUNKS_MAX,
    PULL_CHUNKS_MAX,
    RESEND_CAP_S,
    RESEND_FIRST_S,
)
from schemas.models import open_layout, open_manifest
from tests.coordinator.hostile import told
from tests.sim import virtual_loop
from tests.sim.machine import sim_ports
from tests.standin import Federation, StandIn, federation, spec
from tests.watch import Watch, WatchedBus

CHUNKS = 40
SEALED_BYTES = CHUNK_BYTES_CHOSEN_MIN + CHUNK_OVERHEAD_BYTES
COUNT = CHUNKS * CHUNK_BYTES_CHOSEN_MIN // 4
CREDIT_CHUNKS = 20


class Fleet:
    """Devices that were asked to train a model of `CHUNKS` chunks; the credit is `CREDIT_CHUNKS` chunks."""

    def __init__(self, fed: Federation, devices: list[StandIn]) -> None:
        self.fed = fed
        self.devices = devices
        self.transfer = b""

    @property
    def down(self) -> Any:
        return self.fed.coordinator._dispatch.downlink.credits

    def limit_credit(self) -> None:
        self.down.bytes_max = CREDIT_CHUNKS * SEALED_BYTES

    async def pull(self, device: StandIn, *chunks: int) -> None:
        await device.say(e.ChunkPull(transfer=self.transfer, chunks=list(chunks)))

    async def looked_at(self) -> None:
        """Wait until all that was said before was decided, and what that brought about was sent."""
        for _ in range(3):
            assert self.devices[0].member is not None
            await self.devices[0].say(e.ChallengeAnswer(challenge=self.devices[0].member.challenge))
            await told(self.devices[0], e.Enrolled)
            await asyncio.sleep(0.1)

    def queued(self, device: StandIn) -> list[int]:
        """Chunks that the broker holds for a device."""
        session = self.fed.broker._session(device.id)
        payloads = [payload for _, payload in session.queue] + [held.payload for held in session.unacked]
        return [parse_chunk(payload).index for payload in payloads if payload.startswith(MAGIC)]

    def in_broker_bytes(self) -> int:
        sessions = self.fed.broker._sessions.values()
        return sum(
            len(payload) - HEAD.size
            for session in sessions
            for _, payload in session.queue
            if payload.startswith(MAGIC)
        )

    async def chunk(self, device: StandIn) -> int:
        """The next chunk that a device gets."""
        while True:
            heard = await device.hear()
            if isinstance(heard, bytes):
                return parse_chunk(heard).index
            device.heard.append(heard)


class HangingUp(WatchedBus):
    """A broker that hangs up on whoever sends ``device`` a chunk, in place of an answer."""

    device = "d1"

    async def publish(self, topic: str, payload: bytes) -> None:
        await super().publish(topic, payload)
        if payload.startswith(MAGIC) and topic.endswith(f"/{self.device}"):
            await asyncio.sleep(1.0)
            raise BusLost("the broker closed it")


@asynccontextmanager
async def fleet(count: int, around: Callable[[Bus], Bus]) -> AsyncIterator[Fleet]:
    async with federation(Path("/c"), sim_ports(), COUNT, around=around) as fed:
        made = Fleet(fed, [await fed.device(f"d{index}") for index in range(count)])
        made.limit_credit()
        job = spec(cohort=count, chunk_bytes=CHUNK_BYTES_CHOSEN_MIN, deadline_s=100_000.0)
        await fed.command("submit", spec=job)
        for device in made.devices:
            request = await told(device, e.TrainingRequest)
            assert device.member is not None
            signer = device.member.key_set.signing
            layout = open_layout(request.layout, signer, "job")
            manifest = open_manifest(request.manifest, signer, device.federation, "job", layout)
            assert len(manifest.chunks) == CHUNKS
            made.transfer = manifest.transfer()
        yield made


def virtual(
    count: int,
    body: Callable[[Fleet], Coroutine[Any, Any, None]],
    around: Callable[[Bus], Bus] = lambda bus: bus,
) -> None:
    async def run() -> None:
        async with fleet(count, around) as made:
            await body(made)

    virtual_loop.run(run)


def test_devices_that_pull_and_do_not_read_hold_no_more_than_the_credit_in_the_broker() -> None:
    async def body(made: Fleet) -> None:
        for device in made.devices[1:]:
            await made.pull(device, *range(PULL_CHUNKS_MAX))
        await made.looked_at()
        assert made.in_broker_bytes() == CREDIT_CHUNKS * SEALED_BYTES == made.down.granted_bytes
        assert all(len(made.queued(device)) <= 1 for device in made.devices[1:]), "none showed progress yet"

    virtual(2 * CREDIT_CHUNKS, body)


def test_a_device_that_keeps_up_gets_ever_more_at_a_time_and_its_credit_back_when_it_is_done() -> None:
    async def body(made: Fleet) -> None:
        device, have, windows = made.devices[1], set[int](), list[int]()
        while len(have) < CHUNKS:
            missing = [index for index in range(CHUNKS) if index not in have]
            await made.pull(device, *missing[:PULL_CHUNKS_MAX])
            await made.looked_at()
            came = [await made.chunk(device) for _ in made.queued(device)]
            assert not have & set(came), "sent again"
            windows.append(len(came))
            have |= set(came)
        assert windows[:2] == [1, 2]
        assert max(windows) <= max(CREDIT_CHUNKS // 8, 1)
        assert made.down.granted_bytes > 0
        await made.pull(device)
        await made.looked_at()
        assert (made.down.granted_bytes, made.down.lines) == (0, {})

    virtual(2, body)


def test_what_was_sent_and_is_asked_for_again_without_progress_is_sent_again_one_chunk_first() -> None:
    async def body(made: Fleet) -> None:
        made.down.bytes_max = 1000 * SEALED_BYTES
        device = made.devices[1]
        await made.pull(device, *range(16))
        assert await made.chunk(device) == 0
        await made.pull(device, *range(1, 17))
        assert {await made.chunk(device), await made.chunk(device)} == {1, 2}
        await made.pull(device, *range(1, 17))  # on its way before those came
        await made.looked_at()
        assert made.queued(device) == []
        await asyncio.sleep(RESEND_FIRST_S)
        await made.pull(device, *range(1, 17))  # they were lost
        await made.looked_at()
        assert made.queued(device) == [1]
        assert made.down.granted_bytes == SEALED_BYTES

    virtual(2, body)


def test_who_waits_for_credit_keeps_the_place_when_asking_again() -> None:
    async def body(made: Fleet) -> None:
        made.down.bytes_max = SEALED_BYTES
        first, second, third = made.devices[1:]
        for device in (first, second, third, second, second):
            await made.pull(device, 0, 1)
        await made.looked_at()
        assert [made.queued(device) for device in (first, second, third)] == [[0], [], []]
        await made.pull(first)
        assert await made.chunk(second) == 0
        await made.pull(second)
        assert await made.chunk(third) == 0

    virtual(4, body)


def test_a_silent_devices_credit_lapses_and_it_gets_nothing_more_until_it_speaks() -> None:
    async def body(made: Fleet) -> None:
        made.down.bytes_max = SEALED_BYTES
        silent, waiting = made.devices[1:]
        await made.pull(silent, 0, 1, 2)
        await made.pull(waiting, 0, 1, 2)
        await asyncio.sleep(RESEND_CAP_S + 10)
        assert made.queued(silent) == [0]
        assert await made.chunk(waiting) == 0
        await made.pull(waiting)
        await asyncio.sleep(10 * RESEND_CAP_S)
        assert made.queued(silent) == [0]
        assert made.down.granted_bytes == 0
        await made.pull(silent, 1, 2)
        assert [await made.chunk(silent), await made.chunk(silent)] == [0, 1]

    virtual(3, body)


def test_what_silent_devices_left_at_the_broker_makes_windows_smaller_until_they_come_back() -> None:
    async def window(made: Fleet, device: StandIn) -> int:
        """How many chunks come at a time to a device that keeps up."""
        have, came = set[int](), [0]
        while len(have) < 8:
            await made.pull(device, *[index for index in range(CHUNKS) if index not in have][:16])
            await made.looked_at()
            came = [await made.chunk(device) for _ in made.queued(device)]
            have |= set(came)
        await made.pull(device)
        return len(came)

    async def body(made: Fleet) -> None:
        made.down.bytes_max = 32 * SEALED_BYTES
        *silent, back = made.devices[1:]
        assert await window(made, back) == 4
        for device in silent:
            await made.pull(device, *range(16))
            await made.chunk(device)
            await made.pull(device, *range(1, 17))
            await asyncio.sleep(RESEND_CAP_S + 10)
        assert sum(len(made.queued(device)) for device in silent) == 2 * len(silent)
        assert await window(made, back) == 3
        await made.pull(silent[0], *range(1, 17))
        await made.pull(silent[0])
        await made.fed.command("revoke", device=silent[1].id)
        await asyncio.sleep(RESEND_FIRST_S)
        assert await window(made, back) == 4

    virtual(4, body)


def test_a_chunk_that_the_broker_answers_by_hanging_up_is_sent_once_more_and_then_waits_to_be_asked_for() -> (
    None
):
    watch = Watch()

    async def body(made: Fleet) -> None:
        await made.pull(made.devices[1], *range(16))
        await asyncio.sleep(RESEND_CAP_S)
        assert watch.sent.total() == 2
        await made.pull(made.devices[1], *range(16))
        await asyncio.sleep(RESEND_CAP_S)
        assert watch.sent.total() == 4

    virtual(2, body, lambda bus: HangingUp(bus, watch))


def test_one_device_that_pulls_many_models_is_bounded() -> None:
    async def body(made: Fleet) -> None:
        device = made.devices[1]
        downlink = made.fed.coordinator._dispatch.downlink
        offered = made.fed.coordinator._store.by_transfer[made.transfer]
        for number in range(2 * DEVICE_PULLS_MAX):
            made.transfer = bytes([number]) * 16
            downlink._store.by_transfer[made.transfer] = offered
            await made.pull(device, 0)
        await made.looked_at()
        assert len(made.down.lines) == DEVICE_PULLS_MAX

    virtual(2, body)


def test_pulls_are_gone_on_with_after_the_coordinator_was_killed() -> None:
    async def body(made: Fleet) -> None:
        device = made.devices[1]
        await made.pull(device, *range(16))
        assert await made.chunk(device) == 0
        async with asyncio.TaskGroup() as tasks:
            await made.fed.restart(tasks)
            await made.pull(device, *range(1, 17))
            assert await made.chunk(device) == 1
            await made.pull(device, *range(2, 18))
            assert {await made.chunk(device), await made.chunk(device)} == {2, 3}
            await made.fed.stop()

    virtual(2, body)


def test_no_window_is_greater_than_the_protocol_allows() -> None:
    assert PULL_CHUNKS_MAX <= GRANT_CHUNKS_MAX
