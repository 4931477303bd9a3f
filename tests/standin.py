"""Light devices and a coordinator beside them, in one process: real wire, real log, no PyTorch.

`StandIn` speaks the protocol by hand, so that tests and benches can also say what no honest agent would.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from broker.bus import Bus, Connected, Credentials
from broker.connect import connect
from broker.mailbox import Mailbox, Sequencer
from broker.memory import MemoryBroker, MemoryBus
from broker.ports import Ports
from coordinator.app import Coordinator
from coordinator.broker_admin.access import Access, ListedAccess, UnmanagedUsers
from coordinator.config import Config, load_config
from coordinator.connection import credentials
from coordinator.keystore import Identity, load_identity
from coordinator.setup import init
from schemas import events as e
from schemas import topics
from schemas.chunks import pack_chunk
from schemas.enrolment import Join, Member, Token, open_welcome, seal_join, token_from_text
from schemas.envelope import (
    Envelope,
    Order,
    Sealed,
    open_envelope,
    parse,
    sign,
)
from schemas.ids import COORDINATOR, DeviceId, FederationId, broker_user
from schemas.keys import BoxKey, SigningKey
from tests.brokers import Admit
from tests.sim.machine import SimProcess, SimSpawn
from tests.workers import Answer, maker, seal_for, update_for

T = TypeVar("T", bound=e.Event)
PATIENCE_S = 30.0
TASK = "standin"
IN_MEMORY = Config(broker="memory:test")
COORDINATOR_PASSWORD = "coordinator's"

Dial = Callable[[str, Credentials, Sequence[str]], Bus]
"""Makes a bus: broker URL, credentials, subscriptions."""


class Federation:
    """A running coordinator, and the way to its broker: the one in ``config``, by default one in memory where
    sessions have the plain names of devices. ``admit`` tells a real broker of its users; ``around`` is put
    around every bus; ``make`` is the worker that makes initial parameters."""

    def __init__(
        self,
        directory: Path,
        ports: Ports,
        count: int,
        *,
        config: Config = IN_MEMORY,
        admit: Admit | None = None,
        around: Callable[[Bus], Bus] = lambda bus: bus,
        make: Callable[[Ports, int], Answer] = maker,
    ) -> None:
        self.directory = directory
        self.broker = MemoryBroker()
        self._admit = admit
        self._around = around
        spawn = SimSpawn(lambda argv, env: SimProcess(make(self.ports, count)))
        self.ports = replace(ports, spawn=spawn)
        if not ports.files.exists(directory / "coordinator.toml"):
            init(self.ports, directory, config, COORDINATOR_PASSWORD if admit else "")
        self.identity: Identity = load_identity(ports.files, directory)
        if admit is not None:
            federation = self.identity.federation
            user = broker_user(federation, COORDINATOR)
            down, up, probe = (of(federation) for of in (topics.all_down, topics.all_up, topics.probe))
            admit(user, COORDINATOR_PASSWORD, [down, probe], [up, probe])
        self.coordinator: Coordinator = self._new()
        self._task: asyncio.Task[None] | None = None

    def _new(self) -> Coordinator:
        config = load_config(self.ports.files, self.directory, {})
        who = credentials(self.directory, config, self.identity, self.ports)
        bus = self.dial(config.broker, who, [topics.all_up(self.identity.federation)])
        access: Access = ListedAccess(self.ports, self.directory, UnmanagedUsers())
        if self._admit is not None:
            access = _Admission(self.identity.federation, self._admit)
        return Coordinator(self.directory, config, self.identity, self.ports, bus, access)

    def dial(self, url: str, who: Credentials, subscriptions: Sequence[str]) -> Bus:
        """A bus, not entered yet."""
        if url == IN_MEMORY.broker:
            who = Credentials(who.client_id.partition("@")[0])
            return self._around(MemoryBus(self.broker, who, subscriptions))
        return self._around(connect(url, who, subscriptions, ports=self.ports))

    def start(self, tasks: asyncio.TaskGroup) -> None:
        self._task = tasks.create_task(self.coordinator.run(listen=False), name="coordinator")

    async def stop(self) -> None:
        """As a killed process: nothing is said to anybody."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        self.coordinator.ledger.journal.close()

    async def restart(self, tasks: asyncio.TaskGroup) -> None:
        await self.stop()
        self.coordinator = self._new()
        self.start(tasks)

    async def command(self, op: str, **fields: Any) -> Any:
        return await self.coordinator.commands.handle({"op": op} | fields)

    async def invite(self, device: str) -> Token:
        return token_from_text((await self.command("invite", device=device))["token"])

    async def device(self, name: str) -> StandIn:
        """An enrolled device that has said what it can do."""
        device = StandIn(await self.invite(name), self.dial, self.ports, self.directory)
        await device.__aenter__()
        await device.enrol()
        await device.report()
        return device

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until ``condition`` holds."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110 - what is waited for sets no event
                await asyncio.sleep(0.01)

    def job(self, name: str) -> Any:
        return self.coordinator.ledger.state.jobs[name]


@dataclass(frozen=True)
class _Admission:
    """Lets devices in as the coordinator's own access would."""

    federation: FederationId
    tell: Admit

    async def admit(self, device: DeviceId, password: str) -> str:
        up, down = topics.up(self.federation, device), topics.down(self.federation, device)
        self.tell(broker_user(self.federation, device), password, [up], [down])
        return ""

    async def shut_out(self, device: DeviceId) -> None:
        """Nobody is revoked here."""


