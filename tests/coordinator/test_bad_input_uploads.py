"""Devices that offer too much, fall silent, or offer at a bad moment: others and the disk are not harmed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import msgspec

from broker.system import system_ports
from coordinator.dispatch import DEVICE_MESSAGES_MAX, LANE_MESSAGES_MAX
from coordinator.uploads import DEVICE_SPOOLS_MAX, IDLE_S
from schemas import events as e
from schemas.chunks import from_bitmap
from schemas.ids import COORDINATOR
from schemas.limits import CHUNK_BYTES_MIN, CHUNK_OVERHEAD_BYTES
from tests.coordinator.hostile import CHUNKED_COUNT, Case, Offer, case, offered, told
from tests.sim import virtual_loop
from tests.sim.machine import sim_ports

P = ParamSpec("P")
R = TypeVar("R")
FOLDER = Path("/c")


class LateOffload:
    """The function's effect is there at once, but whoever waits for it learns so much later."""

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        result = function(*args, **kwargs)
        for _ in range(50):
            await asyncio.sleep(0)
        return result


def virtual(body: Callable[[Case], Coroutine[Any, Any, None]]) -> None:
    """Run ``body`` with a case on a virtual clock."""

    async def run() -> None:
        async with case(FOLDER, count=CHUNKED_COUNT, ports=sim_ports(), deadline_s=50_000) as running:
            await body(running)

    virtual_loop.run(run)


async def finished(offer: Offer, *indices: int) -> None:
    await offer.send(*indices)
    assert (await told(offer.device, e.Receipt)).digest == offer.envelope.digest
    assert (await told(offer.device, e.Verdict)).folded


def open_spools(directory: Path) -> list[str]:
    """Spool files of the coordinator in ``directory`` that this process has open."""
    links = []
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            links.append(str(descriptor.readlink()))
        except FileNotFoundError:
            continue  # the one of this listing
    return [link for link in links if link.startswith(str(directory / "spool"))]


async def test_an_offer_that_comes_twice_at_once_opens_one_spool(tmp_path: Path) -> None:
    async with case(tmp_path / "c", count=CHUNKED_COUNT) as running:
        await running.request(running.rogue)
        running.fed.broker.disconnect(COORDINATOR)
        offer = await offered(running, running.rogue, granted=False)
        await offer.again()
        running.fed.broker.restore(COORDINATOR)
        await told(running.rogue, e.Grant)
        await running.all_looked_at()
        assert len(open_spools(tmp_path / "c")) == 1
        await finished(offer, 0, 1, 2)
        assert open_spools(tmp_path / "c") == []
        await running.honest_update_folds(count=CHUNKED_COUNT)


async def test_an_offer_beside_the_last_chunk_completes_the_update_once(tmp_path: Path) -> None:
    ports = replace(system_ports(), offload=LateOffload())
    async with case(tmp_path / "c", count=CHUNKED_COUNT, ports=ports) as running:
        offer = await offered(running, running.rogue)
        await offer.send(0, 1)
        await running.all_looked_at()
        running.fed.broker.disconnect(COORDINATOR)
        await offer.again()
        await offer.send(2)
        running.fed.broker.restore(COORDINATOR)
        await finished(offer)
        await running.honest_update_folds(count=CHUNKED_COUNT)


async def test_credit_is_counted_in_the_chunks_that_were_offered_first(tmp_path: Path) -> None:
    async with case(tmp_path / "c", count=CHUNKED_COUNT) as running:
        offer = await offered(running, running.rogue)
        other = msgspec.structs.replace(offer.sealed.clear, chunk_bytes=CHUNK_BYTES_MIN + 1)
        await running.rogue.offer(msgspec.structs.replace(offer.sealed, clear=other))  # also three chunks
        await told(running.rogue, e.Grant)
        (line,) = running.fed.coordinator.intake.uploads.credits.lines.values()
        assert line.chunk_bytes == CHUNK_BYTES_MIN + CHUNK_OVERHEAD_BYTES
        await finished(offer, 0, 1, 2)
        await running.honest_update_folds(count=CHUNKED_COUNT)


async def test_a_device_with_many_offers_leaves_room_for_the_others(tmp_path: Path) -> None:
    async with case(tmp_path / "c", count=CHUNKED_COUNT) as running:
        offers = [await offered(running, running.rogue, granted=False) for _ in range(3 * DEVICE_SPOOLS_MAX)]
        await running.all_looked_at()
        await running.fed.until(lambda: len(running.spools()) == DEVICE_SPOOLS_MAX)
        transfers = (await running.fed.command("status"))["transfers"]
        assert (transfers["uploads"], transfers["offers_put_off"]) == (
            DEVICE_SPOOLS_MAX,
            2 * DEVICE_SPOOLS_MAX,
        )
        await finished(await offered(running, running.honest), 0, 1, 2)
        assert len(running.spools()) == DEVICE_SPOOLS_MAX
        await finished(offers[0], 0, 1, 2)


async def test_answers_to_one_device_leave_room_for_the_others(tmp_path: Path) -> None:
    async with case(tmp_path / "c") as running:
        dispatch = running.fed.coordinator._dispatch
        for _ in range(2 * LANE_MESSAGES_MAX):
            dispatch.tell("rogue", e.Enrolled())
        dispatch.tell("honest", e.Enrolled())
        await told(running.honest, e.Enrolled)
        assert dispatch.dropped == {"rogue": 2 * LANE_MESSAGES_MAX - DEVICE_MESSAGES_MAX}
        for _ in range(DEVICE_MESSAGES_MAX):
            await told(running.rogue, e.Enrolled)
        dispatch.tell("rogue", e.Enrolled())  # once those were sent, it is heard again
        await told(running.rogue, e.Enrolled)
        await running.honest_update_folds()


