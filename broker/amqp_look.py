"""A look at the queue of a durable AMQP session, for the doctor: is it there, and is it what it must be."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from aiormq.exceptions import (
    AMQPError,
    ChannelAccessRefused,
    ChannelNotFoundEntity,
    ChannelPreconditionFailed,
)
from pamqp.common import FieldValue

from broker.amqp import QUEUE_ARGUMENTS
from broker.amqp_connection import Address, AmqpConnection, dial
from broker.bus import BusLost, Credentials

DIFFERENCES_MAX: Final = 16

_DIFFERENCE: Final = re.compile(r"inequivalent arg '([^']+)'.* but current is (.+)")
_NUMBER: Final = re.compile(r"the value '(-?[0-9]+)' of type")


@dataclass(frozen=True, slots=True)
class QueueLook:
    """``differences`` are the arguments, with their values, that are not as in `broker.amqp.QUEUE_ARGUMENTS`
    (``durable`` is one of them); None if this user may not ask."""

    server: str
    exists: bool
    messages: int = 0
    consumers: int = 0
    differences: dict[str, str] | None = None


async def look(address: Address, credentials: Credentials) -> QueueLook:
    """Look, and change nothing. Callers set a deadline. Raises `broker.bus.BusLost`, `BusRefused`."""
    connection = await dial(address, credentials, "looks", broken=_ignore, blocked=_ignore)
    try:
        return await _look(connection, credentials.client_id)
    except (AMQPError, ConnectionError) as error:
        raise BusLost(f"{address.name}: queue {credentials.client_id}: {error}") from error
    finally:
        await connection.hang_up(politely=True)


async def _look(connection: AmqpConnection, queue: str) -> QueueLook:
    properties = connection.server_properties
    server = f"{_text(properties.get('product'))} {_text(properties.get('version'))}"
    try:
        found = await (await connection.channel()).queue_declare(queue, passive=True)
    except ChannelNotFoundEntity as error:
        if "no queue" not in str(error):  # it is there, and its node is not
            raise
        return QueueLook(server, exists=False)
    differences = await _differences(connection, queue)
    return QueueLook(server, True, found.message_count or 0, found.consumer_count or 0, differences)


async def _differences(connection: AmqpConnection, queue: str) -> dict[str, str] | None:
    """Declare the queue again, which only compares, since it exists. The broker names one difference at a
    time: what it names is taken over, and the rest compared again."""
    arguments: dict[str, FieldValue] = dict(QUEUE_ARGUMENTS)
    found: dict[str, str] = {}
    while len(found) < DIFFERENCES_MAX:
        channel = await connection.channel()
        try:
            await channel.queue_declare(queue, durable=True, arguments=arguments)
        except ChannelAccessRefused:
            return None
        except ChannelPreconditionFailed as error:
            known = _DIFFERENCE.search(str(error))
            if known is None or known[1] in found:
                return found | {"queue": str(error)}
            name, value = known[1], known[2].strip("'")
            number = _NUMBER.match(value)
            found[name] = number[1] if number else value
            if not name.startswith("x-"):
                break
            arguments.pop(name, None)
            if value != "none":
                arguments[name] = int(number[1]) if number else value
        else:
            break
    return found


def _text(value: object) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")


def _ignore(_: object) -> None:
    """What becomes of the connection is seen where it is used."""
