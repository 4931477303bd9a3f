"""The state as bytes: one history gives one image, and what comes back behaves as what was written.

Maps keep their order, because the core goes through them; sets are sorted. A request may be in its job's map,
in its round, and among the round's receipts: it is written once, and is one object again.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import msgspec

from coordinator.state import Job, Request, Round, State


@dataclass(slots=True)
class Recovered:
    """What the log says: the state, and for how long the coordinator has run so far."""

    state: State
    run_s: float = 0.0
    turns: int = 0


class _Job(msgspec.Struct, frozen=True, array_like=True):
    """A job without its requests, sets and round, and these beside it: places in ``requests``, of which the
    first ``known`` are those in the job's map."""

    job: Job
    requests: list[Request]
    known: int
    unfit: list[str]
    round: Round | None
    issued: list[int]
    order: list[int]
    later: list[int] = []


class _Image(msgspec.Struct, frozen=True, array_like=True):
    run_s: float
    turns: int
    state: State
    jobs: list[_Job]


_decoder = msgspec.msgpack.Decoder(_Image)


def encode_image(recovered: Recovered) -> bytes:
    """Everything that recovery needs to go on from here."""
    state = recovered.state
    jobs = [_job(job) for job in state.jobs.values()]
    image = _Image(recovered.run_s, recovered.turns, replace(state, jobs={}), jobs)
    return msgspec.msgpack.encode(image)


def decode_image(data: bytes) -> Recovered:
    """What `encode_image` wrote. Raises `msgspec.DecodeError`."""
    image = _decoder.decode(data)
    image.state.jobs = {found.job.id: _whole(found) for found in image.jobs}
    return Recovered(image.state, image.run_s, image.turns)


def _job(job: Job) -> _Job:
    requests = list(job.requests.values())
    round_ = job.round
    issued, order, later = (round_.requests, round_.order, round_.later) if round_ else ([], [], [])
    places = {id(request): place for place, request in enumerate(requests)}
    for request in (*issued, *order, *later):
        if id(request) not in places:  # its device was asked so often since that the map forgot it
            places[id(request)] = len(requests)
            requests.append(request)
    return _Job(
        replace(job, requests={}, unfit=set(), round=None),
        requests,
        len(job.requests),
        sorted(job.unfit),
        replace(round_, requests=[], order=[], later=[]) if round_ else None,
        [places[id(request)] for request in issued],
        [places[id(request)] for request in order],
        [places[id(request)] for request in later],
    )


def _whole(found: _Job) -> Job:
    requests, round_ = found.requests, found.round
    if round_ is not None:
        round_.requests = [requests[place] for place in found.issued]
        round_.order = [requests[place] for place in found.order]
        round_.later = [requests[place] for place in found.later]
    found.job.requests = {(request.device, request.number): request for request in requests[: found.known]}
    found.job.unfit = set(found.unfit)
    found.job.round = round_
    return found.job