def test_a_device_that_vanishes_gives_its_credit_back_and_can_go_on_later() -> None:
    async def body(running: Case) -> None:
        offer = await offered(running, running.rogue)
        await offer.send(0)
        await running.all_looked_at()
        credit = running.fed.coordinator.intake.uploads.credits
        assert credit.granted_bytes > 0
        await asyncio.sleep(IDLE_S + 10)
        assert (credit.granted_bytes, credit.lines) == (0, {})
        assert len(running.spools()) == 1
        await running.rogue.say(e.StateRequest(requests=[], key_set=1))
        await offer.again()
        have = await told(running.rogue, e.Bitmap)
        while not from_bitmap(have.have, 3):  # the first bitmap was of the first offer
            have = await told(running.rogue, e.Bitmap)
        assert from_bitmap(have.have, 3) == {0}
        await finished(offer, 1, 2)
        assert running.spools() == []
        await running.honest_update_folds(count=CHUNKED_COUNT)

    virtual(body)


def test_of_many_transfers_for_one_request_that_fell_silent_one_spool_stays() -> None:
    async def body(running: Case) -> None:
        for _ in range(4):
            await offered(running, running.rogue)
        assert len(running.spools()) == 4
        await asyncio.sleep(IDLE_S + 10)
        assert len(running.spools()) == 1
        newest = await offered(running, running.rogue)
        await finished(newest, 0, 1, 2)
        assert running.spools() == []
        await running.honest_update_folds(count=CHUNKED_COUNT)

    virtual(body)


def test_the_spool_of_a_cancelled_job_is_removed() -> None:
    async def body(running: Case) -> None:
        await offered(running, running.rogue)
        await running.fed.command("cancel", job="job")
        await asyncio.sleep(IDLE_S + 10)
        assert running.spools() == []

    virtual(body)


async def test_an_offer_that_is_delivered_twice_is_answered_once(tmp_path: Path) -> None:
    async with case(tmp_path / "c", count=CHUNKED_COUNT) as running:
        offer = await offered(running, running.rogue)
        await running.rogue.say_bytes(offer.envelope.to_bytes())
        await running.all_looked_at()
        await offer.again()
        answers = [await told(running.rogue, e.OfferRead) for _ in range(2)]
        assert answers[-1].seq == offer.envelope.order.seq
        await finished(offer, 0, 1, 2)


async def test_an_update_that_was_whole_and_not_recorded_when_the_coordinator_died_is_not_sent_again(
    tmp_path: Path,
) -> None:
    async with case(tmp_path / "c", count=CHUNKED_COUNT) as running, asyncio.TaskGroup() as tasks:
        offer = await offered(running, running.rogue)
        uploads = running.fed.coordinator.intake.uploads
        (upload,) = uploads._uploads.values()
        for index, sealed in enumerate(offer.chunks):
            upload.spool.accept(index, memoryview(sealed))
        uploads._spools.keep(upload.begun)  # and dies
        await running.fed.restart(tasks)
        await offer.again()
        await finished(offer)
        await running.honest_update_folds(count=CHUNKED_COUNT)
        await running.fed.stop()


async def test_a_spool_whose_beginning_a_crash_tore_is_begun_anew(tmp_path: Path) -> None:
    async with case(tmp_path / "c", count=CHUNKED_COUNT) as running, asyncio.TaskGroup() as tasks:
        offer = await offered(running, running.rogue)
        await offer.send(0)
        await running.all_looked_at()
        await running.fed.stop()
        (spool,) = running.spools()
        whole = spool.read_bytes()
        body = whole.index(offer.envelope.body)
        spool.write_bytes(
            whole[:body] + bytes(len(offer.envelope.body)) + whole[body + len(offer.envelope.body) :]
        )
        await running.fed.restart(tasks)
        await offer.again()
        await told(running.rogue, e.Grant)
        await finished(offer, 0, 1, 2)
        await running.fed.stop()


async def test_after_a_restart_a_spool_that_is_waited_for_is_gone_on_with(tmp_path: Path) -> None:
    async with case(tmp_path / "c", count=CHUNKED_COUNT) as running, asyncio.TaskGroup() as tasks:
        offer, silent = await offered(running, running.rogue), await offered(running, running.rogue)
        await offer.send(1)
        await running.all_looked_at()
        await running.fed.restart(tasks)
        await running.all_looked_at()
        assert len(running.spools()) == 1  # of one request's, one is kept
        await offer.again()
        await told(running.rogue, e.Grant)
        await finished(offer, 0, 1, 2)
        assert silent.envelope.transfer != offer.envelope.transfer
        assert running.spools() == []
        await running.honest_update_folds(count=CHUNKED_COUNT)
        await running.fed.stop()


def test_after_a_restart_a_spool_that_nobody_waits_for_is_removed_unless_its_device_goes_on() -> None:
    async def body(running: Case) -> None:
        async with asyncio.TaskGroup() as tasks:
            goes_on, silent = await offered(running, running.rogue), await offered(running, running.honest)
            await goes_on.send(0)
            await running.all_looked_at()
            folder = running.spools()[0].parent
            torn = running.fed.ports.files.open(folder / "torn.part", create=True)
            torn.append(bytes(3))
            torn.close()
            await running.fed.command("cancel", job="job")
            await running.fed.restart(tasks)
            await running.all_looked_at()
            assert len(running.spools()) == 2
            await goes_on.send(1, 2)  # it was granted them by the life before
            assert (await told(running.rogue, e.Receipt)).digest == goes_on.envelope.digest
            await asyncio.sleep(IDLE_S + 10)
            assert running.spools() == []
            assert silent.envelope.transfer != goes_on.envelope.transfer
            await running.fed.stop()

    virtual(body)
