"""Rounds without a bus: the coordinator's own draw of cohorts, weighing, folding and server optimisers, on
updates that are trained here, encoded and decoded as the job says. For curves over many seeds; the simulation
has all of it (`simulated`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np

from compressors import decode, encode, topk
from coordinator import dispatch
from coordinator.cohort import select
from coordinator.fold import Folder
from coordinator.state import Job, Request
from coordinator.strategies import begun, server_optimiser, weigh
from schemas.encodings import FLOAT32
from schemas.jobs import JobSpec, LocalSettings, parse_job
from tests.bench.learning import digits
from tests.bench.learning.digits import Floats, Split
from tests.standin import spec
from tests.workers import layout

COHORT: Final = 20


class Fleet(Protocol):
    """Devices that train a flat model."""

    devices: int

    def initial(self) -> Floats:
        """First parameters."""
        ...

    def train(
        self, base: Floats, devices: Sequence[int], round_: int, local: LocalSettings
    ) -> Iterable[tuple[Floats, int, int]]:
        """Of each device: the change that its training makes, its samples, the steps that it took."""
        ...

    def accuracy(self, model: Floats) -> float:
        """On what no device holds."""
        ...


class Digits:
    """A `Fleet` that learns digits; ``own`` are local settings that devices have instead of the job's."""

    def __init__(
        self,
        split: Split,
        seed: int,
        own: Mapping[int, LocalSettings] | None = None,
        hidden: int = digits.HIDDEN,
    ) -> None:
        self.devices = len(split.devices)
        self._split = split
        self._seed = seed
        self._own = own or {}
        self._hidden = hidden

    def initial(self) -> Floats:
        return digits.initial(self._seed, self._hidden)

    def train(
        self, base: Floats, devices: Sequence[int], round_: int, local: LocalSettings
    ) -> Iterable[tuple[Floats, int, int]]:
        held = [self._split.devices[device] for device in devices]
        settings = [self._own.get(device, local) for device in devices]
        rngs = [np.random.default_rng([self._seed, device, round_]) for device in devices]
        found = digits.train(base, held, settings, rngs)
        return [(change, len(of.y), steps) for of, (change, steps) in zip(held, found, strict=True)]

    def accuracy(self, model: Floats) -> float:
        return digits.accuracy(model, self._split.test)


def job(seed: int, **fields: Any) -> JobSpec:
    """One of the benches' jobs: `COHORT` devices a round, and what ``fields`` say."""
    return parse_job(spec(**job_fields(seed, **fields)))


def job_fields(seed: int, **fields: Any) -> dict[str, Any]:
    """As `job`, for the simulation. A table ``local`` is laid over the benches' own."""
    local = {"epochs": digits.LOCAL.epochs, "batch_size": digits.LOCAL.batch_size} | fields.pop("local", {})
    return {"cohort": COHORT, "min_reports": 1, "seed": seed, "local": local} | fields


class _Travel:
    """What comes of changes on their way from a device to the coordinator."""

    def __init__(self, state: Job, count: int) -> None:
        self._state = state
        self._encoding = state.spec.compression.encoding(count)
        self._left_out: dict[str, Floats] = {}  # of each device, by top-k

    def arrive(self, request: Request, change: Floats, out: Floats) -> None:
        """Write what is folded of ``change`` into ``out``."""
        encoding, device = self._encoding, request.device
        if encoding == FLOAT32:
            np.copyto(out, change)
            return
        seed = dispatch._seed(self._state, request)
        if encoding.name != "topk":
            decode(encoding, encode(encoding, change, seed), out)
            return
        values = change + self._left_out.get(device, np.float32(0.0))
        data = encode(encoding, values, seed)
        topk.subtract_sent(data, values)
        self._left_out[device] = values
        decode(encoding, data, out)


def accuracies(asked: JobSpec, fleet: Fleet) -> Iterator[float]:
    """Accuracy of version 0 and of each round's. A model that overflows float32 ends it, as it ends a job."""
    state = Job(asked.name, asked, "", 0.0)
    numbers = {f"d{number:02d}": number for number in range(fleet.devices)}
    model = memoryview(fleet.initial().tobytes())
    count = len(model) // 4
    folder = Folder(layout(asked.name, count))
    optimiser = server_optimiser(asked.server)
    travel = _Travel(state, count)
    moments = begun(optimiser, count)
    yield fleet.accuracy(np.frombuffer(model, "<f4"))
    for round_ in range(1, asked.rounds + 1):
        base = np.frombuffer(model, "<f4")
        cohort = select(state, round_, 0, sorted(numbers), asked.cohort)
        trained = fleet.train(base, [numbers[name] for name in cohort], round_, asked.local)
        for name, (change, samples, steps) in zip(cohort, trained, strict=True):
            folder.total()  # the last one is added before its buffer is another's
            request = Request(name, round_, round_, b"", samples=samples, steps=steps)
            travel.arrive(request, change, folder.opened)
            request.norm = float(np.sqrt(np.sum(folder.opened.astype(np.float64) ** 2)))
            folder.add(weigh(request, asked))
        model = folder.finish(model, optimiser, moments)
        if folder.overflowed:
            return
        folder.clear()
        yield fleet.accuracy(np.frombuffer(model, "<f4"))
