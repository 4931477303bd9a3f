"""Rounds without a bus: the coordinator's own draw of cohorts, weighing, folding and server optimisers, on
updates that are trained here. For curves over many seeds; the simulation has all of it (`simulated`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from coordinator.cohort import select
from coordinator.fold import Folder
from coordinator.state import Job, Request
from coordinator.strategies import begun, server_optimiser, weigh
from schemas.jobs import JobSpec, LocalSettings, parse_job
from tests.bench.learning import digits
from tests.bench.learning.digits import COUNT, Split
from tests.standin import spec
from tests.workers import layout

COHORT: Final = 20


def job(seed: int, **fields: Any) -> JobSpec:
    """One of the benches' jobs: `COHORT` devices a round, and what ``fields`` say."""
    return parse_job(spec(**job_fields(seed, **fields)))


def job_fields(seed: int, **fields: Any) -> dict[str, Any]:
    """As `job`, for the simulation. A table ``local`` is laid over the benches' own."""
    local = {"epochs": digits.LOCAL.epochs, "batch_size": digits.LOCAL.batch_size} | fields.pop("local", {})
    return {"cohort": COHORT, "min_reports": 1, "seed": seed, "local": local} | fields


def accuracies(
    asked: JobSpec, split: Split, seed: int, own: Mapping[int, LocalSettings] | None = None
) -> list[float]:
    """Central accuracy of version 0 and of each round's; ``own`` local settings of some devices, by number.
    A model that overflows float32 ends it, as it ends a job."""
    state = Job(asked.name, asked, "", 0.0)
    numbers = {f"d{number:02d}": number for number in range(len(split.devices))}
    folder = Folder(layout(asked.name, COUNT))
    optimiser = server_optimiser(asked.server)
    moments = begun(optimiser, COUNT)
    model = bytearray(digits.initial(seed).tobytes())
    found = [digits.accuracy(np.frombuffer(model, "<f4"), split.test)]
    for round_ in range(1, asked.rounds + 1):
        base = np.frombuffer(model, "<f4")
        for name in select(state, round_, 0, sorted(numbers), asked.cohort):
            number = numbers[name]
            held = split.devices[number]
            local = (own or {}).get(number, asked.local)
            change, steps = digits.train(base, held, local, np.random.default_rng([seed, number, round_]))
            folder.total()  # the last one is added before its buffer is another's
            np.copyto(folder.opened, change)
            request = Request(name, round_, round_, b"", samples=len(held.y), steps=steps)
            request.norm = float(np.sqrt(np.sum(change.astype(np.float64) ** 2)))
            folder.add(weigh(request, asked.server, asked.local))
        model = folder.finish(model, optimiser, moments)
        if folder.overflowed:
            break
        folder.clear()
        found.append(digits.accuracy(np.frombuffer(model, "<f4"), split.test))
    return found
