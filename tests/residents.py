"""Real agents in the test's own process; only their workers are functions."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from collections import Counter
from collections.abc import Collection
from pathlib import Path

from broker.ports import Ports
from broker.system import system_ports
from coordinator.cli.state import open_journal
from coordinator.entries import Turned, decode_entry
from coordinator.facts import Fact, RequestsIssued, UpdateJudged, UpdateReceived
from coordinator.replay import replay
from edge_agent.app import Agent
from edge_agent.config import Config, Policy
from edge_agent.enrol import enrol, prepare
from edge_agent.ledger import LedgerData, read_ledger
from schemas.enrolment import Token
from schemas.ids import DeviceId, broker_user
from tests.sim.machine import SimProcess, SimSpawn
from tests.standin import TASK, Federation
from tests.workers import Answer, trainer


class Resident:
    """A device of ``federation``: `enrol`, then `run`. Its updates have ``count`` parameters; ``ports`` are
    those of its machine, if it is another than the federation's."""

    def __init__(self, federation: Federation, name: str, count: int, ports: Ports | None = None) -> None:
        self.name = name
        self.id = DeviceId(name)
        self.training = asyncio.Event()
        """Set once a worker was told to train."""
        self.may_train = asyncio.Event()
        """While this is not set, workers begin nothing."""
        self.may_train.set()
        self.session = broker_user(federation.identity.federation, name)
        self._federation = federation
        self.directory = federation.directory.with_name(f"{federation.directory.name}-{name}")
        draw = random.Random(name)
        spawn = SimSpawn(lambda argv, env: _Worker(self, trainer(self._ports, count, draw)))
        self._ports = dataclasses.replace(ports or federation.ports, spawn=spawn)

    async def enrol(self, token: Token | None = None) -> None:
        """Join with a token from the operator; without one, ask for it first."""
        token = token or await self._federation.invite(self.name)
        identity = prepare(self._ports, self.directory, token)
        bus = self._federation.dial(identity.urls[0], identity.credentials(), [identity.down_topic])
        self._identity = await enrol(self._ports, self.directory, identity, bus)
        (self.directory / "data").write_bytes(b"data")

    async def run(self) -> None:
        """The agent, until cancelled."""
        identity = self._identity
        bus = self._federation.dial(identity.urls[0], identity.credentials(), [identity.down_topic])
        config = Config(policy=Policy(tasks=[TASK]), data={TASK: str(self.directory / "data")})
        agent = Agent(self.directory, config, self._ports, bus, identity, installed=lambda: [TASK])
        await agent.run()

    def ledger(self) -> LedgerData:
        """What the device remembers."""
        return read_ledger(self._ports.files, self.directory)


class _Worker(SimProcess):
    def __init__(self, resident: Resident, answer: Answer) -> None:
        super().__init__(answer)
        self._resident = resident

    async def write(self, data: bytes) -> None:
        self._resident.training.set()
        await self._resident.may_train.wait()
        await super().write(data)


def facts(directory: Path) -> list[Fact]:
    """All that a stopped coordinator decided, in order."""
    journal = open_journal(directory)
    try:
        entries = [decode_entry(logged.data) for logged in journal.entries()]
    finally:
        journal.close()
    return [fact for entry in entries if isinstance(entry, Turned) for fact in entry.facts]


def check_each_counted_once(directory: Path, residents: Collection[Resident], rounds: int) -> None:
    """In a stopped coordinator's log each update of the residents, for ``rounds`` rounds of "job", was
    receipted once and folded once; each resident holds its newest request; the log folds again to the same
    model."""
    log = facts(directory)
    newest: dict[str, int] = {}
    for fact in log:
        if isinstance(fact, RequestsIssued):
            newest |= {request.device: request.number for request in fact.requests}
    received = Counter((f.device, f.request) for f in log if isinstance(f, UpdateReceived))
    folded = Counter((f.device, f.request) for f in log if isinstance(f, UpdateJudged) and f.folded)
    assert set(received.values()) == {1}, "receipted twice"
    assert set(folded.values()) == {1}, "folded twice"
    assert len(folded) == len(received) == rounds * len(residents)
    for resident in residents:
        ledger = resident.ledger()
        assert ledger.jobs["job"].newest == newest[resident.name] == rounds
    result = replay(system_ports(), directory)
    assert result["equal"], result["difference"]
