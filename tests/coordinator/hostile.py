"""What the tests of bad input share: a running coordinator, an honest device, and one that is not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from broker.ports import Ports
from broker.system import system_ports
from coordinator.dead_letters import DeadLetter
from coordinator.entries import Logged, Message, Sent, Turned, decode_entry
from schemas import events as e
from schemas.chunks import pack_chunk
from schemas.envelope import Envelope, Sealed
from schemas.limits import CHUNK_BYTES_MIN
from tests.standin import Federation, StandIn, federation, spec

T = TypeVar("T", bound=e.Event)
CHUNKED_COUNT = 3_000  # parameters of an update in three chunks of the smallest size


async def told(device: StandIn, kind: type[T]) -> T:
    """The next event of this kind, also one that was heard while another was waited for."""
    for event in device.heard:
        if isinstance(event, kind):
            device.heard.remove(event)
            return event
    return await device.next(kind)


@dataclass
class Case:
    """``honest`` and ``rogue`` are both asked in the first round of the job ``job``."""

    fed: Federation
    honest: StandIn
    rogue: StandIn
    asked: dict[str, e.TrainingRequest] = field(default_factory=dict)

    async def request(self, device: StandIn) -> e.TrainingRequest:
        if device.id not in self.asked:
            self.asked[device.id] = await told(device, e.TrainingRequest)
        return self.asked[device.id]

    async def all_looked_at(self) -> None:
        """Wait until the coordinator has looked at, and decided, whatever was sent to it before."""
        assert self.honest.member is not None
        await self.honest.say(e.ChallengeAnswer(challenge=self.honest.member.challenge))
        await told(self.honest, e.Enrolled)

    async def honest_update_folds(self, *, count: int = 10) -> None:
        """Nothing was lost: the honest device's update is receipted and folded."""
        request = await self.request(self.honest)
        await self.honest.answer(request, np.ones(count, np.float32))
        assert (await told(self.honest, e.Receipt)).request == request.request
        verdict = await told(self.honest, e.Verdict)
        assert (verdict.folded, verdict.reason) == (True, "")

    def dead(self, code: str) -> int:
        """How many messages were not taken, for this reason."""
        return self.fed.coordinator.intake.dead.counts[code]

    def letter(self) -> DeadLetter:
        """The newest message that was not taken."""
        return self.fed.coordinator.intake.dead.ring[-1]

    def log(self) -> list[Logged]:
        journal = self.fed.coordinator.ledger.journal
        return [decode_entry(entry.data) for entry in journal.entries()]

    def heard_of(self, device: StandIn) -> list[Turned]:
        """What the log holds of a device's messages."""
        return [
            entry
            for entry in self.log()
            if isinstance(entry, Turned)
            and isinstance(entry.input, Message)
            and entry.input.device == device.id
        ]

    def sent_to(self, device: StandIn) -> list[Sent]:
        """What the log holds of messages to a device."""
        return [entry for entry in self.log() if isinstance(entry, Sent) and entry.device == device.id]

    def spools(self) -> list[Path]:
        """The files of uploads that are under way."""
        folder = self.fed.directory / "spool"
        return [folder / name for name in self.fed.ports.files.names(folder)]


@dataclass
class Offer:
    """A chunked update that was offered."""

    device: StandIn
    sealed: Sealed
    envelope: Envelope
    chunks: list[bytes]

    async def send(self, *indices: int) -> None:
        for index in indices:
            await self.send_as(index, self.chunks[index])

    async def send_as(self, index: int, sealed: bytes) -> None:
        await self.device.say_bytes(pack_chunk(self.envelope.transfer, index, sealed))

    async def again(self) -> None:
        """Offer the same ciphertext under a new number."""
        self.envelope = await self.device.offer(self.sealed)


async def offered(running: Case, device: StandIn, *, granted: bool = True) -> Offer:
    """Offer an update of `CHUNKED_COUNT` parameters, and wait for its grant."""
    request = await running.request(device)
    update, content = device.update(request, np.ones(CHUNKED_COUNT, np.float32))
    sealed, chunks = device.seal(request, update, content, chunk_bytes=CHUNK_BYTES_MIN)
    made = Offer(device, sealed, await device.offer(sealed), chunks)
    while granted and (await told(device, e.Grant)).transfer != made.envelope.transfer:
        pass  # it is of an earlier offer
    return made


@asynccontextmanager
async def case(
    directory: Path, *, count: int = 10, ports: Ports | None = None, **job: Any
) -> AsyncIterator[Case]:
    """A coordinator with two devices and a job of ``count`` parameters that asks both."""
    async with federation(directory, ports or system_ports(), count) as fed:
        made = Case(fed, await fed.device("honest"), await fed.device("rogue"))
        await fed.command("submit", spec=spec(**({"cohort": 2} | job)))
        await made.all_looked_at()
        yield made
