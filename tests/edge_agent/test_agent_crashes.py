"""Power cuts at every change of the device's disk: work may be repeated, nothing is lost or doubled."""

from __future__ import annotations

import asyncio
import errno
from functools import partial
from pathlib import Path

import pytest

from edge_agent.ledger import RequestState
from edge_agent.outbox import SEALED_FILE
from schemas import events as e
from tests.edge_agent.party import (
    HERE,
    LARGE,
    SMALL,
    Coordinator,
    Party,
    eventually,
    settled,
    state,
    tiny_model,
)
from tests.sim.virtual_loop import run


class PowerCut:
    """Stops the machine at the ``at``-th change of its disk."""

    def __init__(self, party: Party, at: int) -> None:
        self.party = party
        self.left = at
        self.happened = asyncio.Event()

    def __call__(self, what: str, path: Path) -> None:
        self.left -= 1
        if self.left == 0:
            self.party.machine.halt()
            self.happened.set()


async def until_cut_or_done(party: Party, at: int) -> bool:
    """Run the device until the cut, or its update is receipted; whether there was a cut."""
    cut = PowerCut(party, at)
    party.machine.files.on_change = cut
    async with asyncio.TaskGroup() as group:
        running = group.create_task(party.ghost(), name="agent")
        await eventually(lambda: cut.happened.is_set() or state(party) is RequestState.RECEIPTED)
        party.machine.files.on_change = None
        party.machine.halt()
        running.cancel()
    party.machine.crash(party.random)
    return cut.happened.is_set()


async def one_life_and_another(count: int, at: int) -> bool:
    party = Party(seed=at)
    model = tiny_model(party.federation, count=count)
    async with party.coordinator() as coordinator:
        payload = await coordinator.request(model)
        happened = await until_cut_or_done(party, at)
        known = state(party)
        if known is None:
            # The coordinator sends it again: the device doesn't name it among what it holds.
            await coordinator.request(model)
        async with party.device():
            await settled(party, RequestState.RECEIPTED)
            await coordinator.send_raw(payload)
            await asyncio.sleep(300)
            assert state(party) is RequestState.RECEIPTED
            assert party.names("outbox") == party.names("requests") == []
        assert len(coordinator.digests()) == 1, "what was offered once is never made anew"
        assert coordinator.update()[1] == bytes(reversed(model.content))
    return happened


@pytest.mark.parametrize(("count", "stride"), [(SMALL, 1), (LARGE, 3)])
def test_whenever_the_power_fails_the_update_arrives_once_and_as_it_was_offered(
    count: int, stride: int
) -> None:
    at, cuts = 1, 0
    while run(partial(one_life_and_another, count, at), max_virtual_s=30 * 86_400):
        at += stride
        cuts += 1
    assert cuts > 20


async def crash_when(ready: RequestState, party: Party, coordinator: Coordinator) -> None:
    """A life that ends with a power cut once the request has come so far."""
    await coordinator.request(tiny_model(party.federation))
    async with party.doomed_device():
        await settled(party, ready)


def test_after_accepting_a_crash_makes_it_train_again() -> None:
    async def play() -> None:
        party = Party()
        party.worker.answer = lambda order: None
        async with party.coordinator() as coordinator:
            await crash_when(RequestState.ACCEPTED, party, coordinator)
            party.worker.answer = None
            async with party.device():
                await settled(party, RequestState.RECEIPTED)

    run(play)


def test_after_the_outbox_a_crash_makes_it_send_the_identical_ciphertext() -> None:
    async def play() -> None:
        party = Party()
        async with party.coordinator() as coordinator:
            coordinator.receipts = False
            await crash_when(RequestState.MADE, party, coordinator)
            await coordinator.until(lambda: coordinator.offers)
            before = coordinator.offers[-1]
            coordinator.receipts = True
            async with party.device():
                await settled(party, RequestState.RECEIPTED)
            after = coordinator.offers[-1]
            assert (after.body, after.header.seal) == (before.body, before.header.seal)
            assert after.order.seq > before.order.seq
        assert len(party.worker.orders) == 1

    run(play)


def test_an_update_that_stands_in_the_outbox_outlives_a_disk_that_is_full_by_then() -> None:
    party = Party()

    def full(what: str, path: Path) -> None:
        updates = [HERE / "outbox" / name for name in party.names("outbox")]
        if path.name == "ledger.new" and any(party.machine.files.exists(u / SEALED_FILE) for u in updates):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))

    async def play() -> None:
        async with party.coordinator() as coordinator:
            await coordinator.request(tiny_model(party.federation))
            party.machine.files.on_change = full
            with pytest.raises(OSError, match="No space left"):
                await party.agent().run()
            party.machine.files.on_change = None
            async with party.device():
                await settled(party, RequestState.RECEIPTED)
        assert len(party.worker.orders) == 1, "it was trained once"

    run(play)


def test_what_a_worker_of_an_earlier_life_left_unfinished_is_cleared_away() -> None:
    async def play() -> None:
        party = Party()
        party.worker.answer = lambda order: None
        async with party.coordinator() as coordinator:
            await coordinator.request(tiny_model(party.federation))
            async with party.doomed_device():
                await eventually(lambda: party.worker.orders)
            await coordinator.send(e.JobFinished(job="job-a", state="cancelled", version=0))
            async with party.device():
                await settled(party, None)
                assert party.names("outbox") == []

    run(play)
