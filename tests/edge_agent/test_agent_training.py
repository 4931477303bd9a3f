"""What the resident has trained, and what it stops: a worker that is a function, on a virtual clock."""

from __future__ import annotations

import asyncio

import pytest

from edge_agent.app import RevokedHere
from edge_agent.ledger import RequestState
from edge_agent.trainer import TOLD, WORKER_LOG
from schemas import events as e
from schemas import work
from tests.edge_agent.federation import JOB, put
from tests.edge_agent.party import (
    CONFIG,
    HERE,
    Coordinator,
    Party,
    eventually,
    settled,
    state,
    tiny_model,
)
from tests.sim.machine import SimProcess
from tests.sim.virtual_loop import run


async def training(party: Party, coordinator: Coordinator) -> None:
    """Until a worker trains, that never ends."""
    party.worker.answer = lambda order: None
    await coordinator.request(tiny_model(party.federation))
    await eventually(lambda: party.worker.orders)


def alive(party: Party) -> int:
    children = [child for child in party.machine.spawn.children if isinstance(child, SimProcess)]
    return sum(child._status is None for child in children)


def test_a_request_that_the_coordinator_closed_is_not_trained_on() -> None:
    async def play() -> None:
        party = Party()
        async with party.coordinator() as coordinator, party.device():
            await training(party, coordinator)
            await coordinator.send(e.StateReply(requests=[], closed=[e.RequestRef(JOB, 1)]))
            await settled(party, RequestState.CLOSED)
            assert alive(party) == 0
            party.worker.answer = None
            await coordinator.request(tiny_model(party.federation), number=2)
            await settled(party, RequestState.RECEIPTED, number=2)

    run(play)


def test_a_finished_job_leaves_no_requests_and_one_model_and_its_updates_are_still_sent() -> None:
    async def play() -> None:
        party = Party()
        async with party.coordinator() as coordinator, party.device():
            coordinator.receipts = False
            await coordinator.request(tiny_model(party.federation))
            await settled(party, RequestState.MADE)
            party.worker.answer = lambda order: None
            await coordinator.request(tiny_model(party.federation), number=2)
            await asyncio.sleep(10)
            await coordinator.send(e.JobFinished(job=JOB, state="cancelled", version=1))
            await settled(party, None, number=2)
            assert (alive(party), party.models(), party.names("requests")) == (0, [(JOB, 0)], [])
            offered = len(coordinator.offers)
            await coordinator.until(lambda: len(coordinator.offers) > offered)
            await coordinator.receipt()
            await settled(party, None)
            assert party.names("outbox") == []

    run(play)


def test_a_revoked_device_stops_keeps_its_keys_and_stays_stopped() -> None:
    async def play() -> None:
        party = Party()
        async with party.coordinator() as coordinator, asyncio.TaskGroup() as group:
            running = group.create_task(until_revoked(party), name="agent")
            await training(party, coordinator)
            await coordinator.send(e.Revoked(reason="sold"))
            await running
        assert (alive(party), party.names("models")) == (0, [])
        assert party.machine.files.exists(HERE / "identity")
        await until_revoked(party)

    async def until_revoked(party: Party) -> None:
        with pytest.raises(RevokedHere, match=r"press-07.*revoked.*sold.*new token"):
            await party.agent().run()

    run(play)


def test_a_worker_that_trains_too_long_is_killed_and_the_request_declined() -> None:
    async def play() -> None:
        party = Party()
        async with party.coordinator() as coordinator, party.device():
            await training(party, coordinator)
            await coordinator.until(lambda: coordinator.heard(e.Decline))
            assert declined(coordinator).reason == "time"
            assert state(party) is RequestState.DECLINED
            assert alive(party) == 0

    run(play)


def declined(coordinator: Coordinator) -> e.Decline:
    (decline,) = coordinator.heard(e.Decline)
    assert isinstance(decline, e.Decline)
    return decline


def test_a_problem_of_the_worker_is_told_without_its_data_and_told_again_but_not_tried_again() -> None:
    async def play() -> None:
        party = Party()
        party.worker.answer = lambda order: work.problem("data", "line 3: 'Smith' is no number")
        async with party.coordinator() as coordinator, party.device():
            model = tiny_model(party.federation)
            await coordinator.request(model)
            await settled(party, RequestState.DECLINED)
            await coordinator.until(lambda: coordinator.heard(e.Decline))
            assert declined(coordinator) == e.Decline(job=JOB, request=1, reason="data", text=TOLD)
            await coordinator.request(model)
            await coordinator.until(lambda: len(coordinator.heard(e.Decline)) == 2)
            assert coordinator.said[-1] == declined_first(coordinator)
            assert len(party.worker.orders) == 1
            assert party.names("outbox") == []

    run(play)


