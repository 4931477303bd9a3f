"""The last version of a job comes to every device that took part, whatever is lost or killed on the way."""

from __future__ import annotations

import asyncio
import errno
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from msgspec.structs import replace

from edge_agent.exporting import kept
from edge_agent.finals import ASKS_MAX, LOOK_S
from edge_agent.ledger import MODELS_KEPT, RequestState
from edge_agent.sealer import open_sealed
from schemas import events as e
from schemas.jobs import JOB_RUNNING
from schemas.keys import SigningKey
from tests.edge_agent.federation import JOB, Model
from tests.edge_agent.party import HERE, LARGE, Coordinator, Party, eventually, settled, tiny_model
from tests.edge_agent.test_agent_crashes import PowerCut
from tests.sim.virtual_loop import run


async def trained(party: Party, coordinator: Coordinator, job: str = JOB) -> None:
    """The device has taken part in a round of the job."""
    await coordinator.request(tiny_model(party.federation, job=job))
    await settled(party, RequestState.RECEIPTED, job=job)


def last_of(party: Party, job: str = JOB) -> Model:
    return tiny_model(party.federation, count=LARGE, job=job, version=1)


def asked(coordinator: Coordinator) -> int:
    return len(coordinator.heard(e.ModelRequest))


def content(party: Party) -> bytes:
    """Of the one model that is here."""
    (model,), _ = kept(party.machine.files, HERE, party.identity)
    assert model.whole
    opened = open_sealed(party.machine.files, model.path, model.manifest, model.card.offer.job_key)
    return bytes(opened)


def test_when_a_job_ends_its_last_version_comes_and_stays() -> None:
    async def play() -> None:
        party = Party()
        async with party.coordinator() as coordinator:
            async with party.device():
                await trained(party, coordinator)
                await coordinator.end(last_of(party))
                await eventually(lambda: party.models() == [(JOB, 1)])
                assert content(party) == last_of(party).content
            before = asked(coordinator)
            async with party.device():
                await asyncio.sleep(3_600)
                assert (party.models(), asked(coordinator)) == ([(JOB, 1)], before)

    run(play)


def test_an_end_that_was_missed_is_found_out_at_the_next_connection() -> None:
    async def play() -> None:
        party = Party()
        async with party.coordinator() as coordinator:
            party.worker.answer = lambda order: None
            async with party.device():
                await coordinator.request(tiny_model(party.federation))
                await eventually(lambda: party.worker.orders)
            await coordinator.end(last_of(party), told=False)
            async with party.device():
                await eventually(lambda: party.models() == [(JOB, 1)])
                await settled(party, None)
                assert party.names("requests") == []

    run(play)


def test_an_end_that_was_missed_is_found_out_in_the_end_without_any_new_connection() -> None:
    async def play() -> None:
        party = Party()
        async with party.coordinator() as coordinator, party.device():
            await trained(party, coordinator)
            await coordinator.end(last_of(party), told=False)
            await asyncio.sleep(LOOK_S + 60)
            assert party.models() == [(JOB, 1)]

    run(play)


def test_of_a_job_that_goes_on_nothing_is_pulled() -> None:
    async def play() -> None:
        party = Party()
        async with party.coordinator() as coordinator:
            async with party.device():
                await trained(party, coordinator)
                await coordinator.end(last_of(party), JOB_RUNNING, told=False)
            before = asked(coordinator)
            async with party.device():
                await asyncio.sleep(3_600)
                assert (party.models(), asked(coordinator)) == ([(JOB, 0)], before + 1)

    run(play)


def test_it_is_asked_for_with_growing_and_capped_waits_but_not_for_ever() -> None:
    async def play() -> list[float]:
        party = Party()
        times: list[float] = []
        async with party.coordinator() as coordinator, party.device():
            await trained(party, coordinator)
            coordinator.answers_models = False
            before = asked(coordinator)
            await coordinator.end(last_of(party))
            for count in range(before + 1, before + ASKS_MAX + 1):
                await coordinator.until(partial(lambda count: asked(coordinator) == count, count))
                times.append(asyncio.get_running_loop().time())
            await asyncio.sleep(LOOK_S / 2)
            assert asked(coordinator) == before + ASKS_MAX
        return times

    waits = [later - earlier for earlier, later in pairwise(run(play))]
    assert waits == sorted(waits)
    assert (waits[0], waits[-1]) == (2.0, 60.0)


def test_after_a_refusal_it_is_asked_for_no_more_and_what_is_here_stays() -> None:
    async def play() -> None:
        party = Party()
        async with party.coordinator() as coordinator, party.device():
            await trained(party, coordinator)
            before = asked(coordinator)
            del coordinator.newest[JOB]
            await coordinator.send(e.JobFinished(job=JOB, state="finished", version=1))
            await asyncio.sleep(3 * LOOK_S)
            assert (party.models(), asked(coordinator)) == ([(JOB, 0)], before + 1)

    run(play)


def test_of_a_job_that_the_device_declined_nothing_is_asked_or_kept() -> None:
    async def play() -> None:
        party = Party()
        async with party.coordinator() as coordinator, party.device():
            model = tiny_model(party.federation)
            await coordinator.send(party.federation.request(model, party.federation.box, task="other"))
            await settled(party, RequestState.DECLINED)
            await coordinator.end(last_of(party))
            await asyncio.sleep(3_600)
            assert (party.models(), asked(coordinator)) == ([], 0)

    run(play)


