"""How much of a broker's own throughput reaches the coordinator's disk: updates in 1 MiB chunks from many
devices at once, beside the same bytes through the same broker by bare clients, in the same run.

The clock runs from the moment when all sealed updates are ready to the last receipt: offers, grants, chunks,
hashing, writing, one sync and one journal append per update. The updates are folded meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from schemas import events as e
from schemas.chunks import pack_chunk
from schemas.envelope import Sealed
from schemas.limits import CHUNK_BYTES_DEFAULT
from tests.bench.deployed import Deployment, deployed
from tests.standin import StandIn

DEVICES = 16
PARAMETERS = 4_000_000  # 16 chunks of 1 MiB
ROUNDS = 5  # the first is left out
RAW_RUNS = 4

Ready = tuple[StandIn, e.TrainingRequest, Sealed, list[bytes]]


def measure(kind: str) -> dict[str, Any]:
    """One broker; raw times of every run."""
    with TemporaryDirectory(prefix="fedbus-throughput-") as name, deployed(kind, Path(name)) as deployment:
        with deployment.site:
            took, devices = asyncio.run(_rounds(deployment))
        messages = DEVICES * -(-4 * PARAMETERS // CHUNK_BYTES_DEFAULT)
        ends = deployment.ends(devices)
        raw = [ends.carry(messages, CHUNK_BYTES_DEFAULT) for _ in range(RAW_RUNS)]
    mib = messages * CHUNK_BYTES_DEFAULT / 2**20
    return {
        "broker": kind,
        "devices": DEVICES,
        "mib": mib,
        "raw_s": raw[1:],
        "receipted_s": took[1:],
        "raw_mib_per_s": mib / median(raw[1:]),
        "receipted_mib_per_s": mib / median(took[1:]),
        "ratio": median(raw[1:]) / median(took[1:]),
    }


async def _rounds(deployment: Deployment) -> tuple[list[float], list[StandIn]]:
    async with deployment.devices(DEVICES) as devices:
        await deployment.submit("throughput", PARAMETERS, DEVICES, rounds=ROUNDS)
        took = [await _round(devices) for _ in range(ROUNDS)]
    return took, devices


async def _round(devices: list[StandIn]) -> float:
    ready = [await sealed_update(device) for device in devices]
    began_s = time.monotonic()
    async with asyncio.TaskGroup() as group:
        for one in ready:
            group.create_task(send(*one))
    return time.monotonic() - began_s


async def sealed_update(device: StandIn) -> Ready:
    """The next request, and an update of small random numbers that answers it."""
    request = await device.next(e.TrainingRequest)
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
