"""The worker: real processes, real training on tiny data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from broker.worker import WorkerLink
from edge_agent.tasks.vision import VisionTask
from edge_agent.tensors import layout_of, load, model_parts
from schemas import work
from schemas.envelope import Sealed
from schemas.jobs import TaskConfig
from schemas.limits import INLINE_BYTES_MAX
from tests.edge_agent.federation import JOB, Federation, Model, open_update
from tests.edge_agent.training import CONFIG, LOCAL, READER, made, train_order

pytestmark = pytest.mark.usefixtures("installed_tasks")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    numbers = np.random.default_rng(1)
    labels = numbers.integers(0, 3, 60)
    images = numbers.integers(0, 4, (60, 4, 4)) + 4 * labels[:, None, None]
    np.savez(tmp_path / "data.npz", x=images.astype(np.uint8), y=labels)
    return tmp_path / "data.npz"


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
    model = await made(link, tmp_path, "odd-plain", {})
    for task in ("odd-talkative", "odd-plain"):
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
        ("odd-broken", {}, "worker", "a bug in a task"),
        ("odd-diverging", {}, "task", "diverged"),
        ("odd-plain", {"size": 5}, "base", "differs from the job's"),
    ],
)
async def test_what_a_task_can_not_do_comes_back_as_a_problem(
    link: WorkerLink, tmp_path: Path, task: str, config: TaskConfig, code: str, words: str
) -> None:
    model = await made(link, tmp_path, "odd-plain", {})
    order = train_order(model, tmp_path, tmp_path)
    reply = await link.call(replace(order, task=task, config=config))
    assert isinstance(reply, work.Problem)
    assert reply.code == code
    assert words in reply.text
    assert isinstance(await link.call(replace(order, task="odd-plain", config={})), work.Trained), (
        "it goes on"
    )


@pytest.mark.parametrize(
    ("where", "kind", "code"),
    [
        ("load", "task", "data"),
        ("load", "wire", "data"),
        ("train", "task", "task"),
        ("train", "wire", "task"),
        ("train", "memory", "memory"),
        ("evaluate", "task", "task"),
    ],
)
async def test_what_a_task_says_once_it_has_data_stays_on_the_device(
    link: WorkerLink, tmp_path: Path, where: str, kind: str, code: str
) -> None:
    order = train_order(await made(link, tmp_path, "odd-plain", {}), tmp_path, tmp_path)
    config: TaskConfig = {"where": where, "kind": kind}
    reply = await link.call(replace(order, task="odd-quoting", config=config))
    assert isinstance(reply, work.Problem)
    assert (reply.code, reply.local) == (code, True)
    assert "Jane Doe" in reply.text


async def test_what_is_wrong_with_a_job_is_told_to_its_coordinator(link: WorkerLink, tmp_path: Path) -> None:
    order = train_order(await made(link, tmp_path), tmp_path, tmp_path)
    reply = await link.call(replace(order, config={**CONFIG, "clases": 3}))
    assert isinstance(reply, work.Problem)
    assert (reply.code, reply.local) == ("task", False)
    assert "unknown key clases" in reply.text


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
