"""One turn of the core: what was decided about one input, and what is ordered because of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from coordinator.apply import apply
from coordinator.effects import Effect, Tell
from coordinator.facts import AnyFact
from coordinator.inputs import Moment
from coordinator.state import State
from schemas.events import FromCoordinator


class CommandRefused(Exception):
    """An operator's command cannot be done; nothing changed. The text says why and what to do."""


@dataclass(slots=True)
class Turn:
    """Facts change the state at once, so that later decisions of the same turn see them."""

    state: State
    moment: Moment
    facts: list[AnyFact] = field(default_factory=list)
    effects: list[Effect] = field(default_factory=list)

    def record(self, fact: AnyFact) -> None:
        """Decide a fact: it is in force at once."""
        apply(self.state, fact, self.moment.run_s)
        self.facts.append(fact)

    def order(self, effect: Effect) -> None:
        self.effects.append(effect)

    def tell(self, device: str, event: FromCoordinator) -> None:
        self.effects.append(Tell(device, event))
