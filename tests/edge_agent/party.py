"""An agent on a simulated machine, a scripted coordinator, and a worker that is a function."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from hashlib import sha256
from pathlib import Path

from broker.bus import Connected, Credentials
from broker.memory import MemoryBroker, MemoryBus
from broker.ports import Process
from edge_agent import identity as identity_module
from edge_agent.app import Agent
from edge_agent.config import Config, Policy
from edge_agent.ledger import RequestState, read_ledger
from edge_agent.presence import bus_for
from edge_agent.sealer import open_model, seal_update
from schemas import chunks, envelope, work
from schemas import events as e
from schemas.ids import DeviceId, model_request_id
from schemas.jobs import JOB_RUNNING
from schemas.keys import BoxKey
from schemas.models import Layout, Tensor
from schemas.topics import all_up, down
from tests.edge_agent.federation import DATA, JOB, Federation, Model, opened_update, put
from tests.sim.machine import SimMachine, SimProcess, SimSpawn

HERE = Path("/state/agent")
CONFIG = Config(data={"vision": DATA}, policy=Policy(tasks=["vision"], train_s_max=300.0))
UPDATE_KEY = BoxKey.from_secret(sha256(b"update key").digest())
SMALL, LARGE = 10, 40_000  # parameters; the second doesn't fit into a body

Answer = Callable[[work.AnyOrder], work.Reply | None]


def tiny_model(federation: Federation, *, count: int = SMALL, job: str = JOB, version: int = 0) -> Model:
    layout = Layout(job=job, tensors=[Tensor("w", [count], "float32", "trained")])
    return federation.model(layout, random.Random(f"{job} {version}").randbytes(4 * count), version=version)


class FakeWorker:
    """Trains by turning the model's bytes around. ``answer`` may replace that; None: it never answers."""

    def __init__(self, machine: SimMachine) -> None:
        self.machine = machine
        self.orders: list[work.Train] = []
        self.answer: Answer | None = None

    def start(self, argv: Sequence[str], env: Mapping[str, str]) -> Process:
        assert "edge_agent.worker" in argv
        assert env["OMP_NUM_THREADS"] == "1"
        return SimProcess(self._frame)

    def _frame(self, frame: bytes) -> bytes:
        order = work.decode_order(frame[work.FRAME.size :])
        assert isinstance(order, work.Train)
        self.orders.append(order)
        reply = self.answer(order) if self.answer else self.train(order)
        return work.encode(reply) if reply else b""

    def train(self, order: work.Train) -> work.Trained:
        ports = self.machine.ports
        content = bytes(reversed(open_model(ports.files, order)))
        update = e.Update(
            job=order.manifest.job,
            request=order.request,
            base=order.manifest.model,
            vectors=[e.Vector("delta", order.layout.trained_count)],
            samples=7,
            steps=3,
            train_s=1.5,
            metrics={"loss": 1.0},
            evaluation={"loss": 2.0},
            content=sha256(content).digest(),
        )
        sealed = seal_update(ports, order, update, memoryview(content))
        return work.Trained(
            clear=sealed.clear,
            seal=sealed.seal,
            samples=7,
            steps=3,
            train_s=1.5,
            metrics={},
            evaluation={},
        )


