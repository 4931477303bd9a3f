"""What a broker carries without fedbus: the same bytes, the same libraries, one process at each end.

``python -m tests.bench.raw take URL USER PASSWORD TOPIC COUNT`` reads and acknowledges; ``… give …``
publishes.
"""

from __future__ import annotations

import asyncio
import json
import math
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import aio_pika
import aiomqtt

ROOT = Path(__file__).parents[2]
NODELAY = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
IN_FLIGHT = 16  # messages of one sender, as a grant allows
PREFETCH = 64


class Ends:
    """Who publishes where, and who reads it. Users are ``(name, password)``."""

    def __init__(
        self, give_url: str, givers: list[tuple[str, str]], take_url: str, taker: tuple[str, str], topic: str
    ) -> None:
        self.give_url, self.givers = give_url, givers
        self.take_url, self.taker = take_url, taker
        self.topic = topic  # "{user}" in it is the sender's topic level

    def carry(self, messages: int, size_bytes: int) -> float:
        """Seconds from the first publish until the last of ``messages`` is acknowledged by its reader."""
        each = messages // len(self.givers)
        take = [self.take_url, *self.taker, self.topic.replace("{user}", "+"), str(each * len(self.givers))]
        users = json.dumps(self.givers)
        with (
            _program("take", *take) as reader,
            _program("give", self.give_url, users, self.topic, str(each), str(size_bytes)) as writer,
        ):
            for process in (reader, writer):
                _expect(process, "ready")
            began_s = time.monotonic()
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
            _expect(reader, "done")
            took_s = time.monotonic() - began_s
            _expect(writer, "done")
        return took_s


def _program(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.bench.raw", *arguments],
        cwd=ROOT,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def _expect(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdout is not None
    if (line := process.stdout.readline().strip()) != word:
        raise RuntimeError(f"the raw client said {line!r}, not {word!r}")


def _mqtt(url: str, user: str, password: str, *, clean: bool) -> aiomqtt.Client:
    parts = urlsplit(url)
    client = aiomqtt.Client(
        parts.hostname or "",
        parts.port or 1883,
        username=user,
        password=password,
        identifier=user,
        clean_session=clean,
        timeout=math.inf,
        socket_options=NODELAY,
    )
    client.pending_calls_threshold = sys.maxsize
    return client


async def _take(url: str, user: str, password: str, topic: str, count: int) -> None:
    if urlsplit(url).scheme == "amqp":
        parts = urlsplit(url)
        connection = await aio_pika.connect(
            host=parts.hostname or "", port=parts.port or 5672, login=user, password=password, virtualhost="/"
        )
        async with connection:
            channel = await connection.channel()
            await channel.set_qos(prefetch_count=PREFETCH)
            queue = await channel.get_queue(user, ensure=True)
            print("ready", flush=True)
            async with queue.iterator() as messages:
                async for message in messages:
                    await message.ack()
                    count -= 1
                    if not count:
                        break
            print("done", flush=True)
        return
    async with _mqtt(url, user, password, clean=False) as client:
        await client.subscribe(topic, qos=1)
        print("ready", flush=True)
        async for _ in client.messages:
            count -= 1
            if not count:
                break
        print("done", flush=True)


async def _give(url: str, users: list[tuple[str, str]], topic: str, each: int, size_bytes: int) -> None:
    payload = b"\x00FBR" + bytes(size_bytes - 4)

    async def one(user: str, password: str, go: asyncio.Event, stands: asyncio.Semaphore) -> None:
        room = asyncio.Semaphore(IN_FLIGHT)

        async def publish() -> None:
            try:
                await client.publish(topic.replace("{user}", user.partition("@")[0]), payload, qos=1)
            finally:
                room.release()

        async with _mqtt(url, user, password, clean=True) as client:
            stands.release()
            await go.wait()
            async with asyncio.TaskGroup() as sending:
                for _ in range(each):
                    await room.acquire()
                    sending.create_task(publish())

    go, stands = asyncio.Event(), asyncio.Semaphore(0)
    async with asyncio.TaskGroup() as group:
        for user, password in users:
            group.create_task(one(user, password, go, stands))
        for _ in users:
            await stands.acquire()
        print("ready", flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
        go.set()
    print("done", flush=True)


def main() -> None:
    """One end, as the command line says."""
    role, *rest = sys.argv[1:]
    if role == "take":
        url, user, password, topic, count = rest
        asyncio.run(_take(url, user, password, topic, int(count)))
    else:
        url, users, topic, each, size = rest
        asyncio.run(_give(url, [(u, p) for u, p in json.loads(users)], topic, int(each), int(size)))


if __name__ == "__main__":
    main()
