"""Versions evaluated at the coordinator, in a worker process beside rounds and folds: nothing waits for it.

One at a time, over all jobs. Of a job that makes versions faster, the newest is next, and those before it are
passed over. What is ordered and has no outcome is ordered again after a start.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

from broker.ports import Ports
from broker.worker import Limits, WorkerLink
from coordinator.effects import EvaluateVersion
from coordinator.evaluating import EvaluationFailed, evaluated
from coordinator.inputs import Evaluated
from coordinator.ledger import Ledger
from coordinator.store import Store
from schemas import work
from schemas.errors import WireError
from schemas.limits import TEXT_CHARS_MAX

EVALUATION_S_MAX: Final = 3_600.0
LOG: Final = "evaluation.log"
"""What the worker prints."""


LIMITS: Final = Limits(time_s_max=EVALUATION_S_MAX)


class Evaluator:
    """Does what the core ordered, and tells it what came of it; a failure is an outcome."""

    def __init__(self, ledger: Ledger, store: Store, ports: Ports, directory: Path) -> None:
        self._ledger = ledger
        self._store = store
        self._ports = ports
        self._folder = directory / "work"
        self._ordered: dict[str, int] = {}  # job → its newest version that was ordered
        self._changed = asyncio.Event()

    def order(self, order: EvaluateVersion) -> None:
        """Nothing but the newest version of each job is kept."""
        self._ordered[order.job] = max(order.version, self._ordered.get(order.job, 0))
        self._changed.set()

    async def run(self) -> None:
        """Evaluate until cancelled. Raises OSError when the disk fails."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if not self._ordered:
                continue
            await self._ports.offload.run(self._ports.files.make_dir, self._folder)
            # It loads PyTorch, so it is kept for what was ordered meanwhile, and gone when there is nothing.
            async with WorkerLink(self._ports, self._folder / LOG, LIMITS) as worker:
                while self._ordered:
                    name = next(iter(self._ordered))
                    await self._evaluate(worker, name, self._ordered.pop(name))

    async def _evaluate(self, worker: WorkerLink, name: str, number: int) -> None:
        job = self._ledger.state.jobs[name]
        settings = job.spec.evaluation
        if settings is None or number <= job.progress.tried:
            return
        try:
            order = work.Evaluate(
                task=job.spec.task,
                config=job.spec.config,
                model=str(self._store.model_path(name, job.versions[number].model)),
                layout=self._store.layout(name),
                dataset=settings.dataset,
                whole=True,
            )
            outcome = Evaluated(job=name, version=number, metrics=await evaluated(worker, order))
        except (EvaluationFailed, WireError, OSError) as error:
            outcome = Evaluated(job=name, version=number, metrics={}, problem=str(error)[:TEXT_CHARS_MAX])
        await self._ledger.submit(outcome)
