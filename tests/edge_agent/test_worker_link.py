"""The link to a worker: limits, deaths, and who outlives whom."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from broker.system import system_ports
from broker.worker import Limits, WorkerFailed, WorkerLink, environment
from edge_agent.worker import Pacer
from schemas import work
from schemas.models import Layout, Tensor
from tests.edge_agent.federation import JOB, Federation
from tests.edge_agent.training import CONFIG, made, train_order

pytestmark = pytest.mark.usefixtures("installed_tasks")


async def test_a_worker_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    async with WorkerLink(system_ports(), tmp_path / "log", Limits(time_s_max=100)) as patient:
        order = train_order(await made(patient, tmp_path, "odd-plain", {}), tmp_path, tmp_path)
    async with WorkerLink(system_ports(), tmp_path / "log", Limits(time_s_max=0.5)) as link:
        with pytest.raises(WorkerFailed, match=r"0\.5 s") as failed:
            await link.call(replace(order, task="odd-endless", config={}))
        assert failed.value.code == "time"
        assert link.pid == 0


async def test_a_worker_that_takes_too_much_memory_is_killed_and_another_one_starts(tmp_path: Path) -> None:
    limits = Limits(time_s_max=100, memory_bytes_max=900 << 20)
    async with WorkerLink(system_ports(), tmp_path / "log", limits) as link:
        order = train_order(await made(link, tmp_path, "odd-plain", {}), tmp_path, tmp_path)
        with pytest.raises(WorkerFailed, match="900 MiB") as failed:
            await link.call(replace(order, task="odd-greedy", config={}))
        assert failed.value.code == "memory"
        assert isinstance(await link.call(replace(order, task="odd-plain", config={})), work.Trained)


async def test_a_worker_that_dies_leaves_its_last_words(link: WorkerLink, tmp_path: Path) -> None:
    order = train_order(await made(link, tmp_path, "odd-plain", {}), tmp_path, tmp_path)
    with pytest.raises(WorkerFailed, match=r"status 7.*the last words of a task") as failed:
        await link.call(replace(order, task="odd-dying", config={}))
    assert failed.value.code == "worker"


async def test_a_worker_without_torch_says_so_with_the_remedy_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(\"No module named 'torch'\")\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    order = work.Make(job=JOB, task="vision", config=CONFIG, seed=5, out=str(tmp_path / "model.bin"))
    async with WorkerLink(system_ports(), tmp_path / "log", Limits(time_s_max=100)) as link:
        for _ in range(2):
            reply = await link.call(order)
            assert isinstance(reply, work.Problem)
            assert reply.code == "task"
            assert "No module named 'torch'" in reply.text
            assert "pip install 'fedbus[agent]'" in reply.text


def test_a_worker_whose_parent_is_gone_stops_training(tmp_path: Path) -> None:
    layout = tiny_layout()
    model = Federation().model(layout, bytes(layout.model_bytes))
    order = replace(train_order(model, tmp_path, tmp_path), task="odd-endless", config={"size": 2})
    worker = subprocess.Popen(
        [sys.executable, "-P", "-m", "edge_agent.worker"],
        env=environment(os.environ, 1),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    _, errors = worker.communicate(work.encode(order), timeout=60)
    assert worker.returncode == 1
    assert b"is gone" in errors


class Moment:
    """A clock that passes while a poll waits."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_s(self) -> float:
        return self.now_s

    def poll(self, timeout: float | None = None, /) -> list[tuple[int, int]]:
        self.now_s += (timeout or 0.0) / 1_000
        return []


@pytest.mark.parametrize("share", [1.0, 0.5, 0.1])
def test_training_computes_no_more_than_its_share_of_the_time(share: float) -> None:
    moment = Moment()
    pace = Pacer(moment, share, moment)
    for _ in range(100):
        moment.now_s += 0.25
        pace()
    assert moment.now_s == pytest.approx(100 * 0.25 / share)


def test_orders_and_replies_survive_the_frame() -> None:
    layout = Federation().model(tiny_layout(), bytes(8)).layout
    order = work.Make(job=JOB, task="vision", config=CONFIG, seed=5, out="/x")
    packed = work.encode(order)
    assert struct.unpack(">I", packed[:4]) == (len(packed) - 4,)
    assert work.decode_order(packed[4:]) == order
    assert work.decode_reply(work.encode(work.Made(layout=layout))[4:]) == work.Made(layout=layout)


def test_an_order_shown_in_a_log_does_not_show_the_jobs_key(tmp_path: Path) -> None:
    layout = tiny_layout()
    order = train_order(Federation().model(layout, bytes(layout.model_bytes)), tmp_path, tmp_path)
    assert "request=1" in repr(order)
    assert repr(order.job_key) not in repr(order)
    assert order.job_key.hex() not in repr(order)


def tiny_layout() -> Layout:
    return Layout(job=JOB, tensors=[Tensor("weight", [1, 2], "float32", "trained")])
