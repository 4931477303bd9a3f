"""What must hold after everything, from the coordinator's log, the devices' ledgers and their logs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from broker.system import system_ports
from coordinator.replay import first_difference, replay
from tests.chaos.faults import Hit
from tests.chaos.party import Party
from tests.chaos.plan import Kind
from tests.chaos.record import Key, Record

TRACEBACK = "Traceback (most recent call last)"


@dataclass
class Counted:
    """Numbers of a run, and what is wrong."""

    lost: int = 0
    doubled: int = 0
    received: int = 0
    folded: int = 0
    rejected: int = 0
    declined: int = 0
    rounds: int = 0
    jobs: int = 0
    receipts_seen: int = 0
    wrong: list[str] = field(default_factory=list)


def count(party: Party, hits: Iterable[Hit]) -> Counted:
    """Everything has ended: what came of it, by the log as it is now."""
    record = Record(party.home)
    record.read()
    found = Counted(
        received=len({key for key, _ in record.received}),
        folded=sum(fact.folded for _, fact in record.judged),
        rejected=sum(not fact.folded for _, fact in record.judged),
        declined=len(record.declined),
        rounds=sum(round_ > 0 for _, round_ in record.committed),
        jobs=len(record.jobs),
    )
    check_updates(record, found)
    check_receipts(set(party.receipts()), record, found)
    if not found.receipts_seen:
        found.wrong.append("no device says that it saw a receipt: their logs are not understood any more")
    for device in party.devices:
        for held in party.held(device):
            found.lost += 1
            found.wrong.append(f"{device} still holds {held.job}.{held.number} ({held.state})")
    found.wrong += _members(party, record)
    found.wrong += _jobs(record)
    found.wrong += _moments(record, hits)
    found.wrong += [f"{who}'s log has a traceback" for who in _all(party) if TRACEBACK in party.log(who)]
    result = replay(system_ports(), party.home)
    if not result["equal"]:
        found.wrong.append(f"the log folds to something else: {first_difference(party.home, result)}")
    return found


def _all(party: Party) -> list[str]:
    return ["coordinator", *party.devices]


def check_updates(record: Record, found: Counted) -> None:
    """Whatever was receipted was received once, and judged once, with a reason if it was rejected."""
    received = Counter(key for key, _ in record.received)
    judged = Counter(key for key, _ in record.judged)
    twice = sorted({key for each in (received, judged) for key, times in each.items() if times > 1})
    unjudged = [key for key in received if key not in judged]
    found.doubled += len(twice)
    found.lost += len(unjudged)
    found.wrong += [f"{key} is there more than once" for key in twice]
    found.wrong += [f"{key} was receipted and never judged" for key in unjudged]
    for key, fact in record.judged:
        if not fact.folded and not fact.reason:
            found.wrong.append(f"{key} was rejected without a reason")
        if key not in received:
            found.wrong.append(f"{key} was judged and never received")


def check_receipts(seen: set[tuple[Key, int]], record: Record, found: Counted) -> None:
    """What a device saw receipted was in the log by the entry that the receipt names (0: it is not told)."""
    first = dict(reversed(record.received))
    found.receipts_seen = len({key for key, _ in seen})
    for key, index in sorted(seen):
        if key not in first:
            found.lost += 1
            found.wrong.append(f"{key} was receipted (index {index}), and is not in the log")
        elif index and first[key] > index:
            found.wrong.append(f"{key} was receipted with index {index}, and is entry {first[key]}")


def _members(party: Party, record: Record) -> Iterator[str]:
    if Counter(record.joins) != Counter(party.devices):
        yield f"devices joined more than once: {Counter(record.joins)}"


def _jobs(record: Record) -> Iterator[str]:
    """All rounds of each job, each once, and every request came to an end."""
    for job, rounds in record.jobs.items():
        done = [round_ for name, round_ in record.committed if name == job]
        if done != list(range(rounds + 1)) or record.states.get(job) != "finished":
            yield f"{job} is not complete: {record.states.get(job, 'not ended')}, versions of rounds {done}"
    for key in record.issued:
        if not record.over(key):
            yield f"{key} never came to an end"


def _moments(record: Record, hits: Iterable[Hit]) -> Iterator[str]:
    """Again, from the whole log: each fault that counts hit an update in flight in an open round."""
    for hit in hits:
        if hit.index and not record.in_flight(hit.key, hit.index):
            yield f"{hit} did not hit an update in flight"
        if hit.index and hit.kind is Kind.WORKER and record.declined[hit.key].reason != "worker":
            yield f"{hit} did not end a training"
