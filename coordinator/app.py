"""The composition root: every part of a coordinator is made and joined here, and nowhere else.

One update, end to end:

1. `core.step` opens a round (`rounds`), picks a cohort (`cohort`) and orders `Prepare`; `works` makes the
   request keys and has the model ready (`store`); the outcome ``Prepared`` goes into the log.
2. The core issues the requests; `dispatch` seals, signs, records and sends each. The device pulls the
   model's chunks (`SendChunks`), trains, and publishes its update.
3. `intake` looks at what comes: size → signature → replay window. A large update is offered first and
   comes in granted chunks (`uploads`, broker.transfer). When all of it is durable in the bodies,
   ``UpdateCompleted`` goes into the log (`ledger`, broker.journal: group commit).
4. Only then the receipt is sent: the device may forget. The core orders `Fold`; `works` opens the update,
   checks it (`fold`), and ``Checked`` goes into the log; the core judges it (`receipts`).
5. A folded update is added to the sum at once. When the closing rule holds, the core orders `Commit`;
   the new version's files are written, ``Committed`` goes into the log, and the next round opens.

Every input is durable before its effects happen; after a crash the log is read again and what was ordered
without an outcome is ordered again (`Started`). While the disk is full all of this waits, unacknowledged
deliveries first of all (broker.room).
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from pathlib import Path

import structlog

from broker.bodies import Bodies
from broker.bus import Bus
from broker.journal import Mark
from broker.mailbox import Mailbox, Sequencer
from broker.ports import Ports
from broker.room import Room
from coordinator import control
from coordinator.broker_admin.access import Access
from coordinator.commands import Commands
from coordinator.config import Config
from coordinator.dispatch import Dispatch
from coordinator.effects import Commit, Effect, EvaluateVersion, Fold, MakeInitial, Prepare, ShutOut
from coordinator.evaluator import Evaluator
from coordinator.inputs import Started
from coordinator.intake import Intake
from coordinator.keystore import Identity, KeyStore
from coordinator.ledger import Ledger
from coordinator.rounds import next_deadline_run_s
from coordinator.state import ENDED_JOB, JobState
from coordinator.store import Store
from coordinator.works import Works
from schemas.ids import DeviceId
from schemas.limits import TICK_S

LOOK_S = 2.0  # how late a deadline may be noticed that is set while we wait
LOOKS_APART_S = 0.1  # at least
log = structlog.get_logger()


class Coordinator:
    """One coordinator on one state directory. The caller holds the directory's lock."""

    def __init__(
        self, directory: Path, config: Config, identity: Identity, ports: Ports, bus: Bus, access: Access
    ) -> None:
        files, room = ports.files, Room(ports.offload, f"the disk of {directory}")
        ports = replace(ports, offload=room)
        self._directory = directory
        self._ports = ports
        self._bus = bus
        self._access = access
        self.ledger = Ledger.open(files, directory, identity.federation, ports.clock)
        keys = KeyStore(files, directory, ports.entropy)
        self._store = Store(files, directory, identity, keys)
        bodies = Bodies(files, directory / "bodies")
        bodies.sweep()
        sequencer = Sequencer(files, directory / "seq")
        mailbox = Mailbox(bus, identity.federation, identity.online, sequencer, ports.entropy)
        self._dispatch = Dispatch(mailbox, self.ledger, self._store, keys, identity, room)
        self._works = Works(self.ledger, self._store, keys, identity, bodies, ports, directory)
        self._evaluator = Evaluator(self.ledger, self._store, ports, directory)
        self.intake = Intake(
            self.ledger, identity, self._dispatch, self._store, bodies, ports, directory / "spool"
        )
        self._farewells: asyncio.Queue[DeviceId] = asyncio.Queue()  # bounded by the devices
        self.commands = Commands(self.ledger, identity, config, access, self.intake, bus, room, ports)

    async def run(self, *, listen: bool = True) -> None:
        """Serve until cancelled. ``listen`` opens the control socket (not in simulation)."""
        self.intake.uploads.sweep()
        async with self._bus, asyncio.TaskGroup() as tasks:
            tasks.create_task(self.ledger.run(self._ports.offload, self._perform), name="ledger")
            tasks.create_task(self._works.run(), name="works")
            tasks.create_task(self._evaluator.run(), name="evaluator")
            tasks.create_task(self._dispatch.run(self._bus), name="dispatch")
            await self._start()
            tasks.create_task(self.intake.run(self._bus), name="intake")
            tasks.create_task(self._keep_time(), name="time")
            tasks.create_task(self._shut_out(), name="farewells")
            if listen:
                tasks.create_task(control.serve(self._directory, self.commands.handle), name="control")
            log.info("serving", directory=str(self._directory), entries=self.ledger.journal.count)

    async def _start(self) -> None:
        for job in self.ledger.state.jobs.values():
            if job.state not in ENDED_JOB and job.versions and job.epoch:
                for version in job.wanted_versions():
                    self._store.restore(job.id, version)
        await self.ledger.submit(Started())

    async def _perform(self, effect: Effect, mark: Mark) -> None:
        match effect:
            case Fold() | Commit() | Prepare() | MakeInitial():
                self._works.order(effect)
            case EvaluateVersion():
                self._evaluator.order(effect)
            case ShutOut():
                self._farewells.put_nowait(DeviceId(effect.device))
            case _:
                self._dispatch.perform(effect, mark)

    async def _shut_out(self) -> None:
        """A revoked device is told so before the broker lets it in no more."""
        while True:
            device = await self._farewells.get()
            await self._dispatch.told(device)
            await self._access.shut_out(device)

    async def _keep_time(self) -> None:
        ticked_s, wait_s = -math.inf, LOOK_S
        while True:
            await asyncio.sleep(wait_s)
            now_s, jobs = self.ledger.now().run_s, list(self.ledger.state.jobs.values())
            due_s = next_deadline_run_s(jobs, ticked_s)
            running = any(job.state is JobState.RUNNING for job in jobs)
            if (due_s is not None and due_s <= now_s) or (running and now_s - ticked_s >= TICK_S):
                ticked_s = now_s
                await self.ledger.tick()
            wait_s = LOOK_S if due_s is None else min(max(due_s - now_s, LOOKS_APART_S), LOOK_S)
