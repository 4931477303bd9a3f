"""What the owner gets for taking part: the last version of each job, asked for, pulled and kept.

That a job is over is told (`JobFinished`), or found out: after each state of the coordinator the device asks
about the jobs of which that names no open request. The ledger remembers what is wanted, the folder of models
what is here; so a crash at any point only makes it ask again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import Final

from broker.bus import BusUndelivered
from edge_agent.identity import Identity
from edge_agent.kept import Shelf
from edge_agent.ledger import Ledger
from edge_agent.listen import check_model
from edge_agent.models import KEPT_PER_JOB, Models
from edge_agent.private import Drawer
from schemas.errors import Forged, WireError
from schemas.events import Event, ModelOffer, ModelRequest
from schemas.ids import model_request_id
from schemas.jobs import JOB_RUNNING
from schemas.limits import RESEND_CAP_S, RESEND_FIRST_S
from schemas.models import Manifest

log: Final = logging.getLogger("fedbus.finals")

ASKS_MAX: Final = 10  # requests for one answer; the coordinator's next state lets it begin anew
LOOK_S: Final = 6 * 3600.0
"""How often a device that stays connected makes sure that it missed no job's end."""
TURN_S: Final = 600.0  # how long one model is pulled while others wait


class Finals:
    """Asks for last versions and has them pulled, behind all that training needs.

    ``send`` takes a message to the coordinator; ``ask_state`` asks for its state, which is to come to `look`.
    """

    def __init__(
        self,
        ledger: Ledger,
        shelf: Shelf,
        residuals: Drawer,
        models: Models,
        identity: Identity,
        send: Callable[[Event], Awaitable[object]],
        ask_state: Callable[[], None],
    ) -> None:
        self._ledger = ledger
        self._shelf = shelf
        self._residuals = residuals
        self._models = models
        self._identity = identity
        self._send = send
        self._ask_state = ask_state
        self._asked: dict[str, int] = {}  # by job: requests that have no answer yet
        self._refused: set[str] = set()  # jobs that are not asked about again in this life
        self._ask_now = asyncio.Event()
        self._offers: dict[str, tuple[ModelOffer, Manifest]] = {}  # by job: to be pulled, in this order
        self._pull_now = asyncio.Event()
        self._pulling: tuple[str, asyncio.Task[None]] | None = None

    async def run(self) -> None:
        """Until cancelled. Raises `broker.bus.BusRefused`."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._ask_all(), name="ask for models")
            group.create_task(self._pull_all(), name="pull models")
            group.create_task(self._look_again(), name="look for ends")

    def look(self, running: Collection[str]) -> None:
        """The coordinator's state came: it has open requests of the jobs ``running``, and of no other."""
        for job in self._missing():
            if job not in running:
                self._ask(job)

    def ended(self, job: str) -> None:
        """No more requests of this job will come: ask for its last version."""
        self._refused.discard(job)
        self._end(job)
        if job in self._missing():
            self._ask(job)

    def offered(self, offer: ModelOffer) -> None:
        """Have the version pulled, if it is a last one and wanted; an answer in any case."""
        self._asked.pop(offer.job, None)
        if offer.state == JOB_RUNNING or offer.job not in self._ledger.wanted():
            return
        try:
            manifest = self._checked(offer)
        except WireError as error:
            log.warning("a model that was offered is not taken: %s", error, extra={"job": offer.job})
            return
        known = self._ledger.job(offer.job)
        known.version, known.epoch = manifest.version, manifest.epoch
        self._end(offer.job)
        before = self._offers.get(offer.job)
        if before and before[1] != manifest:
            self._drop(offer.job)
        self._offers[offer.job] = offer, manifest
        self._pull_now.set()

    def refused(self, transfer: bytes) -> bool:
        """Whether this names a model that was asked for and will not come. What is here of it stays."""
        job = next((job for job in self._ledger.wanted() if model_request_id(job) == transfer), None)
        if job is None:
            return False
        log.warning("the coordinator has no model of this job for this device", extra={"job": job})
        self._refused.add(job)
        self._asked.pop(job, None)
        self._drop(job)
        return True

    def tidy(self) -> None:
        """Remove the models that nobody needs any more, and what is private of their jobs."""
        self._residuals.keep([name for name, job in self._ledger.data.jobs.items() if not job.ended])
        for job in self._shelf.drawer.jobs():
            known = self._ledger.data.jobs.get(job)
            if known is None or (known.ended and not known.wanted):
                self._shelf.drawer.remove(job)
        for job in {*self._shelf.jobs(), *self._offers}:
            known = self._ledger.data.jobs.get(job)
            if known is None or (known.ended and not known.wanted):
                self._drop(job)
                self._shelf.prune(job, 0)
            else:
                self._shelf.prune(job, 1 if known.ended else KEPT_PER_JOB)

    def remove_all(self) -> None:
        """The device is no member any more."""
        self._shelf.remove_all()
        self._residuals.keep([])

    def _missing(self) -> list[str]:
        wanted = [job for job in self._ledger.wanted() if job not in self._refused]
        return [job for job in wanted if not self._shelf.has_last(job)]

    def _checked(self, offer: ModelOffer) -> Manifest:
        _, manifest = check_model(offer, self._identity)
        known = self._ledger.job(offer.job)
        if manifest.version != offer.version:
            raise Forged(f"version {offer.version} was offered with the manifest of {manifest.version}")
        if manifest.version < known.version or manifest.epoch < known.epoch:
            raise Forged(f"version {manifest.version} is older than what is known: an old offer was replayed")
        return manifest

    def _end(self, job: str) -> None:
        self._ledger.end(job)
        self.tidy()

    def _drop(self, job: str) -> None:
        """Pull this model no longer."""
        self._offers.pop(job, None)
        if self._pulling and self._pulling[0] == job:
            self._pulling[1].cancel()

    def _ask(self, job: str) -> None:
        self._asked[job] = 0
        self._ask_now.set()

    async def _ask_all(self) -> None:
        while True:
            await self._ask_now.wait()
            delay_s = RESEND_FIRST_S
            while self._asked:
                self._ask_now.clear()
                for job in list(self._asked):
                    await self._ask_once(job)
                try:
                    async with asyncio.timeout(delay_s):
                        await self._ask_now.wait()
                    delay_s = RESEND_FIRST_S
                except TimeoutError:
                    delay_s = min(2 * delay_s, RESEND_CAP_S)
            self._ask_now.clear()

    async def _ask_once(self, job: str) -> None:
        count = self._asked.get(job)
        if count == ASKS_MAX:
            del self._asked[job]
        elif count is not None:
            self._asked[job] = count + 1
            with suppress(BusUndelivered):
                await self._send(ModelRequest(job=job))

    async def _look_again(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            if self._missing():
                self._ask_state()

    async def _pull_all(self) -> None:
        while True:
            self._pull_now.clear()
            job = next(iter(self._offers), None)
            if job is None:
                await self._pull_now.wait()
                continue
            async with asyncio.TaskGroup() as group:
                self._pulling = job, group.create_task(self._pull(job), name=f"pull {job}")
            self._pulling = None

    async def _pull(self, job: str) -> None:
        offer, manifest = self._offers[job]
        try:
            async with asyncio.timeout(TURN_S):
                await self._models.pull(offer, manifest)
        except TimeoutError:
            self._offers[job] = self._offers.pop(job)  # behind the others
            return
        except OSError as error:
            log.error("the last version can't be stored: %s", error, extra={"job": job})  # noqa: TRY400
            await asyncio.sleep(RESEND_CAP_S)  # by then the owner may have made room
            return
        del self._offers[job]
        self._shelf.prune(job, 1)
        log.info(
            "version %d, the last, is here; `fedbus-agent model export`", offer.version, extra={"job": job}
        )
