"""How a learning rate changes from round to round. Pure, and alike to the bit on every machine: only sums,
products and quotients, because the system's cos and pow are not rounded alike everywhere."""

from __future__ import annotations

from typing import Annotated, Final, Literal

import msgspec

COSINE_TERMS: Final = 12
"""Of the series of cos(x) for x up to π/2: what is left out is below float64's last bit."""

PI: Final = 3.141592653589793
LEAST: Final = 1e-9


class Schedule(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the learning rate is multiplied by in a round: 1 in the first one, never below `LEAST`.

    ``step``: by ``factor`` anew after every ``rounds`` rounds (exponential decay where that is 1).
    ``linear``: in equal steps down to ``factor``, which is reached after ``rounds`` rounds and holds then.
    ``cosine``: the same along half a cosine (Loshchilov and Hutter 2017, "SGDR", equation 5, one period).
    """

    kind: Literal["step", "linear", "cosine"]
    rounds: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    factor: Annotated[float, msgspec.Meta(gt=0, le=1)]

    def of_round(self, round_: int) -> float:
        """What the rate of round ``round_`` (from 1) is multiplied by."""
        done = max(round_ - 1, 0)
        if self.kind == "step":
            return max(_power(self.factor, done // self.rounds), LEAST)
        part = min(done / self.rounds, 1.0)
        left = 1.0 - part if self.kind == "linear" else 0.5 * (1.0 + _cosine_of_pi(part))
        return max(self.factor + (1.0 - self.factor) * left, LEAST)


def _power(base: float, exponent: int) -> float:
    """``base`` to a whole number, by squaring."""
    found = 1.0
    for bit in f"{exponent:b}":
        found *= found
        if bit == "1":
            found *= base
    return found


def _cosine_of_pi(part: float) -> float:
    """cos(π·part) for 0 to 1."""
    if part > 0.5:
        return -_cosine_of_pi(1.0 - part)
    square = (PI * part) * (PI * part)
    total = 1.0
    for term in range(COSINE_TERMS, 0, -1):
        total = 1.0 - total * square / (2 * term * (2 * term - 1))
    return total
