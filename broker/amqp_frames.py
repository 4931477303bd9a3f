"""What passes over an AMQP connection, frame by frame.

A frame (AMQP 0-9-1, section 2.3.5) is its type, its channel and its size, then what it carries (in a method
frame class and method come first), and one byte that ends it. aiormq goes on talking on a channel that has
ended, and ends a connection for a message whose sender made up properties or a topic that Python cannot read,
whenever it is delivered.
"""

from __future__ import annotations

import asyncio
from struct import Struct
from typing import Final

from aiormq.abc import ChannelFrame
from aiormq.connection import FrameReceiver, ReceivedFrame
from aiormq.exceptions import AMQPConnectionError, ChannelInvalidStateError, InvalidFrameError
from pamqp import frame as frames
from pamqp.commands import Basic
from pamqp.constants import FRAME_HEADER, FRAME_METHOD
from pamqp.exceptions import PAMQPException
from pamqp.header import ContentHeader

CHANNEL_OPEN: Final = bytes([0, 20, 0, 10])
CHANNEL_CLOSE_OK: Final = bytes([0, 20, 0, 41])

_DELIVER: Final = bytes([0, 60, 0, 60])
_START: Final = Struct(">BHI")
_MESSAGE_ID: Final = 1 << 7
_BEFORE_ID: Final = ((15, 1), (14, 1), (13, 4), (12, 0), (11, 0), (10, 1), (9, 1), (8, 1))
"""Flags of the properties that stand before the message id, each with the bytes that tell its length; those
without are one byte long (AMQP 0-9-1, section 4.2.6.1)."""


class Outgoing(asyncio.Queue[ChannelFrame]):
    """Frames to be written. What would follow the end of its channel raises `ChannelInvalidStateError`: the
    broker would end the whole connection for it."""

    def __init__(self, frames_max: int) -> None:
        super().__init__(frames_max)
        self._ended: set[bytes] = set()

    def _put(self, item: ChannelFrame) -> None:
        channel, method = item.payload[1:3], item.payload[7:11]
        if method == CHANNEL_OPEN:
            self._ended.discard(channel)
        elif channel in self._ended:
            raise ChannelInvalidStateError("the channel has ended")
        elif method == CHANNEL_CLOSE_OK:
            self._ended.add(channel)
        super()._put(item)


class Incoming(FrameReceiver):
    """Frames as they come. A message is delivered whatever its sender wrote into properties and topic, and as
    quickly as any other: of properties only the message id is read."""

    async def get_frame(self) -> ReceivedFrame:
        """Raises `AMQPConnectionError`, `InvalidFrameError`."""
        try:
            start = await self.reader.readexactly(_START.size)
            kind, channel, size_bytes = _START.unpack(start)
            rest = await self.reader.readexactly(size_bytes + 1)
        except asyncio.IncompleteReadError as error:
            raise AMQPConnectionError("the broker closed it") from error
        except OSError as error:
            raise AMQPConnectionError(str(error)) from error
        if kind == FRAME_HEADER:
            return len(start + rest), channel, _header(rest[:-1])
        if kind == FRAME_METHOD and rest.startswith(_DELIVER):
            return len(start + rest), channel, _delivery(rest[4:-1])
        try:
            return frames.unmarshal(start + rest)
        except PAMQPException as error:
            raise InvalidFrameError(str(error)) from error


def _header(data: bytes) -> ContentHeader:
    """Class, weight, size of the body, flags, properties. By its id we know our own when it is returned."""
    header = ContentHeader(body_size=int.from_bytes(data[4:12]))
    flags, start = int.from_bytes(data[12:14]), 14
    if flags & _MESSAGE_ID:
        for bit, size_bytes in _BEFORE_ID:
            if flags & 1 << bit:
                start += size_bytes + int.from_bytes(data[start : start + size_bytes]) if size_bytes else 1
        end = start + 1 + int.from_bytes(data[start : start + 1])
        header.properties.message_id = _text(data[start + 1 : end])
    return header


def _delivery(data: bytes) -> Basic.Deliver:
    """Consumer tag, delivery tag, whether it was delivered before, exchange, routing key."""
    tag_end = 1 + data[0]
    exchange_end = tag_end + 10 + data[tag_end + 9]
    return Basic.Deliver(
        consumer_tag=_text(data[1:tag_end]),
        delivery_tag=int.from_bytes(data[tag_end : tag_end + 8]),
        redelivered=bool(data[tag_end + 8]),
        routing_key=_text(data[exchange_end + 1 :]),
    )


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")
