"""What stays on a device between rounds: of its last update, whatever is killed, and gone with its job."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest

from edge_agent import private
from edge_agent.app import RevokedHere
from edge_agent.exporting import export
from edge_agent.ledger import MODELS_KEPT, RequestState
from edge_agent.sealer import open_model, seal_update
from schemas import events as e
from schemas import work
from schemas.models import Layout, Tensor
from schemas.safetensors import metadata, to_safetensors
from tests.edge_agent.federation import JOB, Model
from tests.edge_agent.party import HERE, Coordinator, Party, eventually, settled
from tests.edge_agent.test_agent_crashes import PowerCut, until_cut_or_done
from tests.sim.virtual_loop import run

COUNT = 4
ROUNDS = 3


def model(party: Party, version: int = 0, job: str = JOB) -> Model:
    tensors = [Tensor("w", [COUNT], "float32", "trained"), Tensor("head", [1], "float32", "personal")]
    layout = Layout(job=job, tensors=tensors)
    return party.federation.model(layout, bytes(layout.model_bytes), version=version)


def counting(party: Party) -> None:
    """Has the worker keep how many updates were made, and say in each update how many there were before."""

    def train(order: work.AnyOrder) -> work.Reply:
        assert isinstance(order, work.Train)
        ports = party.machine.ports
        base = bytes(open_model(ports.files, order))
        count = private.read(ports.files, HERE / order.private, order.layout) or base[4 * COUNT :]
        following = (int.from_bytes(count, "little") + 1).to_bytes(4, "little")
        content = count * COUNT
        update = e.Update(
            job=order.manifest.job,
            request=order.request,
            base=order.manifest.model,
            vectors=[e.Vector("delta", order.layout.trained_count)],
            samples=1,
            steps=1,
            train_s=0.0,
            metrics={},
            evaluation={},
            content=sha256(content).digest(),
        )
        private.write(ports.files, HERE / order.out_dir / work.PRIVATE_FILE, order.layout, [following])
        sealed = seal_update(ports, order, update, memoryview(content))
        fields = {"samples": 1, "steps": 1, "train_s": 0.0, "metrics": {}, "evaluation": {}}
        return work.Trained(clear=sealed.clear, seal=sealed.seal, **fields)  # type: ignore[arg-type]

    party.worker.answer = train


def kept(party: Party, job: str = JOB) -> int:
    data = private.read(party.machine.files, HERE / private.DIR / job, model(party, job=job).layout)
    return int.from_bytes(data, "little")


def begun_with(coordinator: Coordinator) -> int:
    """What the worker had kept before the newest update, as that says."""
    return int.from_bytes(coordinator.update()[1][:4], "little")


def test_each_training_begins_with_what_the_last_update_left() -> None:
    async def play() -> None:
        party = Party()
        counting(party)
        async with party.coordinator() as coordinator:
            for number in range(1, ROUNDS + 1):
                async with party.device():
                    await coordinator.request(model(party, number), number)
                    await settled(party, RequestState.RECEIPTED, number)
                assert (begun_with(coordinator), kept(party)) == (number - 1, number)
        assert party.names(private.DIR) == [JOB]

    run(play)


async def a_cut_in_the_first_round(at: int) -> bool:
    party = Party(seed=at)
    counting(party)
    async with party.coordinator() as coordinator:
        await coordinator.request(model(party))
        happened = await until_cut_or_done(party, at)
        async with party.device():
            await asyncio.sleep(300)
            if not coordinator.offers:
                await coordinator.request(model(party))
            await settled(party, RequestState.RECEIPTED)
            assert (begun_with(coordinator), kept(party)) == (0, 1), "what is kept is of the update that came"
            await coordinator.request(model(party, 1), 2)
            await settled(party, RequestState.RECEIPTED, 2)
        assert (begun_with(coordinator), kept(party)) == (1, 2)
    return happened


def test_whenever_the_power_fails_what_is_kept_is_of_the_update_that_came() -> None:
    at = 1
    while run(partial(a_cut_in_the_first_round, at), max_virtual_s=30 * 86_400):
        at += 1
    assert at > 20


def test_what_was_made_with_an_update_that_was_never_sealed_is_not_kept() -> None:
    async def play() -> None:
        party = Party()
        counting(party)
        train = party.worker.answer

        def failing(order: work.AnyOrder) -> work.Reply:
            assert train is not None
            train(order)
            return work.problem("worker", "failed after it had written")

        party.worker.answer = failing
        async with party.coordinator() as coordinator, party.device():
            await coordinator.request(model(party))
            await settled(party, RequestState.DECLINED)
            assert (party.names(private.DIR), party.names("outbox")) == ([], [])

    run(play)


def test_it_goes_with_the_last_model_of_its_job() -> None:
    async def play() -> None:
        party = Party()
        counting(party)
        jobs = [f"job-{number}" for number in range(MODELS_KEPT + 1)]
        async with party.coordinator() as coordinator, party.device():
            for job in jobs:
                await coordinator.request(model(party, job=job))
                await settled(party, RequestState.RECEIPTED, job=job)
            assert party.names(private.DIR) == jobs
            for job in jobs:
                await coordinator.end(model(party, 1, job))
            await eventually(lambda: party.names(private.DIR) == jobs[1:])

    run(play)


def test_a_device_that_is_revoked_keeps_nothing() -> None:
    async def play() -> None:
        party = Party()
        counting(party)
        async with party.coordinator() as coordinator:
            with pytest.raises(BaseExceptionGroup):  # noqa: PT012 - the agent ends by itself
                async with party.device():
                    await coordinator.request(model(party))
                    await settled(party, RequestState.RECEIPTED)
                    await coordinator.send(e.Revoked(reason="sold"))
                    await asyncio.sleep(60)
            assert party.names(private.DIR) == []

    run(play)


async def a_cut_while_it_is_revoked(at: int) -> bool:
    party = Party(seed=at)
    counting(party)
    async with party.coordinator() as coordinator:
        async with party.device():
            await coordinator.request(model(party))
            await settled(party, RequestState.RECEIPTED)
        cut = PowerCut(party, at)
        party.machine.files.on_change = cut
        async with asyncio.TaskGroup() as group:
            group.create_task(until_revoked(party.ghost()), name="agent")
            await coordinator.send(e.Revoked(reason="sold"))
            await eventually(lambda: cut.happened.is_set() or not private_left(party))
            party.machine.files.on_change = None
            party.machine.halt()
        party.machine.crash(party.random)
        await coordinator.send(e.Revoked(reason="sold"))
        await until_revoked(party.agent().run())
    assert (party.names(private.DIR), party.names("models")) == ([], [])
    return cut.happened.is_set()


def private_left(party: Party) -> list[str]:
    return party.names(private.DIR) + party.names("models")


async def until_revoked(running: Awaitable[None]) -> None:
    with suppress(RevokedHere):
        await running


def test_whenever_the_power_fails_a_device_that_is_revoked_keeps_nothing() -> None:
    at = 1
    while run(partial(a_cut_while_it_is_revoked, at), max_virtual_s=30 * 86_400):
        at += 1
    assert at > 3


@pytest.mark.parametrize("harm", ["cut", "changed", "of another layout"])
def test_a_file_that_is_damaged_or_of_another_model_counts_as_none(harm: str) -> None:
    party = Party()
    files, layout, path = party.machine.files, model(party).layout, HERE / "kept"
    private.write(files, path, layout, [b"four"])
    assert private.read(files, path, layout) == b"four"
    data = bytearray(files.read(path))
    if harm == "of another layout":
        layout = model(party, job="other").layout
    else:
        data[-1] ^= 1
        files.remove(path)
        files.open(path, create=True).append(bytes(data[:-1] if harm == "cut" else data))
    assert private.read(files, path, layout) == b""


def test_an_export_on_the_device_has_the_devices_own_layers_and_says_so() -> None:
    async def play() -> None:
        party = Party()
        counting(party)
        written: list[bytes] = []
        async with party.coordinator() as coordinator, party.device():
            await coordinator.request(model(party))
            await settled(party, RequestState.RECEIPTED)
            last = model(party, 1)
            await coordinator.end(last)
            await eventually(lambda: party.models() == [(JOB, 1)])
            out = Path("/model.safetensors")
            found, _ = export(party.machine.files, HERE, party.identity, JOB, out)
            written.append(party.machine.files.read(out))
        offer = found.card.offer
        told = metadata(party.federation.id, JOB, 1, last.manifest.model, offer.task, offer.config) | {
            "fedbus.personal": party.identity.device
        }
        own = last.content[: 4 * COUNT] + (1).to_bytes(4, "little")
        assert written == [to_safetensors(last.layout, own, told)]

    run(play)
