"""What is read of a frame, and what is not."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

from aiormq.connection import ReceivedFrame
from hypothesis import given
from hypothesis import strategies as st
from pamqp import frame
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from broker.amqp_frames import Incoming

short = st.none() | st.text(max_size=40)
octets = st.none() | st.integers(1, 9)
tables = st.none() | st.dictionaries(st.text(min_size=1, max_size=9), st.text(), max_size=3)
PROPERTIES = {
    "content_type": short,
    "content_encoding": short,
    "headers": tables,
    "delivery_mode": st.sampled_from([None, 1, 2]),
    "priority": octets,
    "correlation_id": short,
    "reply_to": short,
    "expiration": short,
    "message_id": short,
    "timestamp": st.sampled_from([None, datetime(2026, 1, 2, tzinfo=UTC)]),
    "app_id": short,
}


def received(data: bytes) -> ReceivedFrame:
    async def read() -> ReceivedFrame:
        reader = asyncio.StreamReader()
        reader.feed_data(data)
        return await Incoming(reader).get_frame()

    return asyncio.run(read())


@given(st.fixed_dictionaries(PROPERTIES), st.integers(0, 2**62), st.integers(1, 2**16 - 1))
def test_a_message_id_is_read_wherever_it_stands(
    written: dict[str, Any], size_bytes: int, channel: int
) -> None:
    sent = frame.marshal(ContentHeader(0, size_bytes, Basic.Properties(**written)), channel)
    taken_bytes, of_channel, header = received(sent)
    assert isinstance(header, ContentHeader)
    assert (taken_bytes, of_channel, header.body_size) == (len(sent), channel, size_bytes)
    assert (header.properties.message_id or "") == (written["message_id"] or "")


@given(st.text(max_size=60), st.integers(0, 2**63 - 1), st.booleans(), st.text(max_size=60))
def test_a_delivery_is_read_as_it_was_written(consumer: str, tag: int, again: bool, key: str) -> None:
    sent = frame.marshal(Basic.Deliver(consumer, tag, again, "amq.topic", key), 1)
    _, _, delivery = received(sent)
    assert isinstance(delivery, Basic.Deliver)
    assert delivery.consumer_tag == consumer
    assert (delivery.delivery_tag, delivery.redelivered, delivery.routing_key) == (tag, again, key)
