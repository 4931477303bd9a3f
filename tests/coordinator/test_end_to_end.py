"""A whole coordinator with stand-in devices on ``memory:``: real wire, real log, real disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from broker.system import system_ports
from coordinator.replay import replay
from coordinator.state import JobState
from schemas import events as e
from tests.standin import federation, spec


async def test_three_devices_train_two_rounds_and_the_replay_is_equal(tmp_path: Path) -> None:
    async with federation(tmp_path / "c", system_ports(), count=10) as fed:
        devices = [await fed.device(f"d{index}") for index in range(3)]
        await fed.command("submit", spec=spec(rounds=2, cohort=3, min_reports=3))
        for round_ in (1, 2):
            for index, device in enumerate(devices):
                request = await device.next(e.TrainingRequest)
                assert request.round == round_
                await device.answer(request, np.full(10, index + 1.0, np.float32), samples=index + 1)
            for device in devices:
                assert (await device.next(e.Receipt)).request == round_
                assert (await device.next(e.Verdict)).folded
        for device in devices:
            assert (await device.next(e.JobFinished)).version == 2
        assert fed.job("job").state is JobState.FINISHED
        model = np.frombuffer(
            (tmp_path / "c/models/job" / f"{fed.job('job').versions[-1].model.hex()}.model").read_bytes(),
            "<f4",
        )
    # Twice the weighted mean (1·1 + 2·2 + 3·3) / 6.
    assert np.allclose(model, 2 * 14 / 6)
    result = replay(system_ports(), tmp_path / "c")
    assert result["equal"]
    assert [version["updates"] for version in result["jobs"]["job"]] == [0, 3, 3]


async def test_a_chunked_update_is_granted_spooled_receipted_and_folded(tmp_path: Path) -> None:
    count = 700_000  # 2.7 MiB: three chunks
    async with federation(tmp_path / "c", system_ports(), count=count) as fed:
        device = await fed.device("d0")
        await fed.command("submit", spec=spec())
        request = await device.next(e.TrainingRequest)
        await device.answer(request, np.ones(count, np.float32))
        await device.next(e.Receipt)
        assert (await device.next(e.Verdict)).folded
        await device.next(e.JobFinished)
    assert replay(system_ports(), tmp_path / "c")["equal"]
