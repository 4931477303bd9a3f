"""Orders for real workers, and small helpers: what the tests of worker, link and tasks share."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from broker.worker import WorkerLink
from edge_agent.tasks import Task
from schemas import work
from schemas.jobs import LocalSettings, TaskConfig
from schemas.keys import BoxKey
from schemas.limits import INLINE_BYTES_MAX
from tests.edge_agent.federation import JOB, Federation, Model

CONFIG: TaskConfig = {"shape": [4, 4], "classes": 3, "hidden": 32, "scale": 16.0}
LOCAL = LocalSettings(epochs=2, batch_size=8, learning_rate=0.1, momentum=0.9, seed=3)
READER = BoxKey.from_secret(bytes(range(32)))


def no_pace() -> None:
    """A device that is never throttled."""


def built(task: Task, seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return task.build()


def bits(model: nn.Module) -> bytes:
    return b"".join(parameter.detach().numpy().tobytes() for parameter in model.parameters())


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
        device="cpu",
    )
