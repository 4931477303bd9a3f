"""Devices of asynchronous jobs train older versions while keys are rolled and the coordinator restarts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np

from coordinator.replay import replay
from schemas import events as e
from schemas.chunks import parse_chunk
from schemas.models import key_commitment, open_layout, open_manifest
from tests.sim import virtual_loop
from tests.sim.machine import sim_ports
from tests.standin import Federation, StandIn, federation, spec

HOME = Path("/c")
COUNT = 10


async def answer(device: StandIn) -> e.TrainingRequest:
    request = await device.next(e.TrainingRequest)
    await device.answer(request, np.ones(COUNT, np.float32))
    await device.next(e.Verdict)
    return request


def opened(fed: Federation, request: e.TrainingRequest) -> tuple[int, int]:
    """The version and key epoch of a request, whose key fits its manifest."""
    signer = fed.identity.online.public
    layout = open_layout(request.layout, signer, request.job)
    manifest = open_manifest(request.manifest, signer, fed.identity.federation, request.job, layout)
    assert manifest.key_commitment == key_commitment(request.job_key, request.job, manifest.epoch)
    assert manifest.model == request.base
    return manifest.version, manifest.epoch


def test_after_a_revocation_and_a_restart_an_older_version_is_still_pulled_and_its_update_counts() -> None:
    ports = sim_ports()

    async def play() -> None:
        async with asyncio.TaskGroup() as tasks, federation(HOME, ports, COUNT) as fed:
            fast, other, slow, gone = [await fed.device(f"press-{number}") for number in range(4)]
            document = spec(rounds=4, cohort=2, min_reports=2, asynchronous={"concurrency": 4})
            await fed.command("submit", spec=document)
            first = await slow.next(e.TrainingRequest)
            await gone.next(e.TrainingRequest)
            assert opened(fed, first) == (0, 1)
            for device in (fast, other):
                await answer(device)
            await fed.command("revoke", device="press-3", reason="lost")
            for device in (fast, other):
                await answer(device)
            await fed.until(lambda: fed.job("job").epoch == 2)
            await fed.restart(tasks)
            again = await slow.next(e.TrainingRequest)
            assert opened(fed, again) == (0, 2)
            for request in (first, again):
                signer = fed.identity.online.public
                layout = open_layout(request.layout, signer, "job")
                manifest = open_manifest(request.manifest, signer, fed.identity.federation, "job", layout)
                await slow.say(e.ChunkPull(transfer=manifest.transfer(), chunks=[0]))
                told = await slow.hear()
                while not isinstance(told, bytes):
                    told = await slow.hear()
                assert parse_chunk(told).transfer == manifest.transfer()
            await slow.answer(again, np.ones(COUNT, np.float32))
            verdict = await slow.next(e.Verdict)
            assert verdict.folded
            for device in (fast, other):
                assert opened(fed, await answer(device))[1] == 2
            await fed.until(lambda: fed.job("job").rounds_done >= 3)

    virtual_loop.run(play)
    result = replay(ports, HOME)
    assert result["equal"], result["difference"]
