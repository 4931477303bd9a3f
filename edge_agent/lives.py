"""One agent after another, should its disk be full: each begins with what the disk holds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from broker.room import disk_full
from edge_agent.app import Agent

log: Final = logging.getLogger("fedbus.agent")

FULL_WAIT_S: Final = 15.0


async def live(make: Callable[[], Agent]) -> None:
    """Run an agent until cancelled. One that can't write for want of room ends, having promised nothing that
    is not on the disk; the next one goes on a while later. Raises what ends an agent otherwise."""
    while True:
        try:
            await make().run()
        except OSError as error:
            if not disk_full(error):
                raise
            text = "the disk is full (%s); free space: the agent goes on within %g s"
            log.error(text, error, FULL_WAIT_S)  # noqa: TRY400  # for people
        await asyncio.sleep(FULL_WAIT_S)
