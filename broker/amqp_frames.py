"""What passes over an AMQP connection, frame by frame: aiormq goes on talking on a channel that has ended.

A frame (AMQP 0-9-1, section 2.3.5) is its type, its channel and its size, then what it carries (in a method
frame class and method come first), and one byte that ends it.
"""

from __future__ import annotations

import asyncio
from typing import Final

from aiormq.abc import ChannelFrame
from aiormq.exceptions import ChannelInvalidStateError

CHANNEL_OPEN: Final = bytes([0, 20, 0, 10])
CHANNEL_CLOSE_OK: Final = bytes([0, 20, 0, 41])


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
