"""What is done, at the moment that was waited for, and what the log says of that moment."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from broker.mqtt_client import KEEPALIVE_S
from edge_agent.ledger import RequestState
from tests.chaos.disks import Disks
from tests.chaos.moments import Moment, await_moment, wait
from tests.chaos.party import Party
from tests.chaos.plan import Kind
from tests.chaos.record import Key, Record

STOPPED_S: Final = 2.0 * KEEPALIVE_S + 5.0  # by then any broker gave up who is silent (AMQP: two heartbeats)
CUT_S: Final = (0.5, 6.0)
MOMENTS: Final = {Kind.WORKER: [Moment.TRAINING]}  # of others: all
FULL: Final = "[Errno 28]"
TOO: Final = 0.5  # so often a coordinator whose disk is full is killed, too
STOPPABLE: Final = ("agent", "coordinator", "broker")


@dataclass(frozen=True)
class Hit:
    """What was done to whom, and the update that was in flight at this entry of the log; ``index`` is 0 when
    none was: the fault missed."""

    kind: Kind
    victim: str
    moment: Moment
    key: Key
    index: int


class Faults:
    """Makes them, one at a time."""

    def __init__(self, party: Party, record: Record, draw: random.Random, disks: Disks) -> None:
        self._party = party
        self._record = record
        self._draw = draw
        self._disks = disks
        self._ways: dict[Kind, Callable[[str, Key], int]] = {
            Kind.COORDINATOR: self._kill_coordinator,
            Kind.AGENT: self._kill_agent,
            Kind.WORKER: self._kill_worker,
            Kind.BROKER: self._kill_broker,
            Kind.STOP: self._stop,
            Kind.DISK: self._fill,
            Kind.CUT: self._cut,
        }

    def make(self, kind: Kind) -> Hit:
        """Wait for its moment and do it; returns when the victim is up again."""
        party, draw = self._party, self._draw
        victim = self._victim(kind)
        of_device = victim in party.devices
        moment = draw.choice(MOMENTS.get(kind, list(Moment)))
        key = await_moment(party, moment, draw, [victim] if of_device else party.devices)
        return Hit(kind, victim, moment, key, self._ways[kind](victim, key))

    def _victim(self, kind: Kind) -> str:
        device = self._draw.choice(self._party.devices)
        match kind:
            case Kind.COORDINATOR | Kind.BROKER:
                return kind.value
            case Kind.STOP:
                who = self._draw.choice(STOPPABLE)
                return device if who == "agent" else who
            case Kind.DISK:
                return self._draw.choice(self._disks.owners)
        return device

    def _proven(self, key: Key) -> int:
        """The entry at which the update was still in flight; 0 if the log says that it was not."""
        index = self._record.read()
        return index if self._record.in_flight(key, index) else 0

    def _kill_coordinator(self, victim: str, key: Key) -> int:
        self._party.kill(victim)
        index = self._proven(key)
        self._party.serve()
        return index

    def _kill_agent(self, victim: str, key: Key) -> int:
        self._party.kill(victim)
        known = self._party.known(key)
        index = self._proven(key)
        self._party.run(victim)
        unsent = known is not None and known.state in (RequestState.ACCEPTED, RequestState.MADE)
        return index if unsent else 0

    def _kill_worker(self, victim: str, key: Key) -> int:
        """Its agent declines for it; the log shows that, and that the round was open then."""
        party, record = self._party, self._record
        worker = party.worker(victim)
        if not worker:
            return 0
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
        known = party.known(key)
        if known is None or known.state not in (RequestState.ACCEPTED, RequestState.DECLINED):
            return 0

        def answered() -> bool:
            record.read()
            return record.over(key)

        wait(party, answered, f"{victim} says that its worker is gone")
        declined = record.declined.get(key)
        if declined is None or declined.reason != "worker":
            return 0
        before = record.over_at(key) - 1
        return before if record.in_flight(key, before) else 0

    def _kill_broker(self, victim: str, key: Key) -> int:
        self._party.signal(victim, signal.SIGKILL)
        index = self._proven(key)
        self._party.broker.stop(signal.SIGKILL)
        self._party.broker.start()
        return index

    def _stop(self, victim: str, key: Key) -> int:
        self._party.signal(victim, signal.SIGSTOP)
        try:
            index = self._proven(key)
            time.sleep(STOPPED_S)
        finally:
            self._party.signal(victim, signal.SIGCONT)
        return index

    def _cut(self, victim: str, key: Key) -> int:
        self._party.links.cut(victim)
        try:
            index = self._proven(key)
            time.sleep(self._draw.uniform(*CUT_S))
        finally:
            self._party.links.mend(victim)
        return index

    def _fill(self, victim: str, key: Key) -> int:
        said = self._party.log(victim).count(FULL)
        index = self._proven(key)
        with self._disks.filled(victim):

            def told() -> bool:
                self._disks.fill(victim)
                if victim == "coordinator":
                    return bool(self._party.status().get("disk_problem"))
                return self._party.log(victim).count(FULL) > said

            wait(self._party, told, f"{victim} says that its disk is full")
            if victim == "coordinator" and self._draw.random() < TOO:
                self._party.kill(victim)
                self._party.serve()
        return index
