"""A TCP port of this machine: is it free, and does an MQTT broker answer on it?"""

from __future__ import annotations

import asyncio
import errno
from contextlib import suppress

from broker.bus import BusError

HOST = "127.0.0.1"
POLL_S = 0.02
PROBE_DEADLINE_S = 2.0

# CONNECT of a protocol level that no broker speaks, and the refusal (CONNACK 1) that every MQTT broker
# answers: a handshake that leaves no session and needs no user.
_PROBE = b"\x10\x0c\x00\x04MQTT\x03\x02\x00\x05\x00\x00"
_PROBE_ANSWER = b"\x20\x02\x00\x01"


async def free_port(port: int, patience_s: float) -> int:
    """The port itself, or any for 0. Raises `BusError` if it is still taken after the patience."""
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + patience_s
    while True:
        try:
            server = await asyncio.start_server(lambda _reader, _writer: None, HOST, port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and loop.time() < deadline_s:
                await asyncio.sleep(POLL_S)
                continue
            raise BusError(
                f"embedded broker: cannot listen on port {port}: {error.strerror or error}; "
                "stop the program that uses it, or choose another port"
            ) from error
        free: int = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        return free


async def answers(port: int) -> bool:
    """Whether an MQTT broker answers on the port."""
    try:
        async with asyncio.timeout(PROBE_DEADLINE_S):
            reader, writer = await asyncio.open_connection(HOST, port)
            try:
                writer.write(_PROBE)
                return await reader.readexactly(len(_PROBE_ANSWER)) == _PROBE_ANSWER
            finally:
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError, asyncio.IncompleteReadError):
        return False
