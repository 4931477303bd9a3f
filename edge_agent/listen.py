"""What the coordinator says, verified; and what becomes of a training request before any of it is trained."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Final

from broker.mailbox import read
from broker.ports import Clock, Files
from edge_agent.config import Config
from edge_agent.identity import Identity
from edge_agent.ledger import WAITING_MAX, Ledger, RequestState
from edge_agent.policy import data_path, decline, objection
from schemas.envelope import parse
from schemas.errors import Forged, KeyRefused, Replayed, WireError
from schemas.events import (
    Accept,
    Decline,
    FromCoordinator,
    ModelOffer,
    TrainingRequest,
    decode_from_coordinator,
)
from schemas.models import Layout, Manifest, key_commitment, open_layout, open_manifest

COMPLAIN_EVERY_S: Final = 30.0

log: Final = logging.getLogger("fedbus.listen")


class Ears:
    """Opens the coordinator's messages. The replay window is the ledger's: durable with its next save."""

    def __init__(self, identity: Identity, ledger: Ledger) -> None:
        self._federation = identity.federation
        self._box = identity.box
        self._signer = identity.keys().signing
        self._ledger = ledger

    def hear(self, payload: bytes) -> FromCoordinator:
        """The event in an envelope, taken into the window. Raises `schemas.errors.WireError`."""
        envelope = parse(payload)
        window = self._ledger.data.window
        opened = read(envelope, self._signer, window, self._box, self._federation)
        self._ledger.data.window = window.after(envelope.order)
        return decode_from_coordinator(opened.inner)


class Complaints:
    """Logs messages that were not taken: one of a kind every `COMPLAIN_EVERY_S`, or whoever may write to our
    topic could fill our disk."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._logged_at_s: dict[str, float] = {}  # by the error's code

    def add(self, error: WireError) -> None:
        """Why one was not taken."""
        now_s = self._clock.monotonic_s()
        due = now_s - self._logged_at_s.get(error.code, -math.inf) >= COMPLAIN_EVERY_S
        if isinstance(error, Replayed) or not due:
            log.debug("a message was dropped (%s): %s", error.code, error)
            return
        self._logged_at_s[error.code] = now_s
        hint = "if this goes on, others write to this device's topic: check the broker's access rules"
        log.warning("a message was dropped (%s): %s; %s", error.code, error, hint)


def check_model(told: TrainingRequest | ModelOffer, identity: Identity) -> tuple[Layout, Manifest]:
    """Layout and manifest of a model, if the coordinator signed them for this job and job key.

    Raises `schemas.errors.WireError`.
    """
    signer = identity.keys().signing
    layout = open_layout(told.layout, signer, told.job)
    manifest = open_manifest(told.manifest, signer, identity.federation, told.job, layout)
    if key_commitment(told.job_key, told.job, manifest.epoch) != manifest.key_commitment:
        raise KeyRefused(f"the job's key is not the one that version {manifest.version} is committed to")
    return layout, manifest


def check_request(request: TrainingRequest, identity: Identity) -> tuple[Layout, Manifest]:
    """`check_model` of the version that the request is based on."""
    layout, manifest = check_model(request, identity)
    if manifest.model != request.base:
        raise Forged(f"the manifest is of version {manifest.version}, the request is based on another model")
    return layout, manifest


class Gate:
    """Decides about training requests: each one once, durably, whatever comes again."""

    def __init__(
        self,
        files: Files,
        identity: Identity,
        ledger: Ledger,
        config: Config,
        installed: Callable[[], Collection[str]],
    ) -> None:
        self._files = files
        self._identity = identity
        self._ledger = ledger
        self._config = config
        self._installed = installed

    def admit(self, request: TrainingRequest) -> Accept | Decline | None:
        """The answer, durable on return. None: what there is to say is said elsewhere, or nothing is.

        A request that comes again is never accepted a second time.
        """
        known = self._ledger.find((request.job, request.request))
        fields = {"job": request.job, "round": request.round, "request": request.request}
        if known is not None:
            log.info("a request came again (%s)", known.state, extra=fields)
            match known.state:
                case RequestState.ACCEPTED:
                    return Accept(job=request.job, request=request.request)
                case RequestState.DECLINED:
                    return decline(request, known.reason, known.text)
                case _:
                    return None
        if request.request <= self._ledger.job(request.job).newest:
            log.warning("a request older than the newest was dropped", extra=fields)
            return None
        found = self._check(request)
        if isinstance(found, Decline):
            self._ledger.decline(request, found)
            log.warning("declined (%s): %s", found.reason, found.text, extra=fields)
            return found
        self._ledger.accept(request, found.version, found.epoch)
        log.info("accepted: version %d of the model", found.version, extra=fields)
        return Accept(job=request.job, request=request.request)

    def _check(self, request: TrainingRequest) -> Manifest | Decline:
        try:
            layout, manifest = check_request(request, self._identity)
        except WireError as error:
            return decline(request, "base", str(error))
        job = self._ledger.job(request.job)
        if manifest.epoch < job.epoch:
            text = f"the job's key is of epoch {manifest.epoch}, but epoch {job.epoch} is known already"
            return decline(request, "base", f"{text}: an old request was replayed")
        if manifest.version < job.version:
            text = f"the model is version {manifest.version}, but version {job.version} is known already"
            return decline(request, "base", f"{text}: an old manifest was replayed")
        refused = objection(request, layout, self._config, self._installed())
        if refused is not None:
            return refused
        path = data_path(request, self._config)
        if not data_is_there(self._files, path):
            text = f"{path}: no such file; correct its path under [data] in agent.toml or put the file there"
            return decline(request, "data", text)
        if len(self._ledger.waiting()) >= WAITING_MAX:
            return decline(request, "busy", f"{WAITING_MAX} requests wait for training already")
        return manifest


def data_is_there(files: Files, path: str) -> bool:
    """Whether a data set's file exists; the worker says whether it can be used."""
    try:
        return files.exists(Path(path))
    except OSError:
        return False
