"""What must hold of every turn of the core, whatever was before it."""

from __future__ import annotations

from coordinator import facts as f
from coordinator.effects import SendReceipt
from coordinator.state import ENDED_JOB, DeviceState
from coordinator.turn import Turn
from schemas.ids import key_id
from tests.coordinator.drive import Drive, ordered

Id = tuple[str, str, int]  # job, device, request


class Watch:
    """Is told every turn of a drive. Raises AssertionError."""

    def __init__(self, drive: Drive) -> None:
        self.drive = drive
        drive.on_turn = self.turn
        self.keys: list[tuple[str, bytes]] = []  # every request's device and key id
        self.lives: dict[str, int] = {}  # how often each device was revoked
        self.asked_in: dict[Id, int] = {}  # the life in which a device was asked
        self.received: dict[Id, bytes] = {}
        self.must_not_fold: set[Id] = set()
        self.folded: dict[Id, int] = {}  # → round
        self.judged: set[Id] = set()
        self.open_round: dict[str, int] = {}
        self.numbers: dict[tuple[str, str], int] = {}
        self.epochs: dict[tuple[str, str], int] = {}  # newest key epoch that a device knows
        self.spoilt: dict[str, int] = {}  # newest key epoch that a revoked device knows
        self.versions: dict[str, int] = {}

    def turn(self, turn: Turn) -> None:
        for fact in turn.facts:
            match fact:
                case f.UpdateReceived():
                    self.saw_received(fact)
                case f.UpdateJudged():
                    self.saw_judged(fact)
                case f.RequestsIssued():
                    self.saw_issued(fact)
                case f.RoundOpened():
                    assert fact.job not in self.open_round, "one open round per job"
                    assert fact.round == self.versions[fact.job] + 1
                    self.open_round[fact.job] = fact.round
                case f.RoundClosed():
                    self.enough(fact.job, fact.round)
                case f.VersionCommitted():
                    assert fact.version == fact.round == self.versions.get(fact.job, -1) + 1, "one chain"
                    self.versions[fact.job] = fact.version
                    if fact.round:
                        self.enough(fact.job, fact.round)
                        assert self.open_round.pop(fact.job) == fact.round
                case f.JobEnded():
                    self.open_round.pop(fact.job, None)
                case f.DeviceRevoked():
                    self.lives[fact.device] = self.lives.get(fact.device, 0) + 1
                    for (job, device), epoch in self.epochs.items():
                        if device == fact.device:
                            self.spoilt[job] = max(self.spoilt.get(job, 0), epoch)
                case _:
                    pass
        for receipt in ordered(turn, SendReceipt):
            assert receipt.digest == self.received[receipt.job, receipt.device, receipt.request]

    def saw_received(self, fact: f.UpdateReceived) -> None:
        id_ = (fact.job, fact.device, fact.request)
        assert id_ not in self.received, "received once"
        self.received[id_] = fact.digest
        device = self.drive.state.devices[fact.device]
        if device.state is not DeviceState.ACTIVE or self.lives.get(fact.device, 0) != self.asked_in[id_]:
            self.must_not_fold.add(id_)

    def saw_judged(self, fact: f.UpdateJudged) -> None:
        id_ = (fact.job, fact.device, fact.request)
        assert id_ in self.received, "what was never durable has no verdict"
        if fact.folded:
            assert id_ not in self.judged, "folded once, and never after another verdict"
            assert id_ not in self.must_not_fold
            request = self.drive.state.jobs[fact.job].requests[id_[1:]]
            assert self.open_round[fact.job] == request.counts_in, "in the version that is made next"
            self.folded[id_] = request.counts_in
        elif id_ in self.judged:
            assert self.drive.state.jobs[fact.job].state in ENDED_JOB, "a verdict stands while its job runs"
            del self.folded[id_]
        self.judged.add(id_)

    def saw_issued(self, fact: f.RequestsIssued) -> None:
        assert self.open_round[fact.job] == fact.round
        for issued in fact.requests:
            at = (fact.job, issued.device)
            assert issued.number > self.numbers.get(at, 0), "numbers grow"
            assert fact.epoch > self.spoilt.get(fact.job, 0), "no revoked device knows this key"
            assert fact.epoch >= self.epochs.get(at, 0), "devices refuse lower epochs"
            assert (issued.device, key_id(issued.key)) not in self.keys, "every request has its own key"
            self.numbers[at], self.epochs[at] = issued.number, fact.epoch
            self.keys.append((issued.device, key_id(issued.key)))
            self.asked_in[fact.job, issued.device, issued.number] = self.lives.get(issued.device, 0)

    def enough(self, job: str, round_: int) -> None:
        folded = [id_ for id_, at in self.folded.items() if id_[0] == job and at == round_]
        assert len(folded) >= self.drive.state.jobs[job].spec.min_reports
