"""Ordered work on tensors and keys: prepare, make, fold, commit. Its outcomes go back into the log.

One worker takes the folds and commits in the order of the log; whatever is done twice after a restart comes
to the same result.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from broker.bodies import Bodies
from broker.ports import Ports
from coordinator.blockwise import Blockwise, Stored, leanings
from coordinator.effects import Commit, Fold, MakeInitial, Prepare
from coordinator.facts import Leaning
from coordinator.fold import Folder
from coordinator.initial import make_initial
from coordinator.inputs import Checked, Committed, Prepared, WorkFailed
from coordinator.keystore import Identity, KeyStore
from coordinator.ledger import Ledger
from coordinator.looking import Looked, look_beside
from coordinator.negotiation import wanted_encoding
from coordinator.opening import Expected, Unfit
from coordinator.state import ENDED_JOB, Job, JobState, Request, RequestState
from coordinator.store import NO_VERSION, Store
from coordinator.strategies import Moments, Weight, aggregation, begun, server_optimiser, weigh
from schemas.ids import key_id

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
        folder = await self._folder(job)
        if job.spec.server.clip_centre and folder.centre is None:
            folder.centre = await self._ports.offload.run(self._centre, job)
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
            add = folder.count if aggregation(job.spec.server) else folder.add
            add(_weight(job, request))

    async def _folder(self, job: Job) -> Folder:
        round_ = job.round.number if job.round else 0
        if job.id not in self._folders:
            self._folders[job.id] = Folder(self._store.layout(job.id))
        elif self._rounds.get(job.id) != round_:
            await self._ports.offload.run(self._folders[job.id].clear)
        self._rounds[job.id] = round_
        return self._folders[job.id]

    async def _look(self, folder: Folder, job: Job, request: Request) -> Looked:
        expected = self._expected(job, request)
        if expected is None:
            return Looked(problem="key: the request's key was destroyed")
        return await look_beside(self._ports.offload, folder, self._bodies, request.digest, expected)

    def _expected(self, job: Job, request: Request) -> Expected | None:
        key = self._keys.request_key(job.id, request.round, key_id(request.key))
        if key is None:
            return None
        layout = self._store.layout(job.id)
        base = job.base(request).model
        encoding = wanted_encoding(job.spec, layout)
        return Expected(
            self._identity.federation, job.id, request.number, base, layout, key, encoding=encoding
        )

    async def _commit(self, order: Commit) -> None:
        job = self._job(order.job)
        if job.round is None or job.round.number != order.round or not job.round.closed:
            return
        folder, base = await self._folder(job), job.round.base
        made = await self._ports.offload.run(self._finish, folder, job)
        if made is None:
            self._ledger.submit(WorkFailed(job=job.id, text=_overflow(job, order.round)))
            return
        model, moments, leaned = made
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
                leanings=leaned,
            )
        )

    def _finish(self, folder: Folder, job: Job) -> tuple[bytes, bytes, list[Leaning]] | None:
        """The digests of the next version and of what the server optimiser keeps, which are both durable, and
        how the updates lean. None if they overflowed, or the job ended: nothing is written."""
        last = job.versions[-1]
        moments, leaned = self._moments(job), list[Leaning]()
        if rule := aggregation(job.spec.server):
            try:
                requests, updates = self._updates(job)
                if not requests:
                    return None  # the job ended while no thread was free
                leaned = leanings(requests, folder.aggregate(rule, updates))
            except Unfit as error:
                raise RuntimeError(
                    f"an update of round {last.round + 1} of job {job.id} cannot be read again ({error}): "
                    f"the bodies in {self._directory} are damaged; restore them from a backup"
                ) from error
        optimiser = server_optimiser(job.spec.server, last.number + 1)
        base = self._store.model(job.id, last.model)
        model = folder.finish(base, optimiser, moments, job.spec.population)
        if folder.overflowed:
            return None
        kept = self._store.put_moments(job.id, last.number + 1, moments)
        return self._store.put_model(job.id, [model]), kept, leaned

    def _moments(self, job: Job) -> Moments:
        """What the server optimiser kept after the newest version."""
        last = job.versions[-1]
        moments = begun(server_optimiser(job.spec.server), self._store.layout(job.id).trained_count)
        self._store.read_moments(job.id, last.number, last.moments, moments)
        return moments

    def _centre(self, job: Job) -> NDArray[np.float32]:
        centre: NDArray[np.float32] = self._moments(job)[-1].copy()
        return centre

    def _updates(self, job: Job) -> tuple[list[Request], Blockwise]:
        """The round's folded ones."""
        requests, stored = [], []
        for request in job.round.order if job.round else []:
            expected = self._expected(job, request)
            if request.state is RequestState.FOLDED and expected is not None:
                requests.append(request)
                stored.append(Stored(request.digest, expected, _weight(job, request).scale))
        return requests, Blockwise(self._bodies, stored, self._store.layout(job.id).trained_count)

    async def _make(self, order: MakeInitial) -> None:
        job = self._job(order.job)
        made = await make_initial(job, self._ports, self._store, self._directory / "work")
        if job.state is JobState.PREPARING:
            self._ledger.submit(made)


def _counts_now(job: Job, request: Request) -> bool:
    return job.round is not None and job.round.number == request.counts_in


def _weight(job: Job, request: Request) -> Weight:
    return weigh(request, job.spec, job.round.radius if job.round else 0.0)


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
        distance=looked.distance,
        samples=update.samples,
        steps=update.steps,
        train_s=update.train_s,
        metrics=update.metrics,
        evaluation=update.evaluation,
        content=update.content,
    )