class Coordinator:
    """Answers as a coordinator does; what it does not do is switched off by its flags."""

    def __init__(
        self, federation: Federation, device: identity_module.Identity, broker: MemoryBroker
    ) -> None:
        self.federation = federation
        self.device = device
        self.bus = MemoryBus(broker, Credentials("coordinator"), [all_up(federation.id)])
        self.said: list[e.FromDevice] = []
        self.offers: list[envelope.Envelope] = []
        self.chunks: dict[bytes, dict[int, bytes]] = {}
        self.models: dict[bytes, Model] = {}
        self.newest: dict[str, e.ModelOffer] = {}
        self.closed: list[e.RequestRef] = []
        self.answers_state = True
        self.answers_models = True
        self.held: set[bytes] = set()  # transfers whose chunks are not sent
        self.grants = True
        self.receipts = True
        self._changed = asyncio.Event()

    async def run(self) -> None:
        async with self.bus:
            async for arrival in self.bus.incoming():
                if isinstance(arrival, Connected):
                    continue
                if arrival.payload.startswith(chunks.MAGIC):
                    chunk = chunks.parse_chunk(arrival.payload)
                    self.chunks.setdefault(chunk.transfer, {})[chunk.index] = bytes(chunk.sealed)
                    if len(self.chunks[chunk.transfer]) % 4 == 0:
                        await self._offered(self.offers[-1])
                elif (parsed := envelope.parse(arrival.payload)).clear.recipient == UPDATE_KEY.id:
                    parsed.check_signature(self.device.signing.public)
                    self.offers.append(parsed)
                    await self.send(e.OfferRead(transfer=parsed.transfer, seq=parsed.order.seq))
                    await self._offered(parsed)
                else:
                    event = self.federation.read(self.device, arrival.payload)
                    self.said.append(event)
                    await self._answer(event)
                await arrival.ack()
                self._changed.set()

    async def send(self, event: e.Event) -> bytes:
        """To the device; returns the envelope's bytes, so that they can be replayed."""
        payload = self.federation.envelope(self.device, event)
        await self.send_raw(payload)
        return payload

    async def send_raw(self, payload: bytes) -> None:
        await self.bus.publish(down(self.federation.id, DeviceId(self.device.device)), payload)

    async def request(self, model: Model, number: int = 1) -> bytes:
        self.models[model.manifest.transfer()] = model
        self.newest[model.layout.job] = self.federation.offer(model, state=JOB_RUNNING)
        return await self.send(self.federation.request(model, UPDATE_KEY, number=number))

    async def end(self, model: Model, state: str = "finished", *, told: bool = True) -> None:
        """The job is over; ``model`` is its last version."""
        self.models[model.manifest.transfer()] = model
        self.newest[model.layout.job] = self.federation.offer(model, state=state)
        if told:
            job, version = model.layout.job, model.manifest.version
            await self.send(e.JobFinished(job=job, state=state, version=version))

    async def until(self, happened: Callable[[], object]) -> None:
        """Wait until something said makes ``happened`` true."""
        while not happened():
            self._changed.clear()
            await self._changed.wait()

    def heard(self, *kinds: type[e.Event]) -> list[e.FromDevice]:
        return [event for event in self.said if isinstance(event, kinds)]

    def digests(self) -> set[bytes]:
        return {offer.digest for offer in self.offers}

    def update(self) -> tuple[e.Update, bytes]:
        """The newest offer, opened."""
        offer = self.offers[-1]
        opened = envelope.open_envelope(offer, UPDATE_KEY, self.federation.id)
        sealed = self.chunks.get(offer.transfer, {})
        return opened_update(offer, opened, b"".join(sealed[index] for index in sorted(sealed)))

    async def receipt(self, job: str = JOB, number: int = 1, digest: bytes = b"") -> None:
        wanted = digest or self.offers[-1].digest
        await self.send(e.Receipt(job=job, request=number, digest=wanted, index=1, head=bytes(32)))

    async def _answer(self, event: e.FromDevice) -> None:
        match event:
            case e.StateRequest() if self.answers_state:
                await self.send(e.StateReply(requests=[], closed=self.closed))
            case e.ModelRequest() if self.answers_models:
                await self.send(self._newest(event.job))
            case e.ChunkPull() if event.transfer not in self.held:
                model = self.models[event.transfer]
                for index in event.chunks:
                    await self.send_raw(chunks.pack_chunk(event.transfer, index, model.sealed[index]))
            case e.ChallengeAnswer():
                await self.send(e.Enrolled())

    def _newest(self, job: str) -> e.Event:
        return self.newest.get(job) or e.Refusal(code="closed", text="", transfer=model_request_id(job))

    async def _offered(self, offer: envelope.Envelope) -> None:
        have = self.chunks.setdefault(offer.transfer, {})
        missing = [index for index in range(offer.clear.chunks) if index not in have]
        if missing:
            if self.grants:
                await self.send(e.Grant(transfer=offer.transfer, chunks=missing[:4]))
        elif self.receipts:
            opened = envelope.open_envelope(offer, UPDATE_KEY, self.federation.id)
            event = e.decode_from_device(opened.inner)
            assert isinstance(event, e.Update)
            await self.receipt(event.job, event.request, offer.digest)


