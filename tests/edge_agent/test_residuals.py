"""Encoding on the device: what top-k leaves out comes later, once, whenever the device loses its power."""

from __future__ import annotations

import asyncio
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from numpy.typing import NDArray

from broker.worker import WorkerLink
from compressors import decode
from edge_agent.encoder import encode_delta
from edge_agent.ledger import RequestState
from edge_agent.private import RESIDUALS, Drawer
from edge_agent.sealer import seal_update
from schemas import events as e
from schemas import work
from schemas.encodings import Encoding, told_encoding
from schemas.envelope import Sealed, open_envelope
from schemas.jobs import CompressionSettings
from tests.edge_agent.federation import JOB, Federation, Model, open_update, opened_update, put
from tests.edge_agent.party import (
    HERE,
    SMALL,
    UPDATE_KEY,
    Coordinator,
    Party,
    eventually,
    settled,
    state,
    tiny_model,
)
from tests.edge_agent.test_agent_crashes import PowerCut
from tests.edge_agent.test_worker import data, trained_here
from tests.edge_agent.training import READER, made, train_order
from tests.sim.disk import SimFiles
from tests.sim.virtual_loop import run

TOPK = Encoding("topk", 2)
REQUESTS = 3
Floats = NDArray[np.float32]
__all__ = ["data"]


def learned(number: int, count: int = SMALL) -> Floats:
    """By the device in one request: whole numbers, so that no sum of them is rounded."""
    return np.random.default_rng(number).integers(-99, 99, count).astype("<f4")


def trains(party: Party, order: work.AnyOrder) -> work.Trained:
    """What a worker does with an order, and the real encoder and sealer."""
    assert isinstance(order, work.Train)
    ports, count = party.machine.ports, order.layout.trained_count
    content = encode_delta(ports.files, order, memoryview(bytearray(learned(order.request, count).tobytes())))
    update = e.Update(
        job=order.manifest.job,
        request=order.request,
        base=order.manifest.model,
        vectors=[e.Vector("delta", count)],
        samples=7,
        steps=3,
        train_s=1.5,
        metrics={},
        evaluation={},
        content=sha256(content).digest(),
        encoding=order.encoding,
    )
    sealed = seal_update(ports, order, update, content)
    return work.Trained(
        clear=sealed.clear, seal=sealed.seal, samples=7, steps=3, train_s=1.5, metrics={}, evaluation={}
    )


async def ask(party: Party, coordinator: Coordinator, model: Model, number: int) -> None:
    coordinator.models[model.manifest.transfer()] = model
    request = party.federation.request(model, UPDATE_KEY, number=number)
    await coordinator.send(replace(request, encoding=TOPK))


def sent(party: Party, coordinator: Coordinator) -> dict[int, Floats]:
    """What each update stands for; one update for a request, however often it was offered."""
    found: dict[int, Floats] = {}
    for offer in coordinator.offers:
        opened = open_envelope(offer, UPDATE_KEY, party.federation.id)
        update, content = opened_update(offer, opened, b"")
        numbers = np.empty(SMALL, np.float32)
        decode(told_encoding(update.encoding), content, numbers)
        assert found.setdefault(update.request, numbers).tobytes() == numbers.tobytes()
    return found


def left(party: Party) -> Floats:
    return np.frombuffer(party.machine.files.read(HERE / RESIDUALS / JOB), "<f4")


async def lives(at: int) -> bool:
    """Three requests one after the other, and a power cut at the ``at``-th change of the disk."""
    party = Party(seed=at)
    party.worker.answer = partial(trains, party)
    model = tiny_model(party.federation)
    cut = PowerCut(party, at)
    party.machine.files.on_change = cut
    async with party.coordinator() as coordinator:
        running = asyncio.TaskGroup()
        async with running:
            agent = running.create_task(party.ghost(), name="agent")
            for number in range(1, REQUESTS + 1):
                await ask(party, coordinator, model, number)
                await eventually(partial(done_or_cut, party, cut, number))
            party.machine.files.on_change = None
            party.machine.halt()
            agent.cancel()
        party.machine.crash(party.random)
        async with party.device():
            for number in range(1, REQUESTS + 1):
                if state(party, number) is None:
                    await ask(party, coordinator, model, number)
                await settled(party, RequestState.RECEIPTED, number)
        found = sent(party, coordinator)
        assert sorted(found) == [1, 2, 3]
        everything = sum(learned(number) for number in found)
        assert (sum(found.values()) + left(party)).tolist() == np.asarray(everything).tolist()
    return cut.happened.is_set()


