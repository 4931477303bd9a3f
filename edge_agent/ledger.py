"""What the agent must remember: the replay window, the newest number per job, what became of each request.

One file, replaced atomically. A request is accepted once it stands here; the request itself, with the
job's key, has a file of its own until it was trained.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec

from broker.ports import Files, write_atomic
from schemas.codec import pack, unpack
from schemas.errors import Malformed
from schemas.events import Decline, TrainingRequest, Verdict, encode_event
from schemas.limits import BODY_BYTES_MAX, OPEN_UPDATES_MAX
from schemas.window import Window

FILE: Final = "ledger"
REQUESTS_DIR: Final = "requests"
FILE_BYTES_MAX: Final = 32 << 20
JOBS_MAX: Final = 256  # jobs remembered without an open request
WAITING_MAX: Final = 64  # requests accepted and not yet trained
MODELS_KEPT: Final = 8  # ended jobs whose last version is kept for the owner

RequestKey = tuple[str, int]  # job, number


class LedgerError(Exception):
    """The ledger can't be read. The message names the remedy."""


class RequestState(StrEnum):
    """How far a request has come; only the first two are open."""

    ACCEPTED = "accepted"  # waits for training, or is trained now
    MADE = "made"  # its update is in the outbox
    RECEIPTED = "receipted"
    DECLINED = "declined"
    CLOSED = "closed"  # the coordinator wants it no longer


OPEN: Final = (RequestState.ACCEPTED, RequestState.MADE)


class RequestRecord(msgspec.Struct, array_like=True):
    """One request; ``reason`` and ``text`` say why it was declined."""

    job: str
    number: int
    round: int
    state: RequestState
    reason: str = ""
    text: str = ""

    @property
    def key(self) -> RequestKey:
        return self.job, self.number


class JobRecord(msgspec.Struct, array_like=True):
    """``newest`` request, ``version`` and key ``epoch`` seen of a job: none of them ever goes back.

    ``wanted``: this device took part, and its owner is to have the newest model.
    """

    newest: int = -1
    version: int = 0
    epoch: int = 0
    ended: bool = False
    wanted: bool = False


class LedgerData(msgspec.Struct, kw_only=True):
    """The file's content; `edge_agent.cli` shows it to people."""

    window: Window = Window()
    jobs: dict[str, JobRecord] = {}
    requests: list[RequestRecord] = []
    samples: dict[str, int] = {}  # of each data set, as the last training found them
    connected_wall_s: float = 0.0
    verdict: Verdict | None = None
    revoked: str = ""


def read_ledger(files: Files, directory: Path) -> LedgerData:
    """What stands in ``directory``; empty if there is nothing. Raises `LedgerError`."""
    path = directory / FILE
    try:
        return unpack(files.read(path), LedgerData, bytes_max=FILE_BYTES_MAX)
    except FileNotFoundError:
        return LedgerData()
    except Malformed as error:
        raise LedgerError(
            f"{path}: damaged ({error}); restore it from a backup, or enrol again in a new directory"
        ) from error


