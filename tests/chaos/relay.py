"""``python -m tests.chaos.relay PORT``: passes connections on to a broker here; prints its own port."""

from __future__ import annotations

import asyncio
import sys

from tests.contract.proxy import Proxy


async def relay(port: int) -> None:
    """Until killed."""
    async with Proxy(port) as proxy:
        print(proxy.port, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(relay(int(sys.argv[1])))
