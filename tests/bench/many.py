"""Many devices on one broker: a thousand that wait for work, and two hundred that upload at once.

Memory is what the kernel says (VmRSS) of the broker and of the coordinator.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from coordinator.cli.state import open_journal
from coordinator.entries import Turned, decode_entry
from coordinator.facts import UpdateJudged, UpdateReceived
from schemas import events as e
from schemas.limits import GRANT_BYTES_MAX, MIB
from tests.bench.deployed import SETTLED_S, Deployment, deployed
from tests.bench.throughput import asked, sealed_update, send
from tests.brokers import rss_bytes
from tests.standin import StandIn

WAITING = 1_000
UPLOADING = 200
SMALL = 10_000  # parameters; the model is not pulled here
LARGE = 1_000_000  # 4 MB
MARGIN_BYTES = 64 * MIB
LOOK_S = 0.02


def waiting(kind: str) -> dict[str, Any]:
    """One training request to each of `WAITING` connected, idle devices: seconds from the operator's command
    to the deliveries."""
    with TemporaryDirectory(prefix="fedbus-waiting-") as name, deployed(kind, Path(name)) as deployment:
        empty_bytes = deployment.broker_rss_bytes()
        with deployment.site:
            result = asyncio.run(_waiting(deployment))
    return {"broker": kind, "devices": WAITING, "broker_rss_empty_bytes": empty_bytes} | result


async def _waiting(deployment: Deployment) -> dict[str, Any]:
    async with deployment.devices(WAITING) as devices:
        await asyncio.sleep(SETTLED_S)
        idle = {
            "broker_rss_idle_bytes": deployment.broker_rss_bytes(),
            "coordinator_rss_idle_bytes": rss_bytes(deployment.site.pid),
        }
        began_s = time.monotonic()
        delivered_s: list[float] = []

        async def one(device: StandIn) -> None:
            await device.next(e.TrainingRequest)
            delivered_s.append(time.monotonic() - began_s)

        async with asyncio.TaskGroup() as group:
            for device in devices:
                group.create_task(one(device))
            await deployment.submit("waiting", SMALL, WAITING, rounds=1)
        return idle | {
            "first_delivery_s": delivered_s[0],
            "median_delivery_s": delivered_s[WAITING // 2],
            "last_delivery_s": delivered_s[-1],
            "broker_rss_bytes": deployment.broker_rss_bytes(),
            "coordinator_rss_bytes": rss_bytes(deployment.site.pid),
        }


def uploading(kind: str) -> dict[str, Any]:
    """`UPLOADING` devices send an update of 4 MB each at once; the broker's memory at its highest, beside
    what it was with the same connections idle."""
    with TemporaryDirectory(prefix="fedbus-uploading-") as name, deployed(kind, Path(name)) as deployment:
        with deployment.site:
            result = asyncio.run(_uploading(deployment))
        counts = _counted(deployment.site.directory)
    bound_bytes = result["broker_rss_idle_bytes"] + GRANT_BYTES_MAX + MARGIN_BYTES
    return {"broker": kind, "devices": UPLOADING, "bound_bytes": bound_bytes} | result | counts


async def _uploading(deployment: Deployment) -> dict[str, Any]:
    async with deployment.devices(UPLOADING) as devices:
        await asyncio.sleep(SETTLED_S)
        idle_bytes = deployment.broker_rss_bytes()
        await deployment.submit("uploading", LARGE, UPLOADING, rounds=1)
        ready = [await sealed_update(*await asked(device)) for device in devices]
        began_s = time.monotonic()
        async with _peak(deployment) as peak:
            async with asyncio.TaskGroup() as group:
                for one in ready:
                    group.create_task(send(*one))
            took_s = time.monotonic() - began_s
        coordinator_bytes = rss_bytes(deployment.site.pid)
        while (await deployment.ask("job", job="uploading"))["state"] != "finished":  # noqa: ASYNC110
            await asyncio.sleep(LOOK_S)
        return {
            "broker_rss_idle_bytes": idle_bytes,
            "broker_rss_peak_bytes": max(peak),
            "coordinator_rss_bytes": coordinator_bytes,
            "receipted_s": took_s,
            "mib_per_s": UPLOADING * 4 * LARGE / MIB / took_s,
        }


@asynccontextmanager
async def _peak(deployment: Deployment) -> AsyncIterator[list[int]]:
    """The broker's memory, looked at every `LOOK_S`."""
    seen = [deployment.broker_rss_bytes()]

    async def look() -> None:
        while True:
            seen.append(deployment.broker_rss_bytes())
            await asyncio.sleep(LOOK_S)

    async with asyncio.TaskGroup() as group:
        looking = group.create_task(look())
        yield seen
        looking.cancel()


def _counted(directory: Path) -> dict[str, int]:
    """What the log holds: no device's update twice."""
    journal = open_journal(directory)
    try:
        entries = [decode_entry(logged.data) for logged in journal.entries()]
    finally:
        journal.close()
    facts = [fact for entry in entries if isinstance(entry, Turned) for fact in entry.facts]
    received = Counter((f.device, f.request) for f in facts if isinstance(f, UpdateReceived))
    folded = Counter((f.device, f.request) for f in facts if isinstance(f, UpdateJudged) and f.folded)
    return {
        "receipted": len(received),
        "folded": len(folded),
        "twice": sum(count - 1 for count in (*received.values(), *folded.values())),
    }
