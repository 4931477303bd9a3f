"""A job with compressed updates: who is asked for them, what is taken, and all that reads a recording."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray

from compressors import encode
from coordinator.keystore import load_identity
from coordinator.recording import Recording
from coordinator.replay import replay
from coordinator.state import JobState
from coordinator.verify import verify
from coordinator.whatif import blame, parse_settings, what_if
from schemas import events as e
from schemas.encodings import ENCODINGS, Encoding, encoded_bytes, told_encoding
from schemas.jobs import parse_job
from schemas.limits import CHUNK_BYTES_MIN, INLINE_BYTES_MAX
from tests.coordinator.onto_stories import played, told_of
from tests.sim.machine import sim_ports
from tests.standin import TASK, Federation, StandIn, federation, spec

COUNT = 20_000
ROUNDS = 2
FRACTION = 0.02
ABLE = e.DeviceStatus(
    agent="standin",
    cores=1,
    memory_bytes=1 << 30,
    power="mains",
    tasks=[TASK],
    samples={},
    encodings=list(ENCODINGS),
)


def of(up: str) -> Encoding:
    return Encoding(up, 400 if up == "topk" else 0)  # type: ignore[arg-type]  # a name of an encoding


async def answer(device: StandIn, request: e.TrainingRequest, seed: int, chunk_bytes: int) -> None:
    """Train, encode as asked, and wait for the verdict."""
    drawn = np.random.default_rng(seed).standard_normal(COUNT) * 0.01
    delta: NDArray[np.float32] = drawn.astype("<f4")
    encoding = told_encoding(request.encoding)
    data = encode(encoding, delta, request.local.seed)
    said = {"content": sha256(data).digest(), "encoding": request.encoding}
    update, _ = device.update(request, delta, 5, **said)
    await device.say(e.Accept(job=request.job, request=request.request))
    sealed, chunks = device.seal(request, update, data, chunk_bytes)
    await device.send_chunks(await device.offer(sealed), chunks)
    verdict = await device.next(e.Verdict)
    assert verdict.folded, verdict.reason


def story(up: str, chunk_bytes: int = CHUNK_BYTES_MIN) -> Callable[[Federation], Awaitable[None]]:
    """Two devices that can encode so, and one that can't."""

    async def play(fed: Federation) -> None:
        devices = [await fed.device(name) for name in ("press-07", "press-08", "oven-3")]
        for device in devices[:2]:
            await device.say(ABLE)
        compression = {"up": up, "fraction": FRACTION}
        asks: dict[str, Any] = {"rounds": ROUNDS, "cohort": 3, "min_reports": 3, "compression": compression}
        await fed.command("submit", spec=spec(chunk_bytes=65_536, **asks))
        for number in range(ROUNDS):
            for index, device in enumerate(devices):
                request = await device.next(e.TrainingRequest)
                assert request.encoding == (of(up) if index < 2 else msgspec.UNSET)
                await answer(device, request, 10 * number + index, chunk_bytes)
        await fed.until(lambda: fed.job("job").state is JobState.FINISHED)

    return play


@pytest.mark.parametrize("up", ["bfloat16", "eden1", "topk"])
def test_all_that_reads_a_recording_can_read_one_of_compressed_updates(up: str, tmp_path: Path) -> None:
    told, ports = told_of(tmp_path, story(up), COUNT)
    digests = []
    for home in (tmp_path / "home", told):
        result = replay(ports, home)
        assert result["equal"], result
        (versions,) = result["jobs"].values()
        assert [version["updates"] for version in versions] == [0, 3, 3]
        digests.append([version["computed"] for version in versions])
        assert verify(ports.files, home, load_identity(ports.files, home).federation).damage == []
    assert digests[0] == digests[1]
    _, blamed = blame(Recording(ports, told), "job-1", 2)
    assert len(blamed) == 3
    assert all(one.row["norm"] > 0 for one in blamed)
    halved = parse_settings({"server": {"learning_rate": 0.5}}, parse_job(spec()))
    assert [parted.row["version"] for parted in what_if(Recording(ports, told), "job-1", halved)] == [0, 1, 2]
    report, _ = played(told, ports, count=COUNT)
    assert report.equal, report.document()


@pytest.mark.parametrize("up", [*ENCODINGS])
async def test_each_encoding_folds_in_chunks_or_inline_from_devices_that_can(up: str, tmp_path: Path) -> None:
    async with federation(tmp_path, sim_ports(), COUNT) as fed:
        await story(up, 0 if encoded_bytes(of(up), COUNT) <= INLINE_BYTES_MAX else CHUNK_BYTES_MIN)(fed)


async def test_an_offer_of_a_size_of_neither_encoding_is_refused_and_either_ones_is_taken(
    tmp_path: Path,
) -> None:
    async with federation(tmp_path, sim_ports(), COUNT) as fed:
        device = await fed.device("press-07")
        await fed.command("submit", spec=spec(compression={"up": "q8"}))
        request = await device.next(e.TrainingRequest)
        assert request.encoding is msgspec.UNSET
        update, content = device.update(request, np.ones(COUNT, np.float32))
        sealed, _ = device.seal(request, update, content[:-4], CHUNK_BYTES_MIN)
        await device.offer(sealed)
        refusal = await device.next(e.Refusal)
        assert (refusal.code, refusal.text) == (
            "layout",
            "an update of 79996 bytes where the layout has 20080 or 80000",
        )
        await device.answer(request, np.ones(COUNT, np.float32))
        assert (await device.next(e.Verdict)).folded


async def test_an_update_in_an_encoding_that_the_job_does_not_take_is_rejected_by_name(
    tmp_path: Path,
) -> None:
    async with federation(tmp_path, sim_ports(), COUNT) as fed:
        device = await fed.device("press-07")
        await fed.command("submit", spec=spec(compression={"up": "q8"}))
        request = await device.next(e.TrainingRequest)
        data = encode(Encoding("eden2"), np.ones(COUNT, np.float32), 1)
        update, _ = device.update(request, np.ones(COUNT, np.float32), encoding=Encoding("eden2"))
        await device.offer(device.seal(request, update, data)[0])
        verdict = await device.next(e.Verdict)
        assert not verdict.folded
        assert verdict.reason.startswith("encoding: eden2")
