"""Ordered work on tensors and keys: prepare, make, fold, commit. Its outcomes go back into the log.

One worker takes the folds and commits in the order of the log; whatever is done twice after a restart comes
to the same result.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from broker.bodies import Bodies
from broker.ports import Ports
from broker.worker import WorkerFailed, WorkerLink
from coordinator.effects import Commit, Fold, MakeInitial, Prepare
from coordinator.fold import Expected, Folder, Looked, look
from coordinator.inputs import Checked, Committed, Prepared, WorkFailed
from coordinator.keystore import Identity, KeyStore
from coordinator.ledger import Ledger
from coordinator.state import ENDED_JOB, Job, JobState, Request, RequestState
from coordinator.store import NO_VERSION, Store
from coordinator.strategies import begun, server_optimiser, weigh
from schemas.errors import LayoutMismatch
from schemas.ids import key_id
from schemas.work import Made, Make, Problem

Work = Fold | Commit | Prepare | MakeInitial


class Works:
    """Does what the core ordered, and tells it what came of it."""

    def __init__(
        self,
        ledger: Ledger,
        store: Store,
        keys: KeyStore,
        identity: Identity,
        bodies: Bodies,
        ports: Ports,
        directory: Path,
    ) -> None:
        self._ledger = ledger
        self._store = store
        self._keys = keys
        self._identity = identity
        self._bodies = bodies
        self._ports = ports
        self._directory = directory
        self._queue: asyncio.Queue[Work] = asyncio.Queue()  # bounded by the open requests
        self._folders: dict[str, Folder] = {}
        self._rounds: dict[str, int] = {}  # which round a folder holds the sum of

    def order(self, work: Work) -> None:
        self._queue.put_nowait(work)

    async def run(self) -> None:
        """Work until cancelled. Raises OSError when the disk fails, `coordinator.store.Altered`."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                work = await self._queue.get()
                self._forget_ended()
                match work:
                    case Fold() as fold:
                        await self._fold(fold)
                    case Commit() as commit:
                        await self._commit(commit)
                    case Prepare() as prepare:
                        await self._prepare(prepare)
                    case MakeInitial() as make:
                        # Takes seconds and a process: the folds of other jobs go on meanwhile.
                        tasks.create_task(self._make(make), name=f"make-{make.job}")

    def _forget_ended(self) -> None:
        """Give back the buffers of jobs that are over."""
        for name in [name for name in self._folders if self._job(name).state in ENDED_JOB]:
            del self._folders[name], self._rounds[name]

    def _job(self, job: str) -> Job:
        return self._ledger.state.jobs[job]

    async def _prepare(self, order: Prepare) -> None:
        job = self._job(order.job)
        if job.round is None or job.round.number != order.round:
            return
        keys = await self._ports.offload.run(
            self._keys.make_request_keys, order.job, order.round, order.devices
        )
        await self.offer(job, order.epoch)
        self._ledger.submit(Prepared(job=order.job, round=order.round, epoch=order.epoch, keys=keys))

    async def offer(self, job: Job, epoch: int) -> None:
        """Have the newest version of a job, and those that devices train, ready to be pulled."""
        for number in job.wanted_versions():
            await self._ports.offload.run(
                self._store.offer,
                job.id,
                number,
                job.versions[number].model,
                job.versions[number - 1].model if number else NO_VERSION,
                epoch,
                job.spec.chunk_bytes,
            )
        self._forget_old(job, len(job.versions) - 1)

    def _forget_old(self, job: Job, newest: int) -> None:
        """Devices may still pull the version before the newest, and what they train."""
        self._store.forget(job.id, min(newest - 1, *job.wanted_versions()))

    async def _fold(self, order: Fold) -> None:
        job = self._job(order.job)
        request = job.requests.get((order.device, order.request))
        if request is None or not _counts_now(job, request):
            return
        folder = self._folder(job)
        looked = await self._look(folder, job, request)
        if not _counts_now(job, request):
            return  # its buffer was closed meanwhile; the next one has it
        if request.state is RequestState.RECEIVED:
            # With more to fold, the next verdict's sync serves this one, too.
            self._ledger.submit(_checked(order, looked), urgent=self._queue.empty())
        # The verdict stands as soon as it is decided; what is added here is made again after a crash.
        if request.state is RequestState.FOLDED:
            if looked.problem:
                raise RuntimeError(
                    f"update {order.device}/{order.request} of job {job.id} was folded before and cannot be "
                    f"read again ({looked.problem}): the bodies in {self._directory} are damaged; "
                    f"restore them from a backup"
                )
            folder.add(weigh(request, job.spec))

    def _folder(self, job: Job) -> Folder:
        round_ = job.round.number if job.round else 0
        if job.id not in self._folders:
            self._folders[job.id] = Folder(self._store.layout(job.id))
        elif self._rounds.get(job.id) != round_:
            self._folders[job.id].clear()
        self._rounds[job.id] = round_
        return self._folders[job.id]

    async def _look(self, folder: Folder, job: Job, request: Request) -> Looked:
        key = self._keys.request_key(job.id, request.round, key_id(request.key))
        if key is None:
            return Looked(problem="key: the request's key was destroyed")
        expected = Expected(
            self._identity.federation,
            job.id,
            request.number,
            job.base(request).model,
            self._store.layout(job.id),
            key,
        )
        return await self._ports.offload.run(look, folder, self._bodies, request.digest, expected)

    async def _commit(self, order: Commit) -> None:
        job = self._job(order.job)
        if job.round is None or job.round.number != order.round or not job.round.closed:
            return
        folder, base = self._folder(job), job.round.base
        made = await self._ports.offload.run(self._finish, folder, job)
        if made is None:
            self._ledger.submit(WorkFailed(job=job.id, text=_overflow(job, order.round)))
            return
        model, moments = made
        version = len(job.versions)
        await self._ports.offload.run(
            self._store.offer, job.id, version, model, base, job.epoch, job.spec.chunk_bytes
        )
        self._forget_old(job, version)
        self._ledger.submit(
            Committed(
                job=job.id,
                version=version,
                round=order.round,
                model=model,
                layout=self._store.layout(job.id).digest(),
                samples=folder.samples,
                moments=moments,
            )
        )

    def _finish(self, folder: Folder, job: Job) -> tuple[bytes, bytes] | None:
        """The digests of the next version and of what the server optimiser keeps; both are durable. None if
        they overflowed: nothing is written."""
        last = job.versions[-1]
        optimiser = server_optimiser(job.spec.server)
        moments = begun(optimiser, self._store.layout(job.id).trained_count)
        self._store.read_moments(job.id, last.number, last.moments, moments)
        model = folder.finish(self._store.model(job.id, last.model), optimiser, moments)
        if folder.overflowed:
            return None
        kept = self._store.put_moments(job.id, last.number + 1, moments)
        return self._store.put_model(job.id, [model]), kept

    async def _make(self, order: MakeInitial) -> None:
        job = self._job(order.job)
        draft = self._directory / "work" / f"{job.id}.initial"
        await self._ports.offload.run(self._ports.files.make_dir, draft.parent)
        make = Make(
            task=job.spec.task,
            config=job.spec.config,
            seed=job.spec.seed,
            job=job.id,
            parameters=job.parameters,
            out=str(draft),
        )
        try:
            async with WorkerLink(self._ports, stderr=draft.with_suffix(".log")) as worker:
                made = await worker.call(make)
        except WorkerFailed as error:
            made = Problem(code=error.code, text=str(error))
        if not isinstance(made, Made):
            self._ledger.submit(WorkFailed(job=job.id, text=f"no initial model: {made.text}"))
            return
        try:
            await self._ports.offload.run(self._store.put_layout, made.layout)
        except LayoutMismatch as error:
            self._ledger.submit(WorkFailed(job=job.id, text=f"no initial model: {error}"))
            return
        data = await self._ports.offload.run(self._ports.files.read, draft)
        model = await self._ports.offload.run(self._store.put_model, job.id, [data])
        self._ports.files.remove(draft)
        if job.state is JobState.PREPARING:
            layout = made.layout.digest()
            self._ledger.submit(
                Committed(job=job.id, version=0, round=0, model=model, layout=layout, samples=0)
            )


def _counts_now(job: Job, request: Request) -> bool:
    return job.round is not None and job.round.number == request.counts_in


def _overflow(job: Job, round_: int) -> str:
    return (
        f"round {round_} takes the model, or what its server optimiser keeps, beyond the numbers of float32: "
        f"lower server.learning_rate or update_norm_max ({job.spec.update_norm_max:g}), or set "
        f"server.clip_norm, and submit it under another name"
    )


def _checked(order: Fold, looked: Looked) -> Checked:
    update = looked.update
    if update is None:
        return Checked(job=order.job, device=order.device, request=order.request, problem=looked.problem)
    return Checked(
        job=order.job,
        device=order.device,
        request=order.request,
        problem=looked.problem,
        norm=looked.norm,
        samples=update.samples,
        steps=update.steps,
        train_s=update.train_s,
        metrics=update.metrics,
        evaluation=update.evaluation,
        content=update.content,
    )
