"""The first version of a job's model, which its task makes in a worker process."""

from __future__ import annotations

from pathlib import Path

from broker.ports import Ports
from broker.worker import WorkerFailed, WorkerLink
from coordinator.inputs import Committed, WorkFailed
from coordinator.state import Job
from coordinator.store import Store
from schemas.errors import LayoutMismatch
from schemas.work import Made, Make, Problem


async def make_initial(job: Job, ports: Ports, store: Store, folder: Path) -> Committed | WorkFailed:
    """Layout and parameters of version 0, durable in ``store``; drafts lie in ``folder``. Raises OSError."""
    draft = folder / f"{job.id}.initial"
    await ports.offload.run(ports.files.make_dir, draft.parent)
    make = Make(
        task=job.spec.task,
        config=job.spec.config,
        seed=job.spec.seed,
        job=job.id,
        parameters=job.parameters,
        personal=job.spec.personal,
        controlled=bool(job.spec.scaffold),
        out=str(draft),
    )
    try:
        async with WorkerLink(ports, stderr=draft.with_suffix(".log")) as worker:
            made = await worker.call(make)
    except WorkerFailed as error:
        made = Problem(code=error.code, text=str(error))
    if not isinstance(made, Made):
        return WorkFailed(job=job.id, text=f"no initial model: {made.text}")
    try:
        await ports.offload.run(store.put_layout, made.layout)
    except LayoutMismatch as error:
        return WorkFailed(job=job.id, text=f"no initial model: {error}")
    data = await ports.offload.run(ports.files.read, draft)
    model = await ports.offload.run(store.put_model, job.id, [data])
    ports.files.remove(draft)
    layout = made.layout.digest()
    return Committed(job=job.id, version=0, round=0, model=model, layout=layout, samples=0)
