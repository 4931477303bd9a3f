"""What people are shown follows from the log, and only from what belongs there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from broker.system import system_ports
from coordinator import views
from coordinator.cli.state import open_records
from coordinator.history import history
from schemas import events as e
from tests.standin import StandIn, federation, spec

COUNT = 10


async def answer(device: StandIn, request: e.TrainingRequest, train_s: float, accuracy: float) -> None:
    fields = {"train_s": train_s, "evaluation": {"accuracy": accuracy}}
    update = device.update(request, np.ones(COUNT, np.float32), 1, **fields)
    await device.offer(device.seal(request, *update)[0])


async def test_a_late_update_is_counted_in_its_own_round_and_moves_no_time(tmp_path: Path) -> None:
    async with federation(tmp_path / "c", system_ports(), count=COUNT) as fed:
        devices = [await fed.device(name) for name in ("fast", "late")]
        job = spec(rounds=2, cohort=1, over_selection=2.0, deadline_s=3_600.0)
        await fed.command("submit", spec=job)
        first = [await device.next(e.TrainingRequest) for device in devices]
        await answer(devices[0], first[0], 0.001, 0.5)
        second = [await device.next(e.TrainingRequest) for device in devices]
        await answer(devices[1], first[1], 5_000.0, 0.5)
        assert not (await devices[1].next(e.Verdict)).folded
        await answer(devices[0], second[0], 0.002, float("nan"))
        await devices[0].next(e.JobFinished)
        (view, other) = views.devices(fed.coordinator.ledger.state)
        assert (view["folded"], other["folded"]) == (2, 0)
    with open_records(tmp_path / "c") as tables:
        one, two = history(tables, "job")
    assert (one["reports"], list(one["rejected"])) == ({"fast": 1}, ["late"])
    assert (two["reports"], two["rejected"]) == ({"fast": 1}, {})
    assert (one["train_s"], two["train_s"]) == (0.001, 0.002)
    assert one["accuracy_before"] == pytest.approx(0.5)
    assert two["accuracy_before"] is None, "a device's NaN is no accuracy"
