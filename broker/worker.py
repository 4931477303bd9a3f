"""The link to a worker process: starts it, talks to it, watches it, ends it.

The worker is named, not imported: coordinator and agent start the same program, ``edge_agent.worker``.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Final, Self, overload

from broker.ports import Ports, Process
from schemas import work
from schemas.errors import Malformed

WORKER: Final = "edge_agent.worker"
WATCH_S: Final = 0.5
STDERR_BYTES_MAX: Final = 1 << 20
STDERR_LINES_TOLD: Final = 3


class WorkerFailed(Exception):
    """The worker died or was killed; what was ordered is definitely not done.

    ``code`` is "memory" or "time" (a limit was exceeded) or "worker"; the message is for people.
    """

    def __init__(self, code: str, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True, slots=True)
class Limits:
    """What a worker may use. ``time_s_max`` is per order, with the process's own start. 0: no limit."""

    threads: int = 1
    memory_bytes_max: int = 0
    time_s_max: float = 0.0


class WorkerLink:
    """One worker process at a time, started by the first order and kept until `close`.

    Orders are carried out one after the other. Leaving the context kills the worker.
    """

    def __init__(self, ports: Ports, stderr: Path, limits: Limits = Limits()) -> None:
        self._ports = ports
        self._stderr = stderr
        self._limits = limits
        self._process: Process | None = None
        self._turn = asyncio.Lock()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def pid(self) -> int:
        """Of the worker that runs now; 0 if there is none."""
        return self._process.pid if self._process else 0

    @overload
    async def call(self, order: work.Train) -> work.Trained | work.Problem: ...
    @overload
    async def call(self, order: work.Make) -> work.Made | work.Problem: ...
    @overload
    async def call(self, order: work.Fit) -> work.Fitted | work.Problem: ...
    @overload
    async def call(self, order: work.Evaluate) -> work.Evaluated | work.Problem: ...
    @overload
    async def call(self, order: work.Inspect) -> work.Inspected | work.Problem: ...
    async def call(self, order: work.AnyOrder) -> work.Reply:
        """Have ``order`` carried out. Raises `WorkerFailed`; a cancelled call kills the worker."""
        async with self._turn:
            try:
                reply = await self._watched(order)
            except BaseException:
                # Whatever it was doing, its output can't be told apart from the next answer any more.
                await self.close()
                raise
        return reply

    async def close(self) -> None:
        """Kill the worker, if there is one, and wait for its end."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            await process.wait()

    async def _watched(self, order: work.AnyOrder) -> work.Reply:
        limit_s = self._limits.time_s_max
        replies: list[work.Reply] = []
        try:
            async with asyncio.timeout(limit_s or None), asyncio.TaskGroup() as group:
                process = await self._started()
                watch = group.create_task(self._watch(process), name="worker memory")
                replies.append(await self._exchange(process, order))
                watch.cancel()
        except TimeoutError as error:
            text = f"the worker ran longer than its {limit_s:g} s; raise the limit or ask for less"
            raise WorkerFailed("time", text) from error
        except ExceptionGroup as group_error:
            failed = group_error.subgroup(WorkerFailed)
            if failed is None:
                raise
            raise _first(failed) from group_error
        return replies[0]

    async def _exchange(self, process: Process, order: work.AnyOrder) -> work.Reply:
        try:
            await process.write(work.encode(order))
            (size,) = work.FRAME.unpack(await process.read_exactly(work.FRAME.size))
            if size > work.FRAME_BYTES_MAX:
                raise WorkerFailed("worker", f"the worker answered {size} bytes: not one of our workers")
            return work.decode_reply(await process.read_exactly(size))
        except Malformed as error:
            raise WorkerFailed("worker", f"the worker's answer cannot be read: {error}") from error
        except (EOFError, OSError) as error:
            process.kill()
            status = await process.wait()
            cause = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
            raise WorkerFailed("worker", f"the worker {cause}{self._last_words()}") from error

    async def _watch(self, process: Process) -> None:
        limit = self._limits.memory_bytes_max
        while limit:
            await asyncio.sleep(WATCH_S)
            used = process.rss_bytes()
            if used > limit:
                raise WorkerFailed(
                    "memory",
                    f"the worker used {used >> 20} MiB of the {limit >> 20} MiB that it may; "
                    f"raise memory_bytes_max, or ask for a smaller model or batch",
                )

    async def _started(self) -> Process:
        self._bound_stderr()
        if self._process is None:
            argv = [sys.executable, "-P", "-m", WORKER]
            try:
                self._process = await self._ports.spawn.start(
                    argv, env=environment(os.environ, self._limits.threads), stderr=self._stderr
                )
            except OSError as error:
                raise WorkerFailed("worker", f"the worker cannot be started: {error}") from error
        return self._process

    def _bound_stderr(self) -> None:
        files = self._ports.files
        if files.exists(self._stderr):
            file = files.open(self._stderr)
            try:
                if self._process is None or file.size() > STDERR_BYTES_MAX:
                    file.truncate(0)
            finally:
                file.close()

    def _last_words(self) -> str:
        try:
            raw = self._ports.files.read(self._stderr)
        except OSError:
            return ""
        lines = [line.strip() for line in raw.decode("utf-8", "replace").splitlines() if line.strip()]
        return f": {' | '.join(lines[-STDERR_LINES_TOLD:])}" if lines else ""


SMALL_ALLOCATOR: Final = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "131072"}
"""For a program with a worker, on glibc: large blocks go back to the system at once. Slow for tensors."""


def environment(inherited: Mapping[str, str], threads: int) -> dict[str, str]:
    """The worker's: ours, with its thread limits and the allocator's usual settings."""
    count = str(max(threads, 1))
    usual = {name: value for name, value in inherited.items() if SMALL_ALLOCATOR.get(name) != value}
    return {**with_our_packages(usual), "OMP_NUM_THREADS": count, "MKL_NUM_THREADS": count}


def with_our_packages(inherited: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child in which our packages are found where we were found."""
    here = _here()
    # An installed package is found anyway; in front of the path it would come before the standard library.
    if here.name in {"site-packages", "dist-packages"}:
        return dict(inherited)
    path = [str(here), *filter(None, inherited.get("PYTHONPATH", "").split(os.pathsep))]
    return {**inherited, "PYTHONPATH": os.pathsep.join(dict.fromkeys(path))}


@cache  # each part of the path is looked up
def _here() -> Path:
    return Path(__file__).resolve().parent.parent


def _first(group: ExceptionGroup[WorkerFailed]) -> WorkerFailed:
    found: BaseException = group
    while isinstance(found, ExceptionGroup):
        found = found.exceptions[0]
    assert isinstance(found, WorkerFailed)  # noqa: S101  # the subgroup holds nothing else
    return found
