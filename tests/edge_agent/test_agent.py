"""The resident against a scripted coordinator, on a virtual clock."""

from __future__ import annotations

import asyncio
from functools import partial
from itertools import pairwise

import pytest

from broker.memory import MemoryBroker
from edge_agent.ledger import RequestState
from schemas import events as e
from tests.edge_agent.federation import JOB
from tests.edge_agent.party import (
    LARGE,
    SMALL,
    Coordinator,
    Party,
    settled,
    tiny_model,
)
from tests.sim.virtual_loop import run


@pytest.mark.parametrize("count", [SMALL, LARGE])
def test_an_accepted_request_is_trained_offered_and_forgotten_at_its_receipt(count: int) -> None:
    async def play() -> None:
        party = Party()
        async with party.coordinator() as coordinator, party.device():
            model = tiny_model(party.federation, count=count)
            await coordinator.request(model)
            await settled(party, RequestState.RECEIPTED)
            update, content = coordinator.update()
            assert content == bytes(reversed(model.content))
            assert (update.base, update.samples) == (model.manifest.model, 7)
            assert coordinator.heard(e.Accept) == [e.Accept(job=JOB, request=1)]
            assert party.names("outbox") == party.names("requests") == []
            assert len(party.worker.orders) == 1

    run(play)


def test_after_each_connection_the_device_says_who_it_is_and_what_it_holds() -> None:
    async def play() -> None:
        party = Party()
        async with party.coordinator() as coordinator, party.device():
            coordinator.receipts = False
            await coordinator.request(tiny_model(party.federation))
            await settled(party, RequestState.MADE)
            party.broker.disconnect(party.identity.credentials().client_id)
            party.broker.restore(party.identity.credentials().client_id)
            await coordinator.until(lambda: len(coordinator.heard(e.StateRequest)) == 2)
            status = coordinator.heard(e.DeviceStatus)[-1]
            assert isinstance(status, e.DeviceStatus)
            assert (status.tasks, status.samples) == (["vision"], {"vision": 7})
            assert coordinator.heard(e.StateRequest)[-1] == e.StateRequest(
                requests=[e.RequestRef(JOB, 1)], key_set=1
            )

    run(play)


def test_the_state_is_asked_for_until_the_answer_comes_with_growing_and_capped_waits() -> None:
    def at_least(coordinator: Coordinator, count: int) -> bool:
        return len(coordinator.heard(e.StateRequest)) >= count

    async def play() -> list[float]:
        party = Party()
        times: list[float] = []
        async with party.coordinator() as coordinator, party.device():
            coordinator.answers_state = False
            for count in range(1, 12):
                await coordinator.until(partial(at_least, coordinator, count))
                times.append(asyncio.get_running_loop().time())
            await coordinator.send(e.StateReply(requests=[], closed=[]))
            await asyncio.sleep(3_600)
            assert len(coordinator.heard(e.StateRequest)) == 11
        return times

    waits = [later - earlier for earlier, later in pairwise(run(play))]
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (2.0, 60.0)


def test_a_replayed_request_and_one_sent_again_are_not_trained_again() -> None:
    async def play() -> None:
        party = Party()
        async with party.coordinator() as coordinator, party.device():
            model = tiny_model(party.federation)
            payload = await coordinator.request(model)
            await settled(party, RequestState.RECEIPTED)
            await coordinator.send_raw(payload)
            await coordinator.request(model)
            await asyncio.sleep(1_000)
        async with party.coordinator() as coordinator, party.device():
            await coordinator.send_raw(payload)
            await coordinator.request(model)
            await asyncio.sleep(1_000)
        assert len(party.worker.orders) == 1

    run(play)


def test_a_request_that_comes_again_while_its_update_waits_is_answered_with_the_same_update() -> None:
    async def play() -> None:
        party = Party()
        async with party.coordinator() as coordinator, party.device():
            coordinator.receipts = False
            model = tiny_model(party.federation)
            await coordinator.request(model)
            await coordinator.until(lambda: len(coordinator.offers) == 3)
            offered = len(coordinator.offers)
            await coordinator.request(model)
            async with asyncio.timeout(1):
                await coordinator.until(lambda: len(coordinator.offers) > offered)
            assert len(coordinator.digests()) == 1
            assert len(party.worker.orders) == 1

    run(play)


def test_without_a_receipt_the_same_ciphertext_is_offered_again_with_capped_back_off() -> None:
    async def play() -> None:
        party = Party()
        async with party.coordinator() as coordinator, party.device():
            coordinator.receipts = False
            await coordinator.request(tiny_model(party.federation))
            await asyncio.sleep(3_600)
            assert 55 < len(coordinator.offers) < 70
            assert len(coordinator.digests()) == 1
            assert len({offer.order for offer in coordinator.offers}) == len(coordinator.offers)
            await coordinator.receipt()
            await settled(party, RequestState.RECEIPTED)

    run(play)


