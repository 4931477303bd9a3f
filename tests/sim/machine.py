"""One party's machine, simulated: it can lose power, run out of disk, and be started again.

Nothing here waits for anything real, so that it runs on ``tests.sim.virtual_loop``.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ParamSpec, TypeVar

from broker.ports import LockHeld, Ports, Process
from tests.sim.disk import SimFiles

__all__ = [
    "SimClock",
    "SimEntropy",
    "SimFiles",
    "SimLock",
    "SimMachine",
    "SimOffload",
    "SimProcess",
    "SimSpawn",
    "sim_machine",
    "sim_ports",
]

P = ParamSpec("P")
R = TypeVar("R")

WALL_START_S = 1_700_000_000.0


class SimClock:
    """Loop time. People's time is ``wall_offset_s`` ahead of it, and may be set wrong."""

    def __init__(self, wall_offset_s: float = WALL_START_S) -> None:
        self.wall_offset_s = wall_offset_s

    def monotonic_s(self) -> float:
        return asyncio.get_running_loop().time()

    def wall_s(self) -> float:
        return asyncio.get_running_loop().time() + self.wall_offset_s


class SimLock:
    def __init__(self) -> None:
        self._held: dict[Path, object] = {}

    @contextmanager
    def hold(self, path: Path) -> Iterator[None]:
        if path in self._held:
            raise LockHeld(f"{path}: held by another process of this machine")
        owner = self._held[path] = object()
        try:
            yield
        finally:
            if self._held.get(path) is owner:
                del self._held[path]

    def release_all(self) -> None:
        """What the death of all processes does."""
        self._held.clear()


class SimOffload:
    """Runs the function at once, after all that was ready before it. Cancelled before: it never runs."""

    async def run(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        await asyncio.sleep(0)
        return function(*args, **kwargs)


class SimEntropy:
    """Seeded, so that equal runs are equal."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def random_bytes(self, size: int) -> bytes:
        return self._random.randbytes(size)


class SimProcess:
    """A child as a function: it is given each write and answers with output; None ends it (status 0)."""

    def __init__(self, answer: Callable[[bytes], bytes | None], *, pid: int = 1000) -> None:
        self._answer = answer
        self._pid = pid
        self._output = bytearray()
        self._status: int | None = None
        self._changed = asyncio.Event()
        self.rss = 0

    @property
    def pid(self) -> int:
        return self._pid

    async def write(self, data: bytes) -> None:
        await asyncio.sleep(0)
        if self._status is not None:
            raise BrokenPipeError(f"process {self._pid} reads no more")
        output = self._answer(data)
        if output is None:
            self.exit(0)
        else:
            self._output += output
            self._wake()

    async def read_exactly(self, size: int) -> bytes:
        while len(self._output) < size:
            if self._status is not None:
                have = len(self._output)
                raise EOFError(f"process {self._pid} closed its output after {have} of {size} bytes")
            await self._changed.wait()
        data = bytes(self._output[:size])
        del self._output[:size]
        return data

    def rss_bytes(self) -> int:
        return self.rss if self._status is None else 0

    def kill(self) -> None:
        self.exit(-9)

    async def wait(self) -> int:
        while self._status is None:
            await self._changed.wait()
        return self._status

    def exit(self, status: int) -> None:
        """End it, if it still runs."""
        if self._status is None:
            self._status = status
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


ProcessFactory = Callable[[Sequence[str], Mapping[str, str]], Process]


class SimSpawn:
    """Asks ``factory`` for each child; it may raise OSError, as a missing program does."""

    def __init__(self, factory: ProcessFactory | None = None) -> None:
        self._factory = factory
        self.children: list[Process] = []

    async def start(
        self, argv: Sequence[str], *, env: Mapping[str, str], stderr: Path | None = None
    ) -> Process:
        await asyncio.sleep(0)
        if self._factory is None:
            raise FileNotFoundError(f"{argv[0]}: this machine has no programs")
        child = self._factory(argv, env)
        self.children.append(child)
        return child


@dataclass(frozen=True, slots=True)
class SimMachine:
    """All simulated ports of one machine.

    To kill its processes: `halt`, cancel their tasks (their cleanup can't touch the disk any more),
    then `restart` (kill -9: the disk holds all that was written) or `crash` (power cut).
    """

    clock: SimClock = field(default_factory=SimClock)
    files: SimFiles = field(default_factory=SimFiles)
    lock: SimLock = field(default_factory=SimLock)
    offload: SimOffload = field(default_factory=SimOffload)
    spawn: SimSpawn = field(default_factory=SimSpawn)
    entropy: SimEntropy = field(default_factory=lambda: SimEntropy(0))

    @property
    def ports(self) -> Ports:
        return Ports(self.clock, self.files, self.lock, self.offload, self.spawn, self.entropy)

    def halt(self) -> None:
        """From now on the disk refuses every call, until `restart` or `crash`."""
        self.files.halt()

    def restart(self) -> None:
        self._end_processes()
        self.files.restart()

    def crash(self, rng: random.Random) -> None:
        self._end_processes()
        self.files.crash(rng)

    def _end_processes(self) -> None:
        self.lock.release_all()
        for child in self.spawn.children:
            child.kill()
        self.spawn.children.clear()


def sim_machine(*, seed: int = 0, factory: ProcessFactory | None = None) -> SimMachine:
    return SimMachine(spawn=SimSpawn(factory), entropy=SimEntropy(seed))


def sim_ports(*, seed: int = 0, factory: ProcessFactory | None = None) -> Ports:
    """The ports of a new machine of its own, for tests that don't crash it."""
    return sim_machine(seed=seed, factory=factory).ports
