"""The broker's side of MQTT 3.1.1, spoken by a test packet by packet (OASIS standard, chapter 3)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Self

CONNECT, PUBLISH, PUBACK, SUBSCRIBE, DISCONNECT = 1, 3, 4, 8, 14


@dataclass(frozen=True, slots=True)
class Packet:
    kind: int
    body: bytes

    @property
    def number(self) -> int:
        """Packet identifier of PUBACK and SUBSCRIBE."""
        return int.from_bytes(self.body[:2], "big")


class Wire:
    """One accepted connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def read(self, kind: int) -> Packet:
        """The next packet, which must be of this kind."""
        first = (await self._reader.readexactly(1))[0]
        size = shift = 0
        while True:
            byte = (await self._reader.readexactly(1))[0]
            size |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        packet = Packet(first >> 4, await self._reader.readexactly(size))
        assert packet.kind == kind, packet
        return packet

    def greet(self, code: int = 0) -> None:
        """CONNACK."""
        self._writer.write(bytes([0x20, 2, 0, code]))

    def grant(self, asked: Packet) -> None:
        """SUBACK for one topic."""
        self._writer.write(bytes([0x90, 3]) + asked.body[:2] + b"\x01")

    async def welcome(self) -> bytes:
        """CONNECT and one SUBSCRIBE, both answered; returns the body of CONNECT."""
        connect = await self.read(CONNECT)
        self.greet()
        self.grant(await self.read(SUBSCRIBE))
        return connect.body

    def deliver(self, number: int, payload: bytes, topic: bytes = b"t") -> None:
        """PUBLISH with QoS 1."""
        body = len(topic).to_bytes(2, "big") + topic + number.to_bytes(2, "big") + payload
        self._writer.write(bytes([0x32, len(body)]) + body)

    def acknowledge(self, sent: Packet) -> None:
        """PUBACK for a PUBLISH with QoS 1."""
        topic = 2 + int.from_bytes(sent.body[:2], "big")
        self._writer.write(b"\x40\x02" + sent.body[topic : topic + 2])

    async def ended(self) -> None:
        """Wait until the client has closed its side."""
        assert await self._reader.read() == b""

    def close(self) -> None:
        """End the connection after what was said."""
        self._writer.close()

    def abort(self) -> None:
        """End the connection at once."""
        self._writer.transport.abort()


class ScriptedBroker:
    """Listens; the test takes the connections one by one and plays the broker on them."""

    def __init__(self) -> None:
        self.port = 0
        self._accepted: asyncio.Queue[Wire] = asyncio.Queue()
        self._wires: list[Wire] = []
        self._server: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        for wire in self._wires:
            wire.abort()

    async def accept(self) -> Wire:
        return await self._accepted.get()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        wire = Wire(reader, writer)
        self._wires.append(wire)
        self._accepted.put_nowait(wire)