def test_the_last_words_of_a_worker_stay_on_the_device(caplog: pytest.LogCaptureFixture) -> None:
    """A task may have printed what it read."""

    def die(party: Party) -> None:
        put(party.machine.files, HERE / WORKER_LOG, b"row 17: Jane Doe\n")
        for child in party.machine.spawn.children:
            assert isinstance(child, SimProcess)
            child.exit(-11)

    async def play() -> None:
        party = Party()
        party.worker.answer = lambda order: die(party)
        async with party.coordinator() as coordinator, party.device():
            await coordinator.request(tiny_model(party.federation))
            await coordinator.until(lambda: coordinator.heard(e.Decline))
            assert declined(coordinator) == e.Decline(job=JOB, request=1, reason="worker", text=TOLD)

    run(play)
    assert "ended by signal 11: row 17: Jane Doe" in caplog.text


@pytest.mark.parametrize(("local", "told"), [(True, TOLD), (False, "row 17: Jane Doe")])
def test_the_coordinator_is_told_what_a_task_says_only_if_it_had_no_data(
    local: bool, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def play() -> None:
        party = Party()
        party.worker.answer = lambda order: work.problem("task", "row 17: Jane Doe", local=local)
        async with party.coordinator() as coordinator, party.device():
            await coordinator.request(tiny_model(party.federation))
            await coordinator.until(lambda: coordinator.heard(e.Decline))
            assert declined(coordinator) == e.Decline(job=JOB, request=1, reason="task", text=told)

    run(play)
    assert "row 17: Jane Doe" in caplog.text


def declined_first(coordinator: Coordinator) -> e.FromDevice:
    return coordinator.heard(e.Decline)[0]


def test_a_damaged_model_is_pulled_anew_the_next_time() -> None:
    async def play() -> None:
        party = Party()
        party.worker.answer = lambda order: work.problem("base", "does not open")
        async with party.coordinator() as coordinator, party.device():
            await coordinator.request(tiny_model(party.federation))
            await settled(party, RequestState.DECLINED)
            assert party.names("models") == []
            party.worker.answer = None
            await coordinator.request(tiny_model(party.federation), number=2)
            await settled(party, RequestState.RECEIPTED, number=2)

    run(play)


def test_an_idle_worker_goes_away_and_a_busy_one_is_kept() -> None:
    async def play() -> None:
        party = Party()
        async with party.coordinator() as coordinator, party.device():
            for number in (1, 2):
                await coordinator.request(tiny_model(party.federation, version=number), number=number)
                await settled(party, RequestState.RECEIPTED, number=number)
                await asyncio.sleep(CONFIG.worker_idle_s / 2)
            assert len(party.machine.spawn.children) == alive(party) == 1
            await asyncio.sleep(CONFIG.worker_idle_s)
            assert alive(party) == 0

    run(play)


def test_requests_are_trained_one_at_a_time_and_the_oldest_first() -> None:
    async def play() -> None:
        party = Party()
        async with party.coordinator() as coordinator:
            for job in ("job-c", "job-a", "job-b"):
                await coordinator.request(tiny_model(party.federation, job=job))
            async with party.device():
                for job in ("job-a", "job-b", "job-c"):
                    await settled(party, RequestState.RECEIPTED, job=job)
        assert [order.manifest.job for order in party.worker.orders] == ["job-c", "job-a", "job-b"]
        assert len(party.machine.spawn.children) == 1

    run(play)


def test_of_a_job_the_two_newest_models_are_kept() -> None:
    async def play() -> None:
        party = Party()
        async with party.coordinator() as coordinator, party.device():
            for number in range(1, 5):
                await coordinator.request(tiny_model(party.federation, version=number), number=number)
                await settled(party, RequestState.RECEIPTED, number=number)
            assert party.models() == [(JOB, 3), (JOB, 4)]

    run(play)


def test_a_stopped_agent_leaves_no_worker_and_goes_on_where_it_was() -> None:
    async def play() -> None:
        party = Party()
        async with party.coordinator() as coordinator:
            async with party.device():
                await training(party, coordinator)
            assert alive(party) == 0
            assert state(party) is RequestState.ACCEPTED
            party.worker.answer = None
            async with party.device():
                await settled(party, RequestState.RECEIPTED)
        assert len(party.worker.orders) == 2

    run(play)