def test_a_last_version_that_is_here_as_a_base_already_is_not_pulled_again() -> None:
    async def play() -> None:
        party = Party()
        async with party.coordinator() as coordinator, party.device():
            await trained(party, coordinator)
            before = len(coordinator.heard(e.ChunkPull))
            await coordinator.end(tiny_model(party.federation), "cancelled")
            await asyncio.sleep(60)
            (model,), _ = kept(party.machine.files, HERE, party.identity)
            assert (model.version, model.state, model.last, model.whole) == (0, "cancelled", True, True)
            assert len(coordinator.heard(e.ChunkPull)) == before

    run(play)


def test_what_training_needs_is_pulled_first() -> None:
    async def play() -> None:
        party = Party()
        async with party.coordinator() as coordinator, party.device():
            await trained(party, coordinator)
            last, base = last_of(party), tiny_model(party.federation, count=LARGE, job="job-b")
            coordinator.held = {last.manifest.transfer(), base.manifest.transfer()}

            def pulls(model: Model) -> int:
                heard = coordinator.heard(e.ChunkPull)
                return sum(getattr(pull, "transfer", b"") == model.manifest.transfer() for pull in heard)

            await coordinator.end(last)
            await coordinator.until(lambda: pulls(last))
            await coordinator.request(base)
            await coordinator.until(lambda: pulls(base))
            before = pulls(last)
            await asyncio.sleep(600)
            assert pulls(base) > 2
            assert pulls(last) == before
            coordinator.held = {last.manifest.transfer()}
            await settled(party, RequestState.RECEIPTED, job="job-b")
            coordinator.held = set()
            await eventually(lambda: (JOB, 1) in party.models())

    run(play)


def test_of_ended_jobs_the_models_of_the_last_ones_are_kept() -> None:
    async def play() -> None:
        party = Party()
        jobs = [f"job-{number}" for number in range(MODELS_KEPT + 2)]
        async with party.coordinator() as coordinator, party.device():
            for job in jobs:
                await trained(party, coordinator, job)
            for job in [*jobs[1:], jobs[0]]:  # begun first, ended last
                await coordinator.end(last_of(party, job))
                await eventually(partial(lambda job: (job, 1) in party.models(), job))
            assert party.models() == sorted((job, 1) for job in [*jobs[3:], jobs[0]])

    run(play)


@pytest.mark.parametrize("spoilt", ["signature", "version", "key", "older"])
def test_an_offer_that_does_not_hold_is_not_taken(spoilt: str, caplog: pytest.LogCaptureFixture) -> None:
    async def play() -> None:
        party = Party()
        async with party.coordinator() as coordinator, party.device():
            number = 2 if spoilt == "older" else 0
            await coordinator.request(tiny_model(party.federation, version=number))
            await settled(party, RequestState.RECEIPTED)
            await coordinator.end(last_of(party), told=False)
            offer = coordinator.newest[JOB]
            forger = SigningKey.from_seed(bytes(32))
            changed = {
                "signature": lambda: party.federation.offer(last_of(party), signer=forger),
                "version": lambda: replace(offer, version=9),
                "key": lambda: replace(offer, job_key=bytes(32)),
                "older": lambda: offer,
            }
            coordinator.newest[JOB] = changed[spoilt]()
            await coordinator.send(e.JobFinished(job=JOB, state="finished", version=1))
            await asyncio.sleep(600)
            assert party.models() == [(JOB, number)]

    run(play)
    assert any("is not taken" in record.getMessage() for record in caplog.records)


def test_a_full_disk_is_waited_for() -> None:
    def full(what: str, path: Path) -> None:
        if path.parent.name == "models":
            raise OSError(errno.ENOSPC, "No space left on device")

    async def play() -> None:
        party = Party()
        async with party.coordinator() as coordinator, party.device() as agent:
            await trained(party, coordinator)
            party.machine.files.on_change = full
            await coordinator.end(last_of(party))
            await asyncio.sleep(600)
            assert (party.models(), agent.done()) == ([(JOB, 0)], False)
            party.machine.files.on_change = None
            await eventually(lambda: party.models() == [(JOB, 1)])

    run(play)


def test_whenever_the_power_fails_the_last_version_comes() -> None:
    async def two_lives(at: int) -> bool:
        party = Party(seed=at)
        async with party.coordinator() as coordinator:
            async with party.device():
                await trained(party, coordinator)
            cut = PowerCut(party, at)
            party.machine.files.on_change = cut
            await coordinator.end(last_of(party))
            async with asyncio.TaskGroup() as group:
                life = group.create_task(party.ghost(), name="agent")
                await eventually(lambda: cut.happened.is_set() or party.models() == [(JOB, 1)])
                party.machine.files.on_change = None
                party.machine.halt()
                life.cancel()
            party.machine.crash(party.random)
            async with party.device():
                await eventually(lambda: party.models() == [(JOB, 1)])
                assert content(party) == last_of(party).content
        return cut.happened.is_set()

    at, cuts = 1, 0
    while run(partial(two_lives, at), max_virtual_s=30 * 86_400):
        at += 2
        cuts += 1
    assert cuts > 20