class Ledger:
    """The ledger of a running agent. Changes are in memory until `save`, or as each method says."""

    def __init__(self, files: Files, directory: Path) -> None:
        self._files = files
        self._directory = directory
        self.data = read_ledger(files, directory)
        self._requests = {record.key: record for record in self.data.requests}

    def save(self) -> None:
        """Durable on return."""
        self._forget_old()
        self.data.requests = list(self._requests.values())
        write_atomic(self._files, self._directory / FILE, pack(self.data))

    def job(self, job: str) -> JobRecord:
        """What is known of a job; nothing, at first."""
        return self.data.jobs.setdefault(job, JobRecord())

    def wanted(self) -> list[str]:
        """Jobs whose newest model is kept for the owner; those that ended last come last."""
        return [name for name, job in self.data.jobs.items() if job.wanted]

    def end(self, job: str) -> None:
        """No more requests of this job will come; its model may take the place of an older job's. Durable
        on return."""
        record = self.job(job)
        if not record.ended:
            record.ended = True
            self.data.jobs[job] = self.data.jobs.pop(job)
        self.save()

    def find(self, key: RequestKey) -> RequestRecord | None:
        return self._requests.get(key)

    def waiting(self) -> list[RequestRecord]:
        """Requests to be trained, oldest first."""
        return [record for record in self._requests.values() if record.state is RequestState.ACCEPTED]

    def held(self) -> list[RequestRecord]:
        """Requests that we answer for: to be trained, or with an update that has no receipt yet."""
        return [record for record in self._requests.values() if record.state in OPEN]

    def accept(self, request: TrainingRequest, version: int, epoch: int) -> None:
        """Durable on return, with the request itself."""
        folder = self._directory / REQUESTS_DIR
        self._files.make_dir(folder)
        write_atomic(self._files, self._request_path((request.job, request.request)), encode_event(request))
        job = self.job(request.job)
        job.version, job.epoch = max(job.version, version), max(job.epoch, epoch)
        job.ended, job.wanted = False, True
        self._record(request, RequestState.ACCEPTED)
        self.save()

    def decline(self, request: TrainingRequest, decline: Decline) -> None:
        """Durable on return, so that a request that comes again gets the same answer."""
        record = self._record(request, RequestState.DECLINED)
        record.reason, record.text = decline.reason, decline.text
        self.save()

    def settle(self, key: RequestKey, state: RequestState, decline: Decline | None = None) -> None:
        """A request's end, or its update's arrival in the outbox. Durable on return."""
        record = self._requests.get(key)
        if record is None:
            record = self._requests[key] = RequestRecord(key[0], key[1], 0, state)
        record.state = state
        if decline is not None:
            record.reason, record.text = decline.reason, decline.text
        self.save()
        if state is not RequestState.ACCEPTED:
            self._files.remove(self._request_path(key))

    def request(self, key: RequestKey) -> TrainingRequest | None:
        """An accepted request as it came; None if its file is lost."""
        try:
            return unpack(
                self._files.read(self._request_path(key)), TrainingRequest, bytes_max=BODY_BYTES_MAX
            )
        except (OSError, Malformed):
            return None

    def _record(self, request: TrainingRequest, state: RequestState) -> RequestRecord:
        job = self.job(request.job)
        job.newest = max(job.newest, request.request)
        record = RequestRecord(request.job, request.request, request.round, state)
        self._requests[record.key] = record
        return record

    def _request_path(self, key: RequestKey) -> Path:
        return self._directory / f"{REQUESTS_DIR}/{key[0]}.{key[1]}"

    def _forget_old(self) -> None:
        """Keep what is open, the last `OPEN_UPDATES_MAX` of each running job, and `JOBS_MAX` other jobs, of
        which `MODELS_KEPT` with a model."""
        for name in [name for name in self.wanted() if self.data.jobs[name].ended][:-MODELS_KEPT]:
            self.data.jobs[name].wanted = False
        busy = {record.job for record in self.held()}
        idle = [name for name in self.data.jobs if name not in busy]
        for name in idle[: max(len(idle) - JOBS_MAX, 0)]:
            del self.data.jobs[name]
        for key, record in list(self._requests.items()):
            job = self.data.jobs.get(record.job)
            old = job is None or job.ended or record.number <= job.newest - OPEN_UPDATES_MAX
            if old and record.state not in OPEN:
                del self._requests[key]

    def lost_files(self) -> Iterator[Path]:
        """Files of requests that the ledger does not wait for: a crash left them."""
        folder = self._directory / REQUESTS_DIR
        for name in self._files.names(folder):
            job, _, number = name.partition(".")
            record = self._requests.get((job, int(number))) if number.isdigit() else None
            if record is None or record.state is not RequestState.ACCEPTED:
                yield folder / name
