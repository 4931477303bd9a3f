"""What one device of a recording was asked, and what it answered, in the order of asking."""

from __future__ import annotations

from dataclasses import dataclass

from msgspec.structs import replace

from coordinator import facts as f
from coordinator.entries import Sent
from coordinator.onto import OntoRefused
from coordinator.onto.source import Source
from schemas.events import TrainingRequest, decode_from_coordinator
from schemas.ids import key_id
from schemas.keys import BoxKey
from schemas.models import Layout, Manifest, open_manifest


@dataclass(slots=True)
class Question:
    """A recorded request, with the job's key; updates are sealed to ``key``. What came of it: an update
    ``digest``, which was ``folded`` or not, or a decline for a ``reason``, or neither."""

    run_s: float
    request: TrainingRequest
    layout: Layout
    manifest: Manifest
    key: BoxKey
    digest: bytes = b""
    folded: bool = False
    reason: str = ""


Answered = f.UpdateReceived | f.UpdateJudged | f.RequestDeclined
Questions = dict[tuple[str, int], Question]
"""By job and number of the request."""


def read_questions(source: Source, device: str, job: str = "") -> list[Question]:
    """All that ``device`` was asked (of ``job``, if named). Raises `OntoRefused` if that is nothing, or if it
    can't be answered any more."""
    found: Questions = {}
    for entry in source.entries():
        if isinstance(entry, Sent):
            if entry.device == device:
                _asked(source, entry, found)
            continue
        for fact in entry.facts:
            if isinstance(fact, Answered) and fact.device == device:
                _answered(fact, found)
    questions = [one for one in found.values() if not job or one.request.job == job]
    if not questions:
        raise OntoRefused(f"the recording asks {device} nothing{f' of job {job}' if job else ''}")
    return questions


def _asked(source: Source, sent: Sent, found: Questions) -> None:
    event = decode_from_coordinator(sent.inner)
    if isinstance(event, TrainingRequest) and (event.job, event.request) not in found:
        layout = source.store.layout(event.job)
        ours = source.identity
        manifest = open_manifest(event.manifest, ours.online.public, ours.federation, event.job, layout)
        request = replace(event, job_key=source.keys.job_key(event.job, manifest.epoch))
        key = source.keys.request_key(event.job, event.round, key_id(event.update_key))
        if key is None:
            raise OntoRefused(
                f"the key of the request to {sent.device} for round {event.round} was destroyed, so nobody "
                f"can answer it; export anew, from a recording that has it still"
            )
        found[event.job, event.request] = Question(sent.at.run_s, request, layout, manifest, key)


def _answered(fact: Answered, found: Questions) -> None:
    question = found.get((fact.job, fact.request))
    if question is None:
        return
    match fact:
        case f.UpdateReceived():
            question.digest = fact.digest
        case f.UpdateJudged():
            question.folded |= fact.folded
        case f.RequestDeclined():
            question.reason = fact.reason
