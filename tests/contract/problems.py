"""Waiting for what a bus says of itself."""

from __future__ import annotations

import asyncio

from broker.bus import Bus

LOOK_S = 0.005


async def problem(bus: Bus, part: str) -> str:
    """Wait until the bus's problem has ``part`` in it (until there is none, if empty), and return it."""
    while not (part in bus.problem if part else bus.problem == ""):  # noqa: ASYNC110 - a property: nobody tells
        await asyncio.sleep(LOOK_S)
    return bus.problem
