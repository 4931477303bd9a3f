"""Record what passes: every message of the federation, both ways, in the order in which it came here.

A tap is no member and no part of anything: it only reads, by a session that ends with its connection, so that
nothing waits for it at the broker while it is away. What passes meanwhile it misses; the gap is recorded.
Its session is its own, so nobody else gets a message less.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final

import structlog

from broker.bus import Bus, Connected
from broker.journal import Journal, JournalStopped, Mark
from broker.ports import Clock, Ports
from coordinator.config import LOCK
from coordinator.inputs import Moment
from coordinator.recovery import FOLDER
from coordinator.tap.entries import (
    DOWN,
    Listening,
    Passed,
    Tapped,
    again,
    decode_tapped,
    encode_tapped,
    entry_of,
)
from coordinator.tap.place import Known, check_place, claim
from schemas import chunks, topics
from schemas.ids import FederationId

SAME_MAX: Final = 16_384
"""Chunks that are remembered, to be stored once: a model's go to every device alike."""

log = structlog.get_logger()


@dataclass(slots=True)
class Recorded:
    """What one run recorded, durably. ``bytes`` are those of the messages."""

    up: int = 0
    down: int = 0
    bytes: int = 0
    gaps: int = 0
    connected: bool = False

    def count(self, entry: Tapped, size: int) -> None:
        """``entry`` is durable; its message had ``size`` bytes."""
        self.bytes += size
        match entry:
            case Listening():
                self.connected = True
                self.gaps += entry.gap_s is not None
            case Passed(way=way) if way == DOWN:
                self.down += 1
            case _:
                self.up += 1


class Tap:
    """Writes into the journal of one folder. See `recording`."""

    def __init__(self, directory: Path, journal: Journal, clock: Clock) -> None:
        self.directory = directory
        self.journal = journal
        self.recorded = Recorded()
        self.problem = ""
        """Of the bus, when it was left."""
        self._clock = clock
        self._last: Moment | None = None
        for entry in journal.entries(max(0, journal.count - 1)):
            self._last = decode_tapped(entry.data).at
        self._run_from_s = (self._last.run_s if self._last else 0.0) - clock.monotonic_s()
        self._seen: dict[bytes, int] = {}  # by the digest of a chunk that passed, its entry

    async def run(self, bus: Bus, ports: Ports) -> None:
        """Record until cancelled; then all that was heard is made durable.

        Raises `broker.bus.BusRefused`, and `JournalStopped` when the disk is full: what was recorded until
        then is whole.
        """
        async with bus, asyncio.TaskGroup() as tasks:
            writing = tasks.create_task(self.journal.run(ports.offload), name="journal")
            try:
                async for item in bus.incoming():
                    await self.journal.room()
                    if isinstance(item, Connected):
                        self._listen()
                        continue
                    self._hear(item.topic, item.payload)
                    # Not only once it is durable: nothing comes again to this session. What waits is bounded
                    # by `room`; beyond it the broker's window stops the flow (Mosquitto has none).
                    await item.ack()
            finally:
                self.problem = bus.problem
                with suppress(JournalStopped):  # which `writing` tells
                    await self.journal.drain()
                writing.cancel()

    def _listen(self) -> None:
        now, last = self._now(), self._last
        gap_s = None if last is None else max(0.0, now.wall_s - last.wall_s)
        self._append(Listening(at=now, gap_s=gap_s))
        if gap_s is None:
            log.info("recording", directory=str(self.directory))
        else:
            log.warning(
                "recording again: what passed in the last seconds may be missing",
                directory=str(self.directory),
                gap_s=round(gap_s, 1),
            )

    def _hear(self, topic: str, payload: bytes) -> None:
        entry = entry_of(self._now(), topic, payload)
        if isinstance(entry, Passed) and entry.way == DOWN and payload.startswith(chunks.MAGIC):
            self._chunk(entry)
        else:
            self._append(entry, len(payload))

    def _chunk(self, entry: Passed) -> None:
        digest = sha256(entry.data).digest()
        first = self._seen.get(digest, 0) if len(entry.data) == entry.size else 0
        self._append(again(first, entry) if first else entry, entry.size)
        if not first:
            if len(self._seen) >= SAME_MAX:
                self._seen.pop(next(iter(self._seen)))
            self._seen[digest] = self.journal.queued

    def _append(self, entry: Tapped, size: int = 0) -> None:
        self._last = entry.at

        def count(done: asyncio.Future[Mark]) -> None:
            if not done.cancelled() and done.exception() is None:
                self.recorded.count(entry, size)

        self.journal.append(encode_tapped(entry)).add_done_callback(count)

    def _now(self) -> Moment:
        return Moment(self._run_from_s + self._clock.monotonic_s(), self._clock.wall_s())


def subscriptions(federation: FederationId) -> list[str]:
    """What a tap reads."""
    return [topics.all_up(federation), topics.all_down(federation)]


@contextmanager
def recording(ports: Ports, directory: Path, known: Known) -> Iterator[Tap]:
    """A tap on ``directory``, which is made, or goes on where an earlier run ended.

    Raises `coordinator.config.ConfigError` if something else is there, `broker.ports.LockHeld`,
    `broker.journal.JournalError`, OSError.
    """
    files = ports.files
    check_place(files, directory, known.federation)
    files.make_dir(directory)
    with ports.lock.hold(directory / LOCK):
        claim(files, directory, known)
        journal = Journal.open(files, directory / FOLDER, known.id)
        try:
            yield Tap(directory, journal, ports.clock)
        finally:
            journal.close()
