"""What devices are told, and when: a farewell before the door is shut, a receipt's place in the journal."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from coordinator.entries import Turned, decode_entry
from coordinator.facts import UpdateReceived
from schemas import events as e
from schemas.ids import COORDINATOR, DeviceId
from tests.coordinator.hostile import Case, case, told
from tests.sim import virtual_loop
from tests.sim.machine import SimOffload, sim_ports

P = ParamSpec("P")
R = TypeVar("R")


class SlowJournal(SimOffload):
    """While ``open`` is not set, nothing becomes durable in the journal."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        if getattr(function, "__name__", "") == "_commit":
            await self.open.wait()
        return await super().run(function, *args, **kwargs)


class Doorkeeper:
    """Breaks a device's connection for good once it is shut out."""

    def __init__(self, running: Case) -> None:
        self._broker = running.fed.broker

    async def admit(self, device: DeviceId, password: str) -> str:
        del device, password
        return ""

    async def shut_out(self, device: DeviceId) -> None:
        self._broker.disconnect(device)


def virtual(body: Callable[[Case, SlowJournal], Coroutine[Any, Any, None]]) -> None:
    """Run ``body`` on a virtual clock."""

    async def run() -> None:
        journal = SlowJournal()
        async with case(Path("/c"), ports=replace(sim_ports(), offload=journal)) as running:
            await body(running, journal)

    virtual_loop.run(run)


def test_a_device_that_is_revoked_while_the_coordinator_is_cut_off_is_told_before_it_is_shut_out() -> None:
    async def body(running: Case, _: SlowJournal) -> None:
        running.fed.coordinator._access = Doorkeeper(running)
        await running.request(running.rogue)
        running.fed.broker.disconnect(COORDINATOR)
        await running.fed.command("revoke", device="rogue", reason="stolen")
        await asyncio.sleep(1.0)
        running.fed.broker.restore(COORDINATOR)
        assert (await told(running.rogue, e.Revoked)).reason == "stolen"

    virtual(body)


def test_a_receipt_that_is_given_again_names_no_place_before_its_update() -> None:
    async def body(running: Case, disk: SlowJournal) -> None:
        request = await running.request(running.rogue)
        sealed, _ = running.rogue.seal(request, *running.rogue.update(request, np.ones(10, np.float32)))
        disk.open.clear()
        for _ in range(2):
            await running.rogue.offer(sealed)
            await asyncio.sleep(1.0)
        disk.open.set()
        first, again = [await told(running.rogue, e.Receipt) for _ in range(2)]
        (place,) = (
            logged.index
            for logged in running.fed.coordinator.ledger.journal.entries()
            if isinstance(entry := decode_entry(logged.data), Turned)
            and any(isinstance(fact, UpdateReceived) for fact in entry.facts)
        )
        assert first.index == place
        assert again.index >= place

    virtual(body)
