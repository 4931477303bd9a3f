"""Uploads while the coordinator cannot read what lies at the broker: its disk is full, or it is cut off."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from coordinator.uploads import IDLE_S
from schemas import events as e
from schemas.ids import COORDINATOR
from schemas.limits import CHUNK_BYTES_MIN, CHUNK_OVERHEAD_BYTES, RESEND_CAP_S
from tests.coordinator.hostile import CHUNKED_COUNT, Case, case, offered, told
from tests.sim import virtual_loop
from tests.sim.machine import SimMachine, sim_machine

FOLDER = Path("/c")
SEALED_BYTES = CHUNK_BYTES_MIN + CHUNK_OVERHEAD_BYTES


class Disk:
    """The coordinator's; spools on it cannot grow while it is full."""

    def __init__(self, machine: SimMachine) -> None:
        self.full = False
        machine.files.on_change = self._refuse

    def _refuse(self, what: str, path: Path) -> None:
        if self.full and what == "write_at" and path.parent == FOLDER / "spool":
            raise OSError(errno.ENOSPC, "No space left on device", str(path))


def virtual(body: Callable[[Case, Disk], Coroutine[Any, Any, None]]) -> None:
    """Run ``body`` on a virtual clock."""

    async def run() -> None:
        machine = sim_machine()
        disk = Disk(machine)
        async with case(FOLDER, count=CHUNKED_COUNT, ports=machine.ports, deadline_s=50_000) as running:
            await body(running, disk)

    virtual_loop.run(run)


def test_a_disk_that_is_full_for_longer_than_a_silent_device_is_waited_for_ends_nothing() -> None:
    async def body(running: Case, disk: Disk) -> None:
        offer = await offered(running, running.rogue)
        disk.full = True
        await offer.send(0)
        await asyncio.sleep(2 * IDLE_S)
        assert (await running.fed.command("status"))["disk_problem"]
        disk.full = False
        await offer.send(1, 2)  # no chunk has to be sent again
        assert (await told(running.rogue, e.Receipt)).digest == offer.envelope.digest
        await running.honest_update_folds(count=CHUNKED_COUNT)

    virtual(body)


@pytest.mark.parametrize("cause", ["full disk", "cut off"])
def test_credit_of_chunks_that_lie_at_the_broker_is_not_given_to_others(cause: str) -> None:
    async def body(running: Case, disk: Disk) -> None:
        credit = running.fed.coordinator.intake.uploads.credits
        credit.bytes_max = SEALED_BYTES
        offer = await offered(running, running.rogue)
        waiting = await offered(running, running.honest, granted=False)
        await running.all_looked_at()
        if cause == "full disk":
            disk.full = True
        else:
            running.fed.broker.disconnect(COORDINATOR)
        await offer.send(0)
        for _ in range(3):
            await asyncio.sleep(RESEND_CAP_S + 10)
            assert [line.owner for line in credit.lines.values() if line.granted] == ["rogue"]
        disk.full = False
        running.fed.broker.restore(COORDINATOR)
        assert (await told(running.honest, e.Grant)).transfer == waiting.envelope.transfer
        await asyncio.sleep(RESEND_CAP_S + 10)  # from here on, who is silent holds credit no longer than that
        assert "honest" not in [line.owner for line in credit.lines.values() if line.granted]

    virtual(body)
