"""The worker and the link to it: real processes, real training on tiny data."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from broker.system import system_ports
from broker.worker import Limits, WorkerFailed, WorkerLink, environment
from edge_agent.tasks.vision import VisionTask
from edge_agent.tensors import layout_of, load, model_parts
from edge_agent.worker import Pacer
from schemas import work
from schemas.envelope import Sealed
from schemas.jobs import LocalSettings, TaskConfig
from schemas.keys import BoxKey
from schemas.limits import INLINE_BYTES_MAX
from schemas.models import Layout, Tensor
from tests.edge_agent.federation import JOB, Federation, Model, open_update

CONFIG: TaskConfig = {"shape": [4, 4], "classes": 3, "hidden": 32, "scale": 16.0}
LOCAL = LocalSettings(epochs=2, batch_size=8, learning_rate=0.1, momentum=0.9, seed=3)
READER = BoxKey.from_secret(bytes(range(32)))

pytestmark = pytest.mark.usefixtures("installed_tasks")


@pytest.fixture
async def link(tmp_path: Path) -> AsyncIterator[WorkerLink]:
    async with WorkerLink(system_ports(), tmp_path / "worker.log", Limits(time_s_max=100)) as link:
        yield link


@pytest.fixture
def data(tmp_path: Path) -> Path:
    numbers = np.random.default_rng(1)
    labels = numbers.integers(0, 3, 60)
    images = numbers.integers(0, 4, (60, 4, 4)) + 4 * labels[:, None, None]
    np.savez(tmp_path / "data.npz", x=images.astype(np.uint8), y=labels)
    return tmp_path / "data.npz"


async def made(link: WorkerLink, tmp_path: Path, task: str = "vision", config: TaskConfig = CONFIG) -> Model:
    out = tmp_path / "model.bin"
    reply = await link.call(work.Make(job=JOB, task=task, config=config, seed=5, out=str(out)))
    assert isinstance(reply, work.Made), reply
    return Federation().model(reply.layout, out.read_bytes())


def train_order(model: Model, tmp_path: Path, data: Path, inline_max: int = INLINE_BYTES_MAX) -> work.Train:
    spool = tmp_path / "model.sealed"
    spool.write_bytes(b"".join(model.sealed))
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    return work.Train(
        task="vision",
        config=CONFIG,
        dataset=str(data),
        local=LOCAL,
        layout=model.layout,
        manifest=model.manifest,
        job_key=model.job_key,
        model=str(spool),
        sender=Federation().member().signing.public,
        update_key=READER.public,
        request=1,
        chunk_bytes=4096,
        out_dir=str(out),
        inline_max=inline_max,
    )


def trained_here(model: Model, data: Path) -> bytes:
    """The model after an independent training in this process, with as many threads as the worker has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    task = VisionTask(CONFIG)
    module = task.build()
    load(module, model.layout, bytearray(model.content))
    task.train(module, task.load(data), LOCAL, lambda: None)
    torch.set_num_threads(threads)
    return b"".join(part.numpy().tobytes() for part in model_parts(module, model.layout))


@pytest.mark.parametrize("inline_max", [INLINE_BYTES_MAX, 0])
async def test_the_sealed_update_is_the_difference_that_training_makes(
    link: WorkerLink, tmp_path: Path, data: Path, inline_max: int
) -> None:
    model = await made(link, tmp_path)
    order = train_order(model, tmp_path, data, inline_max)
    reply = await link.call(order)
    assert isinstance(reply, work.Trained), reply
    assert (reply.clear.chunks > 0) == (inline_max == 0)
    out = Path(order.out_dir)
    chunks = (out / work.CHUNKS_FILE).read_bytes() if reply.clear.chunks else b""
    sealed = Sealed(reply.clear, reply.seal, (out / work.BODY_FILE).read_bytes())
    update, content = open_update(sealed, chunks, READER, Federation().member().signing)
    base = np.frombuffer(model.content, "<f4")
    expected = np.frombuffer(trained_here(model, data), "<f4") - base
    assert np.array_equal(np.frombuffer(content, "<f4"), expected)
    assert np.abs(expected).max() > 0
    assert (update.job, update.request, update.base) == (JOB, 1, model.manifest.model)
    assert (update.samples, update.steps) == (54, 14)
    assert update.evaluation["samples"] == 6
    assert update.train_s > 0


async def test_two_updates_of_one_request_share_no_key(link: WorkerLink, tmp_path: Path, data: Path) -> None:
    order = train_order(await made(link, tmp_path), tmp_path, data)
    first = await link.call(order)
    body = (Path(order.out_dir) / work.BODY_FILE).read_bytes()
    second = await link.call(order)
    assert isinstance(first, work.Trained)
    assert isinstance(second, work.Trained)
    assert first.seal.commitment != second.seal.commitment
    assert (Path(order.out_dir) / work.BODY_FILE).read_bytes() != body


async def test_fit_and_evaluate_work_on_plain_models(link: WorkerLink, tmp_path: Path, data: Path) -> None:
    model = await made(link, tmp_path)
    out = tmp_path / "fitted.bin"
    fitted = await link.call(
        work.Fit(
            task="vision",
            config=CONFIG,
            model=str(tmp_path / "model.bin"),
            layout=model.layout,
            dataset=str(data),
            local=LOCAL,
            out=str(out),
        )
    )
    assert isinstance(fitted, work.Fitted), fitted
    assert out.read_bytes() == trained_here(model, data)
    order = work.Evaluate(
        task="vision", config=CONFIG, model=str(out), layout=model.layout, dataset=str(data), whole=True
    )
    whole = await link.call(order)
    part = await link.call(replace(order, whole=False))
    assert isinstance(whole, work.Evaluated)
    assert isinstance(part, work.Evaluated)
    assert (whole.metrics["samples"], part.metrics["samples"]) == (60, 6)
    before = await link.call(replace(order, model=str(tmp_path / "model.bin")))
    assert isinstance(before, work.Evaluated)
    assert whole.metrics["loss"] < before.metrics["loss"]


