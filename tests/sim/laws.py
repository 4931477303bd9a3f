"""What must hold when a fleet has come to its end: looked at while the coordinator still serves."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from broker.journal import Journal
from coordinator import entries
from coordinator.app import Coordinator
from coordinator.facts import AnyFact, UpdateJudged, UpdateReceived
from coordinator.image import Recovered
from coordinator.recovery import follow, open_recovered
from coordinator.replay import first_difference, replay
from coordinator.state import ENDED_JOB, OPEN_REQUEST, Request, RequestState, State
from coordinator.verify import verify
from edge_agent.ledger import REQUESTS_DIR
from schemas.ids import key_id
from schemas.limits import GRANT_BYTES_MAX
from tests.sim.federation import OUTBOX
from tests.sim.invariants import check_log

if TYPE_CHECKING:
    from tests.sim.fleet import Fleet

SETTLES = 100  # looks at a coordinator that still hears of devices


async def check_end(world: Fleet) -> list[AnyFact]:
    """All facts of the log, which is as it must be. Raises AssertionError."""
    serving = world.serving
    assert serving is not None
    journal, log = await _as_recovered(world, serving)
    state = serving.ledger.state
    assert not world.laws.problems, world.laws.problems
    check_log(log, {name: world.receipted[name] for name in world.honest()}, world.rounds)
    _check_signed(world, state, log)
    _check_answered(state)
    assert not world.center.files.rewritten, "the coordinator took chunks that it had"
    _check_bounds(world, serving)
    result = replay(world.center.ports, world.home)
    assert result["equal"], first_difference(world.home, result)
    damage = verify(world.center.files, world.home, world.federation, journal.count).damage
    assert not damage, f"a body or snapshot is not what was signed and recorded: {damage}"
    world.head = journal.head
    return log


async def _as_recovered(world: Fleet, serving: Coordinator) -> tuple[Journal, list[AnyFact]]:
    """The log, once nothing is pending: a coordinator that starts from it is where this one is."""
    files = world.center.files
    for _ in range(SETTLES):
        await serving.ledger.journal.drain()
        journal, by_snapshot = open_recovered(files, world.home, world.federation, read_only=True)
        logged = list(journal.entries())
        recovered = follow(Recovered(State()), logged).state
        if recovered == serving.ledger.state:
            assert by_snapshot.state == recovered, "a snapshot tells another state than the log"
            log = [entries.decode_entry(entry.data) for entry in logged]
            turns = [entry for entry in log if isinstance(entry, entries.Turned)]
            return journal, [fact for turn in turns for fact in turn.facts]
    raise AssertionError("what the log is recovered to is not what the coordinator believes")


def _check_signed(world: Fleet, state: State, log: list[AnyFact]) -> None:
    """Nothing is folded but what its device made for that request."""
    digests = {(f.job, f.device, f.request): f.digest for f in log if isinstance(f, UpdateReceived)}
    for fact in log:
        if isinstance(fact, UpdateJudged) and fact.folded and fact.device != world.liar:
            request = _request(state, fact)
            made = world.laws.made.get((fact.device, key_id(request.key)))
            assert made == digests[fact.job, fact.device, fact.request], "folded, and never made"


def _request(state: State, fact: UpdateJudged) -> Request:
    return state.jobs[fact.job].requests[fact.device, fact.request]


def _check_answered(state: State) -> None:
    """Every request came to an end: a verdict, a decline, or its round's."""
    for job in state.jobs.values():
        assert job.state in ENDED_JOB
        for request in job.requests.values():
            ended = request.state not in OPEN_REQUEST and request.state is not RequestState.RECEIVED
            assert ended, f"request {request.number} to {request.device} is still {request.state}"


def _check_bounds(world: Fleet, serving: Coordinator) -> None:
    """Nothing is left that would grow with the next run."""
    for name in world.honest():
        files = world.devices[name].files
        assert not files.names(OUTBOX), f"{name} keeps {files.names(OUTBOX)}"
        assert not files.names(Path("/agent") / REQUESTS_DIR)
    transfers = serving.intake.transfers()
    assert transfers["uploads_granted_bytes"] <= GRANT_BYTES_MAX
    lines = serving.intake.uploads.credits.lines.values()
    granted = sum(len(line.granted) * line.chunk_bytes for line in lines)
    assert transfers["uploads_granted_bytes"] == granted, "credit that nobody can give back"
    assert all(line.owner == world.liar for line in lines), "an upload that nobody goes on with"
    assert not world.broker.dropped


def digest(world: Fleet) -> str:
    """Of the log that resulted, and of all that befell the run."""
    total = sha256(world.head)
    for line in (*world.record.trace, *sorted(map(str, world.record.counts.items()))):
        total.update(line.encode())
    return total.hexdigest()