def test_a_broken_connection_resumes_pull_and_upload_where_they_were() -> None:
    async def play() -> None:
        party = Party()
        async with asyncio.TaskGroup() as group:
            breaking = group.create_task(
                breaks(party.broker, party.identity.credentials().client_id), name="breaks"
            )
            async with party.coordinator() as coordinator, party.device():
                model = tiny_model(party.federation, count=LARGE)
                await coordinator.request(model)
                await settled(party, RequestState.RECEIPTED)
                assert coordinator.update()[1] == bytes(reversed(model.content))
                assert len(party.worker.orders) == 1
            breaking.cancel()

    async def breaks(broker: MemoryBroker, client: str) -> None:
        while True:
            for _ in range(7):
                await asyncio.sleep(0)
            broker.disconnect(client)
            await asyncio.sleep(1)
            broker.restore(client)

    run(play)


def test_chunks_that_are_here_are_not_pulled_again_after_a_restart() -> None:
    async def play() -> None:
        party = Party()
        model = tiny_model(party.federation, count=LARGE)
        async with party.coordinator() as coordinator:
            async with party.device():
                await coordinator.request(model)
                await coordinator.until(lambda: len(coordinator.heard(e.ChunkPull)) == 2)
            before = len(coordinator.heard(e.ChunkPull))
            async with party.device():
                await settled(party, RequestState.RECEIPTED)
            first = {i for p in coordinator.heard(e.ChunkPull)[:before] for i in pulled(p)}
            later = {i for p in coordinator.heard(e.ChunkPull)[before:] for i in pulled(p)}
            assert 0 < len(later) < len(model.sealed)
            assert first | later == set(range(len(model.sealed)))

    run(play)


def pulled(event: e.FromDevice) -> list[int]:
    assert isinstance(event, e.ChunkPull)
    return event.chunks


def test_a_receipt_of_another_update_under_this_id_ends_it_too() -> None:
    async def play() -> None:
        party = Party()
        async with party.coordinator() as coordinator, party.device():
            coordinator.receipts = False
            await coordinator.request(tiny_model(party.federation))
            await coordinator.until(lambda: coordinator.offers)
            await coordinator.receipt(digest=bytes(32))
            await settled(party, RequestState.RECEIPTED)
            assert party.names("outbox") == []

    run(play)


def test_below_the_coordinators_window_the_same_ciphertext_is_signed_under_a_later_number() -> None:
    async def play() -> None:
        party = Party()
        async with party.coordinator() as coordinator, party.device():
            coordinator.receipts = False
            await coordinator.request(tiny_model(party.federation))
            await coordinator.until(lambda: coordinator.offers)
            offer = coordinator.offers[-1]
            await coordinator.send(e.Stale(high=100_000, transfer=offer.transfer))
            await coordinator.until(lambda: len(coordinator.offers) == 2)
            assert coordinator.offers[-1].order.seq > 100_000
            assert coordinator.offers[-1].body == offer.body

    run(play)


def test_an_update_whose_request_was_closed_long_ago_is_dropped() -> None:
    async def play() -> None:
        party = Party()
        async with party.coordinator() as coordinator, party.device():
            coordinator.receipts = False
            await coordinator.request(tiny_model(party.federation))
            await coordinator.until(lambda: coordinator.offers)
            transfer = coordinator.offers[-1].transfer
            await coordinator.send(e.Refusal(code="closed", text="too late", transfer=transfer))
            await settled(party, RequestState.CLOSED)
            assert party.names("outbox") == []

    run(play)


@pytest.mark.parametrize("code", ["layout", "recipient", "malformed"])
def test_an_update_that_is_refused_for_good_is_offered_no_more_and_the_log_says_why(
    code: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def play() -> None:
        party = Party()
        async with party.coordinator() as coordinator, party.device():
            coordinator.receipts = False
            await coordinator.request(tiny_model(party.federation))
            await coordinator.until(lambda: coordinator.offers)
            refusal = e.Refusal(code=code, text="4 bytes too long", transfer=coordinator.offers[-1].transfer)
            await coordinator.send(refusal)
            await settled(party, RequestState.CLOSED)
            assert party.names("outbox") == []
            offered = len(coordinator.offers)
            await asyncio.sleep(1_000)
            assert len(coordinator.offers) == offered

    run(play)
    (error,) = (record for record in caplog.records if record.levelname == "ERROR")
    assert f"({code}): 4 bytes too long" in error.getMessage()


@pytest.mark.parametrize("code", ["stale", "version"])
def test_an_update_that_may_be_taken_later_is_offered_on(code: str) -> None:
    async def play() -> None:
        party = Party()
        async with party.coordinator() as coordinator, party.device():
            coordinator.receipts = False
            await coordinator.request(tiny_model(party.federation))
            await coordinator.until(lambda: coordinator.offers)
            offer = coordinator.offers[-1]
            await coordinator.send(e.Refusal(code=code, text="not now", transfer=offer.transfer))
            await coordinator.until(lambda: len(coordinator.offers) == 4)
            await coordinator.receipt()
            await settled(party, RequestState.RECEIPTED)

    run(play)
