"""A gate before an agent that is not there: what it lets in, and why not."""

from __future__ import annotations

from edge_agent.ledger import Ledger
from edge_agent.listen import Gate
from schemas.events import Accept, Decline, TrainingRequest
from tests.edge_agent.federation import Model
from tests.edge_agent.party import HERE, UPDATE_KEY, Party, tiny_model


class Door:
    """A gate on a simulated disk."""

    def __init__(self) -> None:
        self.party = Party()
        self.federation = self.party.federation
        self.ledger = Ledger(self.party.machine.files, HERE)

    def admit(self, request: TrainingRequest) -> Accept | Decline | None:
        gate = Gate(
            self.party.machine.files, self.party.identity, self.ledger, self.party.config, lambda: ["vision"]
        )
        return gate.admit(request)

    def request(self, model: Model, number: int = 1) -> TrainingRequest:
        return self.federation.request(model, UPDATE_KEY, number=number)

    def model(self, *, job: str = "job-a", version: int = 0, epoch: int = 0) -> Model:
        tiny = tiny_model(self.federation, job=job, version=version)
        return self.federation.model(tiny.layout, tiny.content, version=version, epoch=epoch)


def refused(answer: Accept | Decline | None, reason: str, *words: str) -> None:
    assert isinstance(answer, Decline)
    assert answer.reason == reason
    for word in words:
        assert word in answer.text
