"""The newest model on its way to who took part: offered, pulled, opened; after a restart, too."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from pathlib import Path

import numpy as np

from broker.journal import Journal
from broker.system import system_ports
from coordinator.entries import Sent, decode_entry
from coordinator.recovery import FOLDER
from schemas import events as e
from schemas.chunks import parse_chunk
from schemas.ids import model_request_id
from schemas.models import model_key, open_layout, open_manifest
from schemas.sealing import aead_open
from tests.standin import Federation, StandIn, federation, spec

COUNT = 700_000  # 2.7 MiB: three chunks


async def finished(fed: Federation, *names: str) -> list[StandIn]:
    """Devices that trained a job of one round, which is over."""
    devices = [await fed.device(name) for name in names]
    await fed.command("submit", spec=spec(cohort=len(devices), min_reports=len(devices)))
    for device in devices:
        await device.answer(await device.next(e.TrainingRequest), np.ones(COUNT, np.float32))
    for device in devices:
        await device.next(e.JobFinished)
    return devices


async def offer_to(device: StandIn, job: str = "job") -> e.ModelOffer:
    await device.say(e.ModelRequest(job=job))
    return await device.next(e.ModelOffer)


async def pulled(device: StandIn, offer: e.ModelOffer) -> bytes:
    """The model's bytes, checked as a device does."""
    assert device.member is not None
    signer = device.member.key_set.signing
    layout = open_layout(offer.layout, signer, offer.job)
    manifest = open_manifest(offer.manifest, signer, device.federation, offer.job, layout)
    key = model_key(offer.job_key, offer.job, manifest.epoch, manifest.model, manifest.chunk_bytes)
    count, context = len(manifest.chunks), manifest.transfer()
    plain: dict[int, bytes] = {}
    while len(plain) < count:
        missing = [index for index in range(count) if index not in plain]
        await device.say(e.ChunkPull(transfer=context, chunks=missing))
        heard = await device.hear()
        if isinstance(heard, bytes):
            chunk = parse_chunk(heard)
            plain[chunk.index] = aead_open(key, chunk.index, count, bytes(chunk.sealed), context)
        else:
            assert not isinstance(heard, e.Refusal), heard.text
    return b"".join(plain[index] for index in range(count))


async def test_who_took_part_gets_the_last_version_after_a_restart_too(tmp_path: Path) -> None:
    async with federation(tmp_path / "c", system_ports(), count=COUNT) as fed:
        (device,) = await finished(fed, "d0")
        offer = await offer_to(device)
        last = fed.job("job").versions[-1]
        assert (offer.version, offer.state, offer.task) == (last.number, "finished", "standin")
        assert sha256(await pulled(device, offer)).digest() == last.model
        async with asyncio.TaskGroup() as tasks:
            await fed.restart(tasks)
            again = await offer_to(device)
            assert again == offer
            assert sha256(await pulled(device, again)).digest() == last.model
            await fed.stop()


async def test_the_recording_of_an_offer_holds_no_key(tmp_path: Path) -> None:
    async with federation(tmp_path / "c", system_ports(), count=COUNT) as fed:
        (device,) = await finished(fed, "d0")
        offer = await offer_to(device)
        await device.say(e.StateRequest(requests=[], key_set=1))
        await device.next(e.StateReply)  # durable, and so is all before it
    journal = Journal.open(
        system_ports().files, tmp_path / "c" / FOLDER, fed.identity.federation, read_only=True
    )
    entries = [decode_entry(logged.data) for logged in journal.entries()]
    sent = [e.decode_from_coordinator(entry.inner) for entry in entries if isinstance(entry, Sent)]
    (recorded,) = (event for event in sent if isinstance(event, e.ModelOffer))
    assert (recorded.manifest, recorded.job_key) == (offer.manifest, bytes(32))


async def test_who_was_never_asked_gets_no_offer_and_no_chunk(tmp_path: Path) -> None:
    async with federation(tmp_path / "c", system_ports(), count=COUNT) as fed:
        (device,) = await finished(fed, "d0")
        offer = await offer_to(device)
        stranger = await fed.device("stranger")
        await stranger.say(e.ModelRequest(job="job"))
        refusal = await stranger.next(e.Refusal)
        assert (refusal.code, refusal.transfer) == ("closed", model_request_id("job"))
        signer = fed.identity.online.public
        layout = open_layout(offer.layout, signer, "job")
        manifest = open_manifest(offer.manifest, signer, fed.identity.federation, "job", layout)
        await stranger.say(e.ChunkPull(transfer=manifest.transfer(), chunks=[0]))
        assert (await stranger.next(e.Refusal)).code == "closed"


async def test_after_a_revocation_the_last_version_is_sealed_under_a_new_key(tmp_path: Path) -> None:
    async with federation(tmp_path / "c", system_ports(), count=COUNT) as fed:
        gone, stays = await finished(fed, "d0", "d1")
        known = await offer_to(gone)
        await fed.command("revoke", device="d0", reason="lost")
        offer = await offer_to(stays)
        assert offer.job_key != known.job_key
        assert sha256(await pulled(stays, offer)).digest() == fed.job("job").versions[-1].model


async def test_a_model_whose_files_are_gone_is_refused_by_name_and_the_coordinator_goes_on(
    tmp_path: Path,
) -> None:
    async with federation(tmp_path / "c", system_ports(), count=COUNT) as fed:
        (device,) = await finished(fed, "d0")
        for path in (tmp_path / "c/models/job").iterdir():
            if path.name != "layout":
                path.unlink()
        async with asyncio.TaskGroup() as tasks:
            await fed.restart(tasks)
            await device.say(e.ModelRequest(job="job"))
            refusal = await device.next(e.Refusal)
            assert (refusal.code, refusal.transfer) == ("closed", model_request_id("job"))
            await device.say(e.StateRequest(requests=[], key_set=1))
            assert (await device.next(e.StateReply)).requests == []
            await fed.stop()
