"""Life as a service, the same for coordinator and agent: signals, a bounded end, news for systemd."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Final

STOP_DEADLINE_S: Final = 10.0
SAME_SIGNAL_S: Final = 1.0
"""A signal this soon after the first is the same wish: the kernel repeats a parent's death signal for each
of the parent's threads, and a terminal's Ctrl-C comes from the terminal and from the parent."""
STOPPED_TOO_LATE: Final = 1
NOTIFY_SOCKET: Final = "NOTIFY_SOCKET"

log: Final = logging.getLogger("fedbus.service")


async def run(
    serve: Callable[[], Awaitable[None]],
    *,
    environment: Mapping[str, str] = os.environ,
    stop_deadline_s: float = STOP_DEADLINE_S,
) -> None:
    """Await ``serve()`` until it ends, or SIGTERM or SIGINT comes: then it is cancelled.

    Returns after a clean end; what ``serve`` raises is raised here. If its cleanup takes longer than
    ``stop_deadline_s``, or a second signal comes later than `SAME_SIGNAL_S`, the process ends at once with
    status 1: everything that must survive is durable before it counts, so that loses nothing. Tells systemd
    ``STOPPING=1``.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    asked_s: list[float] = []

    def stop_asked() -> None:
        asked_s.append(loop.time())
        if asked_s[-1] - asked_s[0] >= SAME_SIGNAL_S:
            _end_at_once("a second signal came")
        stop.set()

    numbers = (signal.SIGTERM, signal.SIGINT)
    for number in numbers:
        loop.add_signal_handler(number, stop_asked)
    try:
        async with asyncio.TaskGroup() as group:
            service = group.create_task(_awaited(serve), name="service")
            signalled = group.create_task(stop.wait(), name="signals")
            await asyncio.wait({service, signalled}, return_when=asyncio.FIRST_COMPLETED)
            signalled.cancel()
            if not service.done():
                notify("STOPPING=1", environment)
                service.cancel()
                done, _ = await asyncio.wait({service}, timeout=stop_deadline_s)
                if not done:
                    _end_at_once(f"the clean end took longer than {stop_deadline_s:g} s")
    except BaseExceptionGroup as group_error:
        raise innermost(group_error) from group_error
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)


def notify(state: str, environment: Mapping[str, str] = os.environ) -> None:
    """Tell systemd, if it listens: ``READY=1``, ``STOPPING=1`` (sd_notify(3)). Never fails."""
    name = environment.get(NOTIFY_SOCKET, "")
    if not name:
        return
    address = "\0" + name[1:] if name.startswith("@") else name
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
        out.connect(address)
        out.sendall(state.encode())


def innermost(error: BaseException) -> BaseException:
    """The one error inside of groups of one; of several, the first: the others followed from it."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _awaited(serve: Callable[[], Awaitable[None]]) -> None:
    await serve()


def _end_at_once(reason: str) -> None:
    log.error("ending at once: %s", reason)
    logging.shutdown()
    os._exit(STOPPED_TOO_LATE)