def done_or_cut(party: Party, cut: PowerCut, number: int) -> bool:
    return cut.happened.is_set() or state(party, number) is RequestState.RECEIPTED


def test_whenever_the_power_fails_what_was_sent_and_what_is_left_is_what_was_learned() -> None:
    at = 1
    while run(partial(lives, at), max_virtual_s=30 * 86_400):
        at += 2
    assert at > 80


def test_what_was_left_out_is_forgotten_when_the_job_ends() -> None:
    async def play() -> None:
        party = Party()
        party.worker.answer = partial(trains, party)
        model = tiny_model(party.federation)
        async with party.coordinator() as coordinator, party.device():
            await ask(party, coordinator, model, 1)
            await settled(party, RequestState.RECEIPTED)
            assert party.names(RESIDUALS) == [JOB]
            await coordinator.end(model)
            await eventually(lambda: party.names(RESIDUALS) == [])

    run(play)


def test_what_was_left_out_for_a_job_that_ended_unheard_goes_at_the_next_start() -> None:
    async def play() -> None:
        party = Party()
        put(party.machine.files, HERE / RESIDUALS / "long-ago", b"left")
        async with party.coordinator(), party.device():
            await eventually(lambda: party.names(RESIDUALS) == [])

    run(play)


def test_an_update_that_does_not_count_leaves_what_was_left_out_before() -> None:
    files = SimFiles()
    residuals, folder = Drawer(files, HERE, RESIDUALS), HERE / "outbox" / "job.2.x"
    put(files, residuals.path("job"), b"before")
    put(files, folder / work.RESIDUAL_FILE, b"after")
    assert files.read(residuals.path("job")) == b"before"
    residuals.adopt("job", folder)
    residuals.adopt("job", folder)
    assert files.read(residuals.path("job")) == b"after"
    assert not files.exists(folder / work.RESIDUAL_FILE)


@pytest.mark.parametrize("damaged", [b"", b"\0" * 3, b"\0" * 36, np.full(SMALL, np.nan, "<f4").tobytes()])
def test_what_was_left_out_and_is_damaged_counts_as_nothing(damaged: bytes, tmp_path: Path) -> None:
    party = Party()
    order = train_order(tiny_model(Federation()), tmp_path, tmp_path)
    put(party.machine.files, HERE / RESIDUALS / JOB, damaged)
    order = replace(order, encoding=TOPK, residual=str(HERE / RESIDUALS / JOB), out_dir=str(HERE))
    without = replace(order, residual="")
    deltas = [memoryview(bytearray(learned(1).tobytes())) for _ in range(2)]
    files = party.machine.files
    assert bytes(encode_delta(files, order, deltas[0])) == bytes(encode_delta(files, without, deltas[1]))


@pytest.mark.usefixtures("installed_tasks")
async def test_the_real_worker_encodes_what_it_learned(link: WorkerLink, tmp_path: Path, data: Path) -> None:
    model = await made(link, tmp_path)
    count = model.layout.trained_count
    residual = tmp_path / "before"
    before = np.random.default_rng(1).standard_normal(count).astype("<f4") / 100
    residual.write_bytes(before.tobytes())
    order = train_order(model, tmp_path, data)
    exact = np.frombuffer(trained_here(model, data), "<f4") - np.frombuffer(model.content, "<f4")
    for up in ("topk", "eden4", "bfloat16"):
        encoding = CompressionSettings(up=up, fraction=0.1).encoding(count)
        reply = await link.call(replace(order, encoding=encoding, residual=str(residual)))
        assert isinstance(reply, work.Trained), reply
        sealed = Sealed(reply.clear, reply.seal, (Path(order.out_dir) / work.BODY_FILE).read_bytes())
        update, content = open_update(sealed, b"", READER, Federation().member().signing)
        assert (update.encoding, update.content) == (encoding, sha256(content).digest())
        numbers = np.empty(count, np.float32)
        decode(encoding, content, numbers)
        if up == "topk":
            after = np.frombuffer((Path(order.out_dir) / work.RESIDUAL_FILE).read_bytes(), "<f4")
            assert (numbers + after).tolist() == (exact + before).tolist()
        else:
            assert np.linalg.norm(numbers - exact) < 0.15 * np.linalg.norm(exact)
