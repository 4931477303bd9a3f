"""The models that a device keeps, for its owner: which there are, and one of them as a safetensors file.

Reads only, so it may run beside the agent, which meanwhile may replace a version by a newer one.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from broker.ports import Files, write_export
from edge_agent.identity import Identity
from edge_agent.kept import CARD, DIR, Card, read_card
from edge_agent.ledger import read_ledger
from edge_agent.listen import check_model
from edge_agent.private import overlaid
from edge_agent.sealer import open_sealed
from schemas.errors import Forged, WireError
from schemas.jobs import JOB_RUNNING
from schemas.models import Layout, Manifest
from schemas.safetensors import metadata, to_safetensors

CARD_NAME: Final = re.compile(
    rf"(?P<job>[^.]+)\.(?P<version>\d{{1,10}})\.[0-9a-f]+{re.escape(CARD)}", re.ASCII
)
TRIES: Final = 3
"""Looks at the folder: a version that was replaced between two steps is gone at most once in a while."""


class NoModel(Exception):
    """There is no such model, or it can't be used. The message names cause and remedy."""


@dataclass(frozen=True, slots=True)
class Kept:
    """A version on this device. ``state`` is the job's, as far as it is known here; ``last``: no later
    version of the job will come; ``whole``: all of it has come."""

    card: Card
    layout: Layout
    manifest: Manifest
    path: Path
    state: str
    whole: bool

    @property
    def job(self) -> str:
        return self.manifest.job

    @property
    def version(self) -> int:
        return self.manifest.version

    @property
    def last(self) -> bool:
        return self.card.last

    @property
    def parameters(self) -> int:
        """Number of float32 values."""
        return sum(
            tensor.items
            for tensor in self.layout.tensors
            if tensor.dtype == "float32" and tensor.role != "control"
        )


@dataclass(frozen=True, slots=True)
class Damaged:
    """A version on this device whose card can't be used; ``problem`` names cause and remedy."""

    job: str
    version: int
    path: Path
    problem: str
    whole: bool


def kept(files: Files, directory: Path, identity: Identity) -> tuple[list[Kept], list[Damaged]]:
    """By job: the newest version that is whole, and after it a newer one that is still on its way.

    Then those of no older version whose cards can't be used. Raises `edge_agent.ledger.LedgerError`, OSError.
    """
    jobs = read_ledger(files, directory).jobs
    found: list[Kept] = []
    damaged: list[Damaged] = []
    for name in files.names(directory / DIR):
        named = CARD_NAME.fullmatch(name)
        if named is None:
            continue
        path = directory / DIR / name.removesuffix(CARD)
        try:
            card = read_card(files, path)
            if card is None:
                continue  # replaced by a newer one this moment
            layout, manifest = check_model(card.offer, identity)
        except (WireError, OSError) as error:
            whole = files.exists(path)
            both = [directory / DIR / name, *([path] if whole else [])]
            problem = f"{both[0]}: can't be used ({error}); {_anew(*both)}"
            damaged.append(Damaged(named["job"], int(named["version"]), path, problem, whole))
            continue
        state = card.offer.state
        if state == JOB_RUNNING and (known := jobs.get(manifest.job)) and known.ended:
            state = "ended"
        found.append(Kept(card, layout, manifest, path, state, files.exists(path)))
    found.sort(key=lambda model: (model.job, model.version))
    newest = {model.job: model.version for model in found if model.whole}
    return (
        [model for model in found if model.version >= newest.get(model.job, 0)],
        [model for model in damaged if model.version >= newest.get(model.job, 0)],
    )


def export(files: Files, directory: Path, identity: Identity, job: str, out: Path) -> tuple[Kept, int]:
    """Write the newest whole version of a job to ``out``, whole or not at all. Returns it and the file size.

    It is verified again, from the pinned root to the last byte; layers that are personal in its job are this
    device's own, and ``fedbus.personal`` in the file says so. Raises `NoModel`,
    `edge_agent.ledger.LedgerError`, OSError.
    """
    for _ in range(TRIES):
        model = _newest(files, directory, identity, job)
        try:
            plain = open_sealed(files, model.path, model.manifest, model.card.offer.job_key)
            break
        except Forged as error:
            if files.exists(model.path):
                raise NoModel(f"{error}; {_anew(model.path)}") from error
    else:
        raise NoModel(f"job {job}: its model was replaced {TRIES} times meanwhile; try again")
    offer = model.card.offer
    told = metadata(identity.federation, job, model.version, model.manifest.model, offer.task, offer.config)
    if overlaid(files, directory, model.layout, plain):
        told["fedbus.personal"] = identity.device
    data = to_safetensors(model.layout, plain, told)
    if not out.parent.is_dir():
        raise NoModel(f"{out.parent}: no such folder; make it first")
    write_export(files, out, data)
    return model, len(data)


def _newest(files: Files, directory: Path, identity: Identity, job: str) -> Kept:
    models: list[Kept] = []
    damaged: list[Damaged] = []
    for _ in range(TRIES):  # of one that is replaced, the newer one is found the next time
        models, damaged = kept(files, directory, identity)
        for model in models:
            if model.job == job and model.whole:
                return model
    for spoilt in damaged:
        if spoilt.job == job:
            raise NoModel(spoilt.problem)
    if any(model.job == job for model in models):
        raise NoModel(f"job {job}: its model is not whole yet; let `fedbus-agent run` fetch the rest")
    jobs = {model.job for model in models} | {model.job for model in damaged}
    names = ", ".join(sorted(jobs)) or "none"
    known = read_ledger(files, directory).jobs.get(job)
    cause = "its model has not come yet" if known and known.wanted else "no model of this job here"
    raise NoModel(f"job {job}: {cause}; the models: {names}")


def _anew(*paths: Path) -> str:
    names = " and ".join(map(str, paths))
    return f"delete {names}, then start the agent again: it fetches the model of an ended job anew"
