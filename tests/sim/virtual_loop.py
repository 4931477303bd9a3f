"""An event loop on a virtual clock: a day of waiting passes in a moment, and equal runs are equal.

When nothing is ready, time jumps to the next timer. When there is no timer either, nothing can ever
happen again: that is a deadlock, and said so. Nothing real may be waited for (sockets, threads,
processes); the simulated ports of ``tests.sim.machine`` need none of them.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextvars import copy_context as _copy_context
from heapq import heappop, heappush
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


class _Ready(asyncio.Handle):
    """A handle without what debugging needs: one is made for every step of every task."""

    __slots__ = ()
    _repr = _source_traceback = None

    def __init__(
        self,
        callback: Callable[..., object],
        args: Sequence[object],
        loop: asyncio.AbstractEventLoop,
        context: contextvars.Context | None,
    ) -> None:
        self._context = _copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False


class _Timer(asyncio.TimerHandle):
    """As `_Ready`, for later."""

    __slots__ = ()
    _repr = _source_traceback = None
    _scheduled = False

    def __init__(
        self,
        when: float,
        callback: Callable[..., object],
        args: Sequence[object],
        loop: asyncio.AbstractEventLoop,
        context: contextvars.Context | None,
    ) -> None:
        self._context = _copy_context() if context is None else context
        self._loop = loop
        self._callback = callback
        self._args = args
        self._cancelled = False
        self._when = when

    def cancel(self) -> None:
        self._cancelled = True
        self._callback, self._args = None, ()  # type: ignore[assignment]  # as the base class does


class VirtualLoop(asyncio.SelectorEventLoop):
    """``time()`` starts at 0 and passes only while nothing is ready.

    ``on_step`` is called with what is ready before each turn of the loop; it may order it anew.
    """

    _ready: deque[asyncio.Handle]  # of the base class
    _stopping: bool

    def __init__(self, *, max_virtual_s: float = float("inf")) -> None:
        super().__init__()
        self.on_step: Callable[[deque[asyncio.Handle]], None] | None = None
        self._now_s = 0.0
        self._limit_s = max_virtual_s
        self._timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._timers_made = 0

    get_debug = staticmethod(bool)  # asked for each future: never

    def time(self) -> float:
        return self._now_s

    def call_soon(
        self,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        handle = _Ready(callback, args, self, context)
        self._ready.append(handle)
        return handle

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        timer = _Timer(when, callback, args, self, context)
        self._timers_made += 1
        heappush(self._timers, (when, self._timers_made, timer))
        return timer

    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        when = self._now_s + delay
        timer = _Timer(when, callback, args, self, context)
        self._timers_made += 1
        heappush(self._timers, (when, self._timers_made, timer))
        return timer

    def _run_once(self) -> None:
        """All turns until `stop`, in place of the base class's single one: nothing real is waited for."""
        ready, timers, next_ready = self._ready, self._timers, self._ready.popleft
        while True:
            if not ready and not self._stopping:
                self._pass_time()
            elif self.on_step is not None:
                self.on_step(ready)
            while timers and timers[0][0] <= self._now_s:
                timer = heappop(timers)[2]
                if not timer._cancelled:
                    ready.append(timer)
            for _ in range(len(ready)):
                handle = next_ready()
                if not handle._cancelled:
                    try:  # as `asyncio.Handle._run` does, without another call
                        handle._context.run(handle._callback, *handle._args)  # type: ignore[attr-defined]  # ours
                    except (SystemExit, KeyboardInterrupt):
                        raise
                    except BaseException as error:  # noqa: BLE001  # what a callback raises must not end the loop
                        self._report(handle, error)
            if self._stopping:
                return

    def _report(self, handle: asyncio.Handle, error: BaseException) -> None:
        message = f"Exception in callback {handle!r}"
        self.call_exception_handler({"message": message, "exception": error, "handle": handle})

    def _pass_time(self) -> None:
        timers = self._timers
        while timers and timers[0][2].cancelled():
            heappop(timers)
        if not timers:
            raise VirtualDeadlock(f"deadlock at {self._now_s:.6f} s (virtual): {self._waiting()}")
        if timers[0][0] > self._limit_s:
            message = f"not done after {self._limit_s:g} s (virtual): {self._waiting()}"
            self._limit_s = self._now_s + CLEANUP_VIRTUAL_S
            raise VirtualTimeLimit(message)
        self._now_s = max(self._now_s, timers[0][0])

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
