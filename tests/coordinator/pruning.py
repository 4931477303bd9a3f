"""A federation whose log is long enough to be pruned, on a simulated disk."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from broker.ports import Ports
from coordinator import recovery
from coordinator.image import encode_image
from coordinator.keystore import load_identity
from coordinator.recovery import open_recovered
from schemas import events as e
from tests.sim import virtual_loop
from tests.sim.disk import SimFiles
from tests.sim.machine import sim_ports
from tests.standin import Federation, StandIn, federation, spec

HOME = Path("/c")
COUNT = 10
ROUNDS = 26
SEGMENT_BYTES = 6_000


@contextmanager
def small_segments() -> Iterator[None]:
    """What serves meanwhile begins a segment every few messages."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recovery, "SEGMENT_BYTES", SEGMENT_BYTES)
        yield


async def play_round(devices: list[StandIn], job: str, seed: int) -> None:
    """Every device answers its next request of ``job``."""
    rng = np.random.default_rng(seed)
    for device in devices:
        request = await device.next(e.TrainingRequest)
        assert request.job == job
        await device.answer(request, rng.standard_normal(COUNT, dtype=np.float32))
        await device.next(e.Verdict)


async def old_and_long(fed: Federation) -> list[StandIn]:
    """Job ``old`` is over; ``long`` has `ROUNDS` versions, and one update in its open round."""
    devices = [await fed.device("press-07"), await fed.device("press-08")]
    fields = {"cohort": 2, "min_reports": 2, "deadline_s": 86_400.0, "update_norm_max": 1e3}
    await fed.command("submit", spec=spec("old", rounds=2, **fields))
    for seed in range(2):
        await play_round(devices, "old", seed)
    await fed.command(
        "submit",
        spec=spec(
            "long",
            rounds=ROUNDS + 2,
            server={"optimiser": "fedyogi"},
            evaluation={"dataset": "/test.npz", "metric": "loss"},  # of a model of zeros it is least
            **fields,
        ),
    )
    for seed in range(ROUNDS):
        await play_round(devices, "long", seed)
    await play_round(devices[:1], "long", ROUNDS)
    return devices


@dataclass
class Disk:
    """A state directory that nobody serves."""

    files: SimFiles

    @property
    def ports(self) -> Ports:
        return replace(sim_ports(), files=self.files)

    @property
    def federation(self) -> bytes:
        return load_identity(self.files, HOME).federation

    def image(self) -> bytes:
        """The state that it holds."""
        journal, recovered = open_recovered(self.files, HOME, self.federation, read_only=True)
        journal.close()
        return encode_image(recovered)

    def segments(self) -> list[str]:
        return [name for name in self.files.names(HOME / "journal") if name.endswith(".fbj")]

    def bodies(self) -> list[str]:
        return self.files.names(HOME / "bodies")


@cache
def _recorded() -> Disk:
    ports = sim_ports()

    async def play() -> None:
        with small_segments():
            async with federation(HOME, ports, COUNT) as fed:
                await old_and_long(fed)

    virtual_loop.run(play)
    assert isinstance(ports.files, SimFiles)
    return Disk(ports.files)


def recorded() -> Disk:
    """What `old_and_long` left."""
    return deepcopy(_recorded())