class Party:
    """One device and its coordinator. The device may be stopped, killed, crashed and started again."""

    def __init__(self, *, config: Config = CONFIG, seed: int = 0) -> None:
        self.federation = Federation(seed)
        self.machine = SimMachine(spawn=SimSpawn(self._spawn))
        self.worker = FakeWorker(self.machine)
        self.identity = self.federation.member()
        self.config = config
        self.broker = MemoryBroker()
        self.random = random.Random(seed)
        put(self.machine.files, Path(DATA), b"data")
        self.machine.files.make_dir(HERE)
        identity_module.save(self.machine.files, HERE, self.identity)

    def _spawn(self, argv: Sequence[str], env: Mapping[str, str]) -> Process:
        return self.worker.start(argv, env)

    @asynccontextmanager
    async def coordinator(self) -> AsyncIterator[Coordinator]:
        coordinator = Coordinator(self.federation, self.identity, self.broker)
        async with MemoryBus(self.broker, self.identity.credentials(), [self.identity.down_topic]):
            pass  # from now on the broker queues for the device, as it has since its enrolment
        async with asyncio.TaskGroup() as group:
            running = group.create_task(coordinator.run(), name="coordinator")
            yield coordinator
            running.cancel()

    def agent(self) -> Agent:
        identity = identity_module.load(self.machine.files, HERE)
        ports = self.machine.ports
        bus = bus_for(identity, self.config, ports, memory={"test": self.broker})
        return Agent(HERE, self.config, ports, bus, identity, installed=lambda: ["vision"])

    @asynccontextmanager
    async def device(self) -> AsyncIterator[asyncio.Task[None]]:
        """The agent at work; stopped cleanly at the end."""
        async with asyncio.TaskGroup() as group:
            running = group.create_task(self.agent().run(), name="agent")
            yield running
            running.cancel()

    @asynccontextmanager
    async def doomed_device(self) -> AsyncIterator[None]:
        """The agent at work until a power cut at the end of the context."""
        async with asyncio.TaskGroup() as group:
            running = group.create_task(self.ghost(), name="agent")
            yield
            self.machine.halt()
            running.cancel()
        self.machine.crash(self.random)

    async def ghost(self) -> None:
        """The agent on a machine that may lose its power."""
        with suppress(OSError):  # its machine has no power any more
            await self.agent().run()

    def names(self, folder: str) -> list[str]:
        return self.machine.files.names(HERE / folder)

    def models(self) -> list[tuple[str, int]]:
        """Job and version of what is here, whole."""
        parts = [name.split(".") for name in self.names("models")]
        return sorted((part[0], int(part[1])) for part in parts if len(part) == 3)


async def eventually(happened: Callable[[], object]) -> None:
    """Until ``happened`` is true, within a week of virtual time."""
    async with asyncio.timeout(7 * 86_400):
        while not happened():  # noqa: ASYNC110  # a disk tells nobody when it changed
            await asyncio.sleep(0.5)


def state(party: Party, number: int = 1, job: str = JOB) -> RequestState | None:
    """What the disk says of a request; None if it knows it no longer."""
    records = read_ledger(party.machine.files, HERE).requests
    return next((r.state for r in records if r.key == (job, number)), None)


async def settled(party: Party, wanted: RequestState | None, number: int = 1, job: str = JOB) -> None:
    """Until the disk says ``wanted`` of a request."""
    await eventually(lambda: state(party, number, job) is wanted)
