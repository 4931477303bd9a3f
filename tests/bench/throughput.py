"""How much of a broker's own throughput reaches the coordinator's disk, and what is left of it over a round.

Updates in chunks from many devices at once, beside the same bytes through the same broker by bare clients, in
the same run. The clock of an upload runs from the moment when all sealed updates are ready to the last
receipt: offers, grants, chunks, hashing, writing, one sync and one journal append per update. The updates are
folded meanwhile. A round has two more parts: every device pulls the model, and after the last receipt the new
version is committed and the next requests arrive.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import numpy as np

from broker.system import system_ports
from edge_agent.kept import Shelf, base_of
from edge_agent.models import Models
from schemas import events as e
from schemas.chunks import pack_chunk, parse_chunk
from schemas.envelope import Sealed
from schemas.models import Manifest, open_layout, open_manifest
from tests.bench.deployed import Deployment, deployed
from tests.standin import StandIn

DEVICES = 16
PARAMETERS = 4_000_000  # 16 MB
ROUNDS = 5  # the first is left out
RAW_RUNS = 4

T = TypeVar("T")
R = TypeVar("R")
Asked = tuple[StandIn, e.TrainingRequest]
Ready = tuple[StandIn, e.TrainingRequest, Sealed, list[bytes]]


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds that the parts of a round took, over all devices."""

    pulled_s: float
    receipted_s: float
    committed_s: float

    @property
    def overhead_s(self) -> float:
        """All of it: nobody trains here."""
        return self.pulled_s + self.receipted_s + self.committed_s


def measure(kind: str, chunk_bytes: int) -> dict[str, Any]:
    """One broker and size of chunks; raw times of every run."""
    with TemporaryDirectory(prefix="fedbus-throughput-") as name, deployed(kind, Path(name)) as deployment:
        with deployment.site:
            rounds, devices = asyncio.run(_rounds(deployment, chunk_bytes))
        messages = DEVICES * -(-4 * PARAMETERS // chunk_bytes)
        ends = deployment.ends(devices)
        raw = [ends.carry(messages, chunk_bytes) for _ in range(RAW_RUNS)][1:]
    mib = messages * chunk_bytes / 2**20
    receipted_s = median(each.receipted_s for each in rounds)
    overhead_s = median(each.overhead_s for each in rounds)
    return {
        "broker": kind,
        "chunk_bytes": chunk_bytes,
        "devices": DEVICES,
        "mib": mib,
        "raw_s": raw,
        "rounds": [asdict(each) for each in rounds],
        "raw_mib_per_s": mib / median(raw),
        "receipted_mib_per_s": mib / receipted_s,
        "ratio": median(raw) / receipted_s,
        "round_overhead_s": overhead_s,
        "round_ratio": 2 * median(raw) / overhead_s,  # the model down, the update up
    }


async def _rounds(deployment: Deployment, chunk_bytes: int) -> tuple[list[Round], list[StandIn]]:
    async with deployment.devices(DEVICES) as devices:
        await deployment.submit("throughput", PARAMETERS, DEVICES, rounds=ROUNDS, chunk_bytes=chunk_bytes)
        requests = await _all(devices, asked)
        rounds = []
        for number in range(ROUNDS):
            began_s = time.monotonic()
            await _all(requests, lambda each: pull(*each, deployment.site.directory.parent))
            pulled_s = time.monotonic() - began_s
            ready = [await sealed_update(*each) for each in requests]
            began_s = time.monotonic()
            await _all(ready, lambda each: send(*each))
            receipted_s = time.monotonic() - began_s
            began_s = time.monotonic()
            if number == ROUNDS - 1:
                await _all(devices, lambda device: device.next(e.JobFinished))
            else:
                requests = await _all(devices, asked)
            rounds.append(Round(pulled_s, receipted_s, time.monotonic() - began_s))
    return rounds[1:], devices


async def asked(device: StandIn) -> Asked:
    """The next request to this device."""
    return device, await device.next(e.TrainingRequest)


async def pull(device: StandIn, request: e.TrainingRequest, directory: Path) -> None:
    """Take the model that the request names, as the agent does."""
    manifest = _manifest(device, request)
    ports = system_ports()
    shelf = Shelf(ports.files, ports.clock, directory / device.id)
    models = Models(ports, shelf, device.say)

    missing = set(range(len(manifest.chunks)))
    async with asyncio.TaskGroup() as group:
        group.create_task(models.pull(base_of(request, manifest), manifest))
        while missing:
            heard = await device.hear()
            if not isinstance(heard, bytes):
                device.heard.append(heard)
            elif models.take(chunk := parse_chunk(heard)):
                missing.discard(chunk.index)


def _manifest(device: StandIn, request: e.TrainingRequest) -> Manifest:
    assert device.member is not None
    signer = device.member.key_set.signing
    layout = open_layout(request.layout, signer, request.job)
    return open_manifest(request.manifest, signer, device.federation, request.job, layout)


async def sealed_update(device: StandIn, request: e.TrainingRequest) -> Ready:
    """An update of small random numbers that answers the request."""
    await device.say(e.Accept(job=request.job, request=request.request))
    count = parameters_of(request)
    delta = np.random.default_rng(1).standard_normal(count, np.float32) * np.float32(1e-4)
    update, content = device.update(request, delta)
    return device, request, *device.seal(request, update, content, request.chunk_bytes)


def parameters_of(request: e.TrainingRequest) -> int:
    """How long the update must be."""
    width = request.config["hidden"]
    assert isinstance(width, int)
    return (width - 1) * width + width + 2 * width + 2


async def send(device: StandIn, request: e.TrainingRequest, sealed: Sealed, chunks: list[bytes]) -> None:
    """Offer, send what is granted, and wait for the receipt."""
    envelope = await device.offer(sealed)
    left = set(range(len(chunks)))
    async with asyncio.TaskGroup() as group:
        while left:
            for index in (await device.next(e.Grant)).chunks:
                left.discard(index)
                group.create_task(device.say_bytes(pack_chunk(envelope.transfer, index, chunks[index])))
    receipt = await device.next(e.Receipt)
    assert (receipt.request, receipt.digest) == (request.request, sealed.seal.body)


async def _all(items: Iterable[T], work: Callable[[T], Coroutine[Any, Any, R]]) -> list[R]:
    """``work`` on all of them side by side."""
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(work(item)) for item in items]
    return [task.result() for task in tasks]
