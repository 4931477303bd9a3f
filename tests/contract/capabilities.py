"""What each transport promises at the bus.

The suite reads this table and shows both: what holds, and what happens instead where it does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

WINDOW = 8
"""The window that the suite's buses ask for."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What holds at the bus. What does not is made good by the receipts above it, and by nothing else.

    ``None``: the transport has no such thing (no process to end, no access rules).
    """

    ordered: bool
    """What one sender says arrives in that order, while no connection breaks."""
    queues_offline: bool
    """What is sent to a session that is away waits for it, however much it is."""
    redelivers: bool
    """What was not acknowledged when the connection broke, or the reader was killed, comes again."""
    outlives_stop: bool | None
    """What waits in a queue is there again after the broker was stopped and started."""
    outlives_kill: bool | None
    """And after a kill -9."""
    denied_shows: bool | None
    """Publishing where one may not is an error for the sender."""
    unroutable_shows: bool
    """Publishing where nobody listens is an error for the sender."""
    window: int | None
    """Messages that the broker sends at most beyond the acknowledged ones; None: there is no such number, and
    the rest waits in the reader's memory."""


CAPABILITIES = {
    "memory": Capabilities(
        ordered=True,
        queues_offline=True,
        redelivers=True,
        outlives_stop=None,
        outlives_kill=None,
        denied_shows=None,
        unroutable_shows=False,
        window=WINDOW,
    ),
    # amqtt: sessions live in memory, and what is in flight is forgotten when a connection ends.
    "embedded": Capabilities(
        ordered=True,
        queues_offline=True,
        redelivers=False,
        outlives_stop=False,
        outlives_kill=False,
        denied_shows=False,
        unroutable_shows=False,
        window=None,
    ),
    "mosquitto": Capabilities(
        ordered=True,
        queues_offline=True,
        redelivers=True,
        outlives_stop=True,
        outlives_kill=False,
        denied_shows=False,
        unroutable_shows=False,
        window=None,
    ),
    "rabbitmq-amqp": Capabilities(
        ordered=True,
        queues_offline=True,
        redelivers=True,
        outlives_stop=True,
        outlives_kill=True,
        denied_shows=True,
        unroutable_shows=True,
        window=WINDOW,
    ),
    "rabbitmq-mqtt": Capabilities(
        ordered=True,
        queues_offline=True,
        redelivers=True,
        outlives_stop=True,
        outlives_kill=True,
        denied_shows=True,
        unroutable_shows=False,
        window=10,  # mqtt.prefetch
    ),
}


def those(wanted: Callable[[Capabilities], object] = lambda _: True) -> list[object]:
    """The transports for which ``wanted`` holds, as parameters of the fixture `kind`."""
    names = [name for name, capabilities in CAPABILITIES.items() if wanted(capabilities)]
    quick = ("memory", "embedded")
    return [name if name in quick else pytest.param(name, marks=pytest.mark.live) for name in names]
