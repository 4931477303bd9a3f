"""Messages that were not taken: a bounded ring with counters, for people. They never enter the log."""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Final

RING_LETTERS_MAX: Final = 256
TOPIC_CHARS_MAX: Final = 128  # of a topic of ours; a sender may have chosen a longer one


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Why a message was not taken. ``claimed`` is who it seems to be from: nothing proves it. Texts are cut
    at a bound, for a sender may have chosen them."""

    wall_s: float
    topic: str
    claimed: str
    code: str
    text: str
    size_bytes: int


@dataclass(slots=True)
class DeadLetters:
    """The newest letters, and how many there were by code."""

    ring: deque[DeadLetter] = field(default_factory=lambda: deque(maxlen=RING_LETTERS_MAX))
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, letter: DeadLetter) -> None:
        """Keep a letter; the oldest makes room."""
        self.ring.append(letter)
        self.counts[letter.code] += 1
