"""Models evaluated on a data set of the operator's, in a worker process: PyTorch stays out of this one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from broker.ports import Ports, write_atomic
from broker.worker import WorkerFailed, WorkerLink
from schemas import work
from schemas.jobs import JobSpec
from schemas.models import Layout

Evaluate = Callable[[bytes], Awaitable[dict[str, float]]]
"""What the job's task measures of a model's bytes. Raises `EvaluationFailed`."""


class EvaluationFailed(Exception):
    """The model was not measured. The text names the data set and says why."""


@asynccontextmanager
async def evaluating(ports: Ports, spec: JobSpec, layout: Layout, dataset: Path) -> AsyncIterator[Evaluate]:
    """Evaluate on all of ``dataset``, an absolute path, until the context ends."""
    with TemporaryDirectory(prefix="fedbus-replay-") as folder:
        draft = Path(folder) / "model"
        order = work.Evaluate(
            task=spec.task,
            config=spec.config,
            model=str(draft),
            layout=layout,
            dataset=str(dataset),
            whole=True,
        )
        async with WorkerLink(ports, Path(folder) / "worker.log") as worker:

            async def evaluate(model: bytes) -> dict[str, float]:
                write_atomic(ports.files, draft, model)
                return await evaluated(worker, order)

            yield evaluate


async def evaluated(worker: WorkerLink, order: work.Evaluate) -> dict[str, float]:
    """Have one model evaluated. Raises `EvaluationFailed`."""
    try:
        reply = await worker.call(order)
    except WorkerFailed as error:
        raise EvaluationFailed(f"{order.dataset}: {error}") from error
    if isinstance(reply, work.Problem):
        named = reply.text.startswith(order.dataset)  # as fedbus' own tasks do
        raise EvaluationFailed(reply.text if named else f"{order.dataset}: {reply.text}")
    return dict(reply.metrics)
