"""An event loop on a virtual clock: a day of waiting passes in a moment, and equal runs are equal.

When nothing is ready, time jumps to the next timer. When there is no timer either, nothing can ever
happen again: that is a deadlock, and said so. Nothing real may be waited for (sockets, threads,
processes); the simulated ports of ``tests.sim.machine`` need none of them.
"""

from __future__ import annotations

import asyncio
import contextvars
import selectors
from collections import deque
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple, Unpack

if TYPE_CHECKING:
    from concurrent.futures import Executor

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

CLEANUP_VIRTUAL_S = 3600.0
"""What tasks get for their cleanup after the run ended or failed."""


class VirtualDeadlock(Exception):
    """Every task waits, and no timer is set. The message names the tasks and where they wait."""


class VirtualTimeLimit(Exception):
    """The run took more virtual time than it was given."""


class _VirtualSelector(selectors.SelectSelector):
    """Lets the virtual time pass instead of waiting. Its file descriptors are never ready."""

    now_s = 0.0
    ready: deque[asyncio.Handle]
    on_step: Callable[[deque[asyncio.Handle]], None] | None = None
    limit_s = float("inf")
    describe: Callable[[], str] = staticmethod(lambda: "")

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if self.on_step is not None and self.ready:
            self.on_step(self.ready)
        if timeout is None:
            raise VirtualDeadlock(f"deadlock at {self.now_s:.6f} s (virtual): {self.describe()}")
        if timeout > 0:
            if self.now_s + timeout > self.limit_s:
                message = f"not done after {self.limit_s:g} s (virtual): {self.describe()}"
                self.limit_s = self.now_s + CLEANUP_VIRTUAL_S
                raise VirtualTimeLimit(message)
            self.now_s += timeout
        return []


class VirtualLoop(asyncio.SelectorEventLoop):
    """``time()`` starts at 0 and passes only while nothing is ready."""

    _ready: deque[asyncio.Handle]  # of the base class

    def __init__(self, *, max_virtual_s: float = float("inf")) -> None:
        self._virtual = _VirtualSelector()
        super().__init__(self._virtual)
        self._virtual.ready = self._ready
        self._virtual.limit_s = max_virtual_s
        self._virtual.describe = self._waiting

    def on_step(self, look: Callable[[deque[asyncio.Handle]], None]) -> None:
        """Have ``look`` called with what is ready, before each turn of the loop; it may order it anew."""
        self._virtual.on_step = look

    def time(self) -> float:
        return self._virtual.now_s

    def call_soon(
        self,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        # As the base class's, without its checks for closed loops and debugging: it is called all the time.
        handle = asyncio.Handle(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[Ts]], T], *args: *Ts
    ) -> asyncio.Future[T]:
        raise RuntimeError("no threads on a virtual clock: use the Offload port")

    def _waiting(self) -> str:
        lines = []
        for task in sorted(asyncio.all_tasks(self), key=lambda task: task.get_name()):
            stack = task.get_stack(limit=1)
            place = f"{stack[0].f_code.co_filename}:{stack[0].f_lineno}" if stack else "not started"
            lines.append(f"{task.get_name()} waits at {place}")
        return "; ".join(lines) or "no task is left"


def run(coro_fn: Callable[[], Coroutine[Any, Any, T]], *, max_virtual_s: float = 86_400.0) -> T:
    """Run ``coro_fn()`` to its end on a new `VirtualLoop`. Not from within a running loop.

    Raises `VirtualDeadlock` or `VirtualTimeLimit`, after all tasks were cancelled.
    """
    with asyncio.Runner(loop_factory=lambda: VirtualLoop(max_virtual_s=max_virtual_s)) as runner:
        return runner.run(coro_fn())
