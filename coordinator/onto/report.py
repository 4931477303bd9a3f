"""What came of a playing: counts, differing answers, how long answers took."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Row = dict[str, Any]


@dataclass(slots=True)
class Report:
    """Filled while it is played. ``who`` plays or is asked; ``measured`` says what ``latencies_s`` are of.

    ``final`` compares the newest version with the recorded one, if it was asked for; ``stopped`` says why
    nothing was played any more, or is empty.
    """

    who: str
    measured: str
    speed: str
    played: int = 0
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    declined: Counter[str] = field(default_factory=Counter)
    differing: list[Row] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    final: Row | None = None
    stopped: str = ""

    def differs(
        self, round_: int, device: str, what: str, recorded: object, played: object, **more: Any
    ) -> None:
        """An answer is not the recorded one."""
        row = {"round": round_, "device": device, "what": what, "recorded": recorded, "played": played}
        self.differing.append(row | more)

    @property
    def equal(self) -> bool:
        """Whether all was played, and every answer, and the last digest, are as they were recorded."""
        return not (self.differing or self.stopped or (self.final and not self.final["equal"]))

    def document(self) -> Row:
        """For programs."""
        return {
            "who": self.who,
            "speed": self.speed,
            "equal": self.equal,
            "updates": self.played,
            "accepted": self.accepted,
            "rejected": dict(self.rejected),
            "declined": dict(self.declined),
            "differing": self.differing,
            "measured": self.measured,
            "latency_ms": {
                "median": percentile(self.latencies_s, 50),
                "p99": percentile(self.latencies_s, 99),
            },
            "final": self.final,
            "stopped": self.stopped,
        }


def percentile(seconds: Sequence[float], percent: float) -> float | None:
    """In ms, by the nearest rank; None of nothing."""
    if not seconds:
        return None
    rank = max(math.ceil(percent / 100 * len(seconds)), 1)
    return round(1000 * sorted(seconds)[rank - 1], 3)


def kind_of(reason: str) -> str:
    """Reasons are counted by what stands before their first colon."""
    return reason.partition(":")[0]