async def test_initial_parameters_may_come_from_a_safetensors_file(link: WorkerLink, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    module = VisionTask(CONFIG).build()
    save_file(module.state_dict(), tmp_path / "start.safetensors")
    out = tmp_path / "model.bin"
    order = work.Make(
        job=JOB,
        task="vision",
        config=CONFIG,
        seed=5,
        out=str(out),
        parameters=str(tmp_path / "start.safetensors"),
    )
    reply = await link.call(order)
    assert isinstance(reply, work.Made), reply
    expected = b"".join(part.numpy().tobytes() for part in model_parts(module, layout_of(module, JOB)))
    assert out.read_bytes() == expected
    other = await link.call(replace(order, config={**CONFIG, "hidden": 8}))
    assert isinstance(other, work.Problem)
    assert other.code == "base"
    assert "hidden1.weight" in other.text


async def test_what_a_task_prints_and_reads_does_not_touch_the_protocol(
    link: WorkerLink, tmp_path: Path
) -> None:
    model = await made(link, tmp_path, "odd", {})
    for task in ("talkative", "odd"):
        order = replace(train_order(model, tmp_path, tmp_path), task=task, config={})
        assert isinstance(await link.call(order), work.Trained)
    log = (tmp_path / "worker.log").read_text()
    assert "hello from a task" in log
    assert "hello from a file descriptor" in log


@pytest.mark.parametrize(
    ("task", "config", "code", "words"),
    [
        ("nowhere", {}, "task", "not installed"),
        ("vision", {"shape": [4, 4]}, "task", "classes"),
        ("broken", {}, "worker", "a bug in a task"),
        ("diverging", {}, "task", "diverged"),
        ("odd", {"size": 5}, "base", "differs from the job's"),
    ],
)
async def test_what_a_task_can_not_do_comes_back_as_a_problem(
    link: WorkerLink, tmp_path: Path, task: str, config: TaskConfig, code: str, words: str
) -> None:
    model = await made(link, tmp_path, "odd", {})
    order = train_order(model, tmp_path, tmp_path)
    reply = await link.call(replace(order, task=task, config=config))
    assert isinstance(reply, work.Problem)
    assert reply.code == code
    assert words in reply.text
    assert isinstance(await link.call(replace(order, task="odd", config={})), work.Trained), "it goes on"


@pytest.mark.parametrize("content", [None, b""])
async def test_data_that_is_missing_or_empty_is_a_problem_of_the_data(
    link: WorkerLink, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "mine.npz"
    if content is not None:
        path.write_bytes(content)
    reply = await link.call(train_order(await made(link, tmp_path), tmp_path, path))
    assert isinstance(reply, work.Problem)
    assert reply.code == "data"
    assert str(path) in reply.text


async def test_a_damaged_model_is_a_problem_of_the_base(link: WorkerLink, tmp_path: Path, data: Path) -> None:
    order = train_order(await made(link, tmp_path), tmp_path, data)
    spool = Path(order.model)
    spool.write_bytes(spool.read_bytes()[:-1] + b"\0")
    reply = await link.call(order)
    assert isinstance(reply, work.Problem)
    assert reply.code == "base"


async def test_a_worker_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    async with WorkerLink(system_ports(), tmp_path / "log", Limits(time_s_max=100)) as patient:
        order = train_order(await made(patient, tmp_path, "odd", {}), tmp_path, tmp_path)
    async with WorkerLink(system_ports(), tmp_path / "log", Limits(time_s_max=0.5)) as link:
        with pytest.raises(WorkerFailed, match=r"0\.5 s") as failed:
            await link.call(replace(order, task="endless", config={}))
        assert failed.value.code == "time"
        assert link.pid == 0


async def test_a_worker_that_takes_too_much_memory_is_killed_and_another_one_starts(tmp_path: Path) -> None:
    limits = Limits(time_s_max=100, memory_bytes_max=900 << 20)
    async with WorkerLink(system_ports(), tmp_path / "log", limits) as link:
        order = train_order(await made(link, tmp_path, "odd", {}), tmp_path, tmp_path)
        with pytest.raises(WorkerFailed, match="900 MiB") as failed:
            await link.call(replace(order, task="greedy", config={}))
        assert failed.value.code == "memory"
        assert isinstance(await link.call(replace(order, task="odd", config={})), work.Trained)


async def test_a_worker_that_dies_leaves_its_last_words(link: WorkerLink, tmp_path: Path) -> None:
    order = train_order(await made(link, tmp_path, "odd", {}), tmp_path, tmp_path)
    with pytest.raises(WorkerFailed, match=r"status 7.*the last words of a task") as failed:
        await link.call(replace(order, task="dying", config={}))
    assert failed.value.code == "worker"


def test_a_worker_whose_parent_is_gone_stops_training(tmp_path: Path) -> None:
    layout = tiny_layout()
    model = Federation().model(layout, bytes(layout.model_bytes))
    order = replace(train_order(model, tmp_path, tmp_path), task="endless", config={"size": 2})
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

    def poll(self, timeout_ms: float) -> list[tuple[int, int]]:
        self.now_s += timeout_ms / 1_000
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


def tiny_layout() -> Layout:
    return Layout(job=JOB, tensors=[Tensor("weight", [1, 2], "float32", "trained")])