@asynccontextmanager
async def federation(
    directory: Path, ports: Ports, count: int = 10, **where: Any
) -> AsyncIterator[Federation]:
    """A coordinator that serves until the context ends; ``where`` as of `Federation`."""
    running = Federation(directory, ports, count, **where)
    async with asyncio.TaskGroup() as tasks:
        running.start(tasks)
        try:
            yield running
        finally:
            await running.stop()


class StandIn:
    """A device with keys of its own. Enter it, then `enrol`, `report`, `next`, `answer`."""

    def __init__(self, token: Token, dial: Dial, ports: Ports, directory: Path) -> None:
        self.token = token
        self.id = DeviceId(token.device)
        self.federation: FederationId = token.federation
        random_bytes = ports.entropy.random_bytes
        self.key = SigningKey.from_seed(random_bytes(32))
        self.box = BoxKey.from_secret(random_bytes(32))
        self.join = Join(
            federation=token.federation,
            root=token.root,
            token=token.id,
            device=token.device,
            signing=self.key.public,
            box=self.box.public,
            nonce=random_bytes(32),
        )
        self._random_bytes = random_bytes
        down = topics.down(self.federation, self.id)
        user = broker_user(self.federation, self.id)
        self.bus = dial(token.urls[0], Credentials(user, user, token.password), [down])
        self.up = topics.up(self.federation, self.id)
        sequencer = Sequencer(ports.files, directory / f"standin-{self.id}-{self.key.id.hex()[:8]}.seq")
        self.mailbox = Mailbox(self.bus, self.federation, self.key, sequencer, ports.entropy)
        self.member: Member | None = None
        self.heard: deque[e.Event | bytes] = deque()

    async def __aenter__(self) -> Self:
        await self.bus.__aenter__()
        self._incoming = self.bus.incoming()
        return self

    async def close(self) -> None:
        await self.bus.__aexit__(None, None, None)

    async def say_bytes(self, data: bytes) -> None:
        await self.bus.publish(self.up, data)

    async def say(self, event: e.Event) -> Envelope:
        assert self.member is not None
        return await self.mailbox.send(self.up, self.member.key_set.box, event)

    async def hear(self) -> e.Event | bytes:
        """The next message: an event, or bytes that are no envelope (welcome, chunk)."""
        async with asyncio.timeout(PATIENCE_S):
            while True:
                item = await anext(self._incoming)
                if isinstance(item, Connected):
                    continue
                await item.ack()
                if not item.payload.startswith(b"FBE1"):
                    return item.payload
                received = parse(item.payload)
                assert self.member is not None
                received.check_signature(self.member.key_set.signing)
                opened = open_envelope(received, self.box, self.federation)
                return e.decode_from_coordinator(opened.inner)

    async def next(self, kind: type[T]) -> T:
        """The next event of this kind; others are kept in ``heard``."""
        while True:
            event = await self.hear()
            if isinstance(event, kind):
                return event
            self.heard.append(event)

    async def enrol(self) -> None:
        await self.say_bytes(seal_join(self.join, self.token, self.key))
        welcome = await self.hear()
        assert isinstance(welcome, bytes)
        self.member = open_welcome(welcome, self.box, self.join)
        await self.say(e.ChallengeAnswer(challenge=self.member.challenge))
        await self.next(e.Enrolled)

    async def report(self, *tasks: str) -> None:
        status = e.DeviceStatus(
            agent="standin",
            cores=1,
            memory_bytes=1 << 30,
            power="mains",
            tasks=list(tasks or (TASK,)),
            samples={},
        )
        await self.say(status)

    def update(
        self, request: e.TrainingRequest, delta: NDArray[np.float32], samples: int = 1, **changed: Any
    ) -> tuple[e.Update, bytes]:
        """The update that answers ``request``, and its content; ``changed`` replaces its fields."""
        return update_for(request, delta, samples, **changed)

    def seal(
        self, request: e.TrainingRequest, update: e.Update, content: bytes, chunk_bytes: int = 0
    ) -> tuple[Sealed, list[bytes]]:
        """(sealed update, sealed chunks): inline when small and ``chunk_bytes`` is 0."""
        return seal_for(self.federation, self.key, self._random_bytes, request, update, content, chunk_bytes)

    async def offer(self, sealed: Sealed, order: Order | None = None) -> Envelope:
        """Send (again) a sealed update under a new number, or under ``order``."""
        envelope = sign(sealed, self.key, order) if order else self.mailbox.sign(sealed)
        await self.say_bytes(envelope.to_bytes())
        return envelope

    async def send_chunks(self, envelope: Envelope, chunks: list[bytes]) -> None:
        """Send what is granted until all was."""
        left = set(range(len(chunks)))
        while left:
            grant = await self.next(e.Grant)
            for index in grant.chunks:
                await self.say_bytes(pack_chunk(envelope.transfer, index, chunks[index]))
                left.discard(index)

    async def answer(self, request: e.TrainingRequest, delta: NDArray[np.float32], samples: int = 1) -> None:
        """Accept and send the update, without waiting for the receipt."""
        await self.say(e.Accept(job=request.job, request=request.request))
        sealed, chunks = self.seal(request, *self.update(request, delta, samples))
        envelope = await self.offer(sealed)
        await self.send_chunks(envelope, chunks)


def spec(name: str = "job", **fields: Any) -> dict[str, Any]:
    """A job for stand-ins."""
    return {"name": name, "task": TASK, "rounds": 1, "cohort": 1} | fields
