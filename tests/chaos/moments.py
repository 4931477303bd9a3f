"""Waiting for the moment at which a fault hits: seen in the devices' ledgers and the coordinator's spools."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from enum import StrEnum
from typing import Final

from edge_agent.ledger import RequestState
from tests.chaos.party import PATIENCE_S, Party
from tests.chaos.record import Key, Violation

LOOK_S: Final = 0.05
SHARP_S: Final = 0.002  # what is waited for may be over in some milliseconds
CARE_S: Final = 0.25  # how often it is seen to that there is work, and that everybody lives


class Moment(StrEnum):
    """How far an update has come."""

    TRAINING = "training"  # a device has accepted its request, and its worker runs
    SEALED = "sealed"  # the update is in a device's outbox, without a receipt
    UPLOADING = "uploading"  # and a part of an update is in the coordinator's spool


def seen(party: Party, moment: Moment, devices: Sequence[str]) -> Key | None:
    """An update that has come so far now, of one of these devices."""
    if moment is Moment.UPLOADING and not party.uploading():
        return None
    wanted = RequestState.ACCEPTED if moment is Moment.TRAINING else RequestState.MADE
    for device in devices:
        for record in reversed(party.held(device)):
            ours = record.job == party.job_name and record.state is wanted
            if ours and (moment is not Moment.TRAINING or party.worker(device)):
                return Key(record.job, device, record.number)
    return None


def wait(party: Party, condition: Callable[[], bool], what: str, look_s: float = LOOK_S) -> None:
    """Until it is so; meanwhile there is always a job. Raises `Violation` when it does not come about, or
    when a program ends."""
    end_s, care_s = time.monotonic() + PATIENCE_S, 0.0
    while not condition():
        now_s = time.monotonic()
        if now_s > end_s:
            raise Violation(f"nothing moves on: waited {PATIENCE_S:g} s until {what}")
        if now_s > care_s:
            party.all_run()
            if not party.working():
                party.next_job()
            care_s = now_s + CARE_S
        time.sleep(look_s)


def await_moment(party: Party, moment: Moment, draw: random.Random, devices: Sequence[str]) -> Key:
    """The update that is seen there."""
    order = draw.sample(devices, len(devices))
    found: list[Key] = []

    def there() -> bool:
        key = seen(party, moment, order)
        if key is not None:
            found.append(key)
        return bool(found)

    wait(party, there, f"an update of {', '.join(devices)} is {moment}", SHARP_S)
    return found[0]
