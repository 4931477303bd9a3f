"""Trains what was accepted, one request at a time, oldest first, in a worker that goes away when idle."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

from broker.ports import Ports
from broker.worker import Limits, WorkerFailed, WorkerLink
from edge_agent.config import Config
from edge_agent.identity import Identity
from edge_agent.kept import base_of
from edge_agent.ledger import Ledger, RequestKey, RequestState
from edge_agent.listen import check_request
from edge_agent.models import Models
from edge_agent.outbox import Outbox
from edge_agent.policy import data_path, decline
from edge_agent.private import Drawer
from schemas import work
from schemas.encodings import told_encoding
from schemas.errors import WireError
from schemas.events import Decline, TrainingRequest
from schemas.limits import INLINE_BYTES_MAX
from schemas.models import Layout, Manifest

log: Final = logging.getLogger("fedbus.trainer")

WORKER_LOG: Final = "worker.log"
ABOUT_DATA: Final = frozenset({"data", "worker"})
"""Problems whose text may always quote the device's data: a worker's last words are what its task printed."""
TOLD: Final = "the cause may quote local data, so it is told on the device only: its agent's log, or `doctor`"


class Trainer:
    """The one place where a worker runs. ``tell`` sends a decline to the coordinator."""

    def __init__(
        self,
        ports: Ports,
        directory: Path,
        config: Config,
        identity: Identity,
        ledger: Ledger,
        models: Models,
        outbox: Outbox,
        tell: Callable[[Decline], None],
    ) -> None:
        policy = config.policy
        limits = Limits(policy.threads, policy.memory_bytes_max, policy.train_s_max)
        self._link = WorkerLink(ports, directory / WORKER_LOG, limits)
        self._config = config
        self._identity = identity
        self._ledger = ledger
        self._models = models
        self._outbox = outbox
        self._drawer = Drawer(ports.files, directory)
        self._tell = tell
        self._wanted = asyncio.Event()
        self._current: tuple[RequestKey, asyncio.Task[None]] | None = None

    def wake(self) -> None:
        """There may be something to train."""
        self._wanted.set()

    def stop(self, key: RequestKey) -> None:
        """Stop training this request, if it is being trained; the ledger says already that it is closed."""
        if self._current is not None and self._current[0] == key:
            self._current[1].cancel()

    async def run(self) -> None:
        """Until cancelled; then the worker is gone."""
        async with self._link:
            while True:
                self._wanted.clear()
                waiting = self._ledger.waiting()
                if not waiting:
                    await self._rest()
                    continue
                key = waiting[0].key
                async with asyncio.TaskGroup() as group:
                    task = group.create_task(self._train(key), name=f"train {key[0]}.{key[1]}")
                    self._current = key, task
                self._current = None

    async def _rest(self) -> None:
        """Wait for work; the worker is kept warm for a while."""
        if self._link.pid:
            try:
                async with asyncio.timeout(self._config.worker_idle_s):
                    await self._wanted.wait()
            except TimeoutError:
                await self._link.close()
        else:
            await self._wanted.wait()

    async def _train(self, key: RequestKey) -> None:
        request = self._ledger.request(key)
        if request is None:
            text = "the accepted request can't be read any more: its file is damaged"
            self._give_up(key, Decline(job=key[0], request=key[1], reason="worker", text=text))
            return
        try:
            layout, manifest = check_request(request, self._identity)
        except WireError as error:
            self._give_up(key, decline(request, "base", str(error)))
            return
        model = await self._models.pull(base_of(request, manifest), manifest)
        folder = self._outbox.new_folder(key)
        try:
            await self._have_trained(request, self._order(request, layout, manifest, model, folder))
        finally:
            if self._outbox.find(key) is None:
                self._outbox.discard(folder)

    async def _have_trained(self, request: TrainingRequest, order: work.Train) -> None:
        """Have an update made, or decline the request. An update that is in the outbox stays there, also if
        the ledger can't be written then: the next start finds it."""
        key = request.job, request.request
        fields = {"job": request.job, "round": request.round, "request": request.request}
        try:
            reply = await self._link.call(order)
        except WorkerFailed as failed:
            self._give_up(key, _told(request, failed.code, str(failed)), cause=str(failed))
            return
        if isinstance(reply, work.Problem):
            if reply.code == "base":
                self._models.drop(Path(order.model))
            answer = _told(request, reply.code, reply.text, local=reply.local)
            self._give_up(key, answer, cause=reply.text)
            return
        self._outbox.add(key, Path(order.out_dir), reply)
        self._ledger.data.samples[request.dataset or request.task] = reply.samples
        self._ledger.settle(key, RequestState.MADE)
        log.info(
            "trained: %d samples, %d steps, %.1f s", reply.samples, reply.steps, reply.train_s, extra=fields
        )

    def _order(
        self, request: TrainingRequest, layout: Layout, manifest: Manifest, model: Path, folder: Path
    ) -> work.Train:
        return work.Train(
            task=request.task,
            config=request.config,
            dataset=data_path(request, self._config),
            local=request.local,
            layout=layout,
            manifest=manifest,
            job_key=request.job_key,
            model=str(model),
            sender=self._identity.signing.public,
            update_key=request.update_key,
            request=request.request,
            chunk_bytes=min(request.chunk_bytes, self._config.chunk_bytes),
            out_dir=str(folder),
            inline_max=INLINE_BYTES_MAX,
            cpu_share=self._config.policy.cpu_share,
            device=self._config.policy.device,
            private=str(self._drawer.path(request.job)),
            encoding=told_encoding(request.encoding),
            residual=str(self._outbox.residuals.path(request.job)),
        )

    def _give_up(self, key: RequestKey, answer: Decline, *, cause: str = "") -> None:
        self._ledger.settle(key, RequestState.DECLINED, answer)
        fields = {"job": key[0], "request": key[1]}
        log.warning("declined (%s): %s", answer.reason, cause or answer.text, extra=fields)
        self._tell(answer)


def _told(request: TrainingRequest, code: str, text: str, *, local: bool = False) -> Decline:
    """A decline in which nothing of the device's data leaves it."""
    return decline(request, code, TOLD if local or code in ABOUT_DATA else text)
