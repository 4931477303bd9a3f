"""What a stale update still counts, in asynchronous jobs. τ is the number of versions since the one it is of:

    constant         s(τ) = 1
    polynomial       s(τ) = (1 + τ)^-a
    hinge            s(τ) = 1 where τ ≤ b, else 1 / (a·(τ - b) + 1)
    delay-adaptive   s(τ) = min(1, c / τ), c = concurrency / K

The first three are of Xie, Koyejo and Gupta 2019, "Asynchronous federated optimization", section 5.2, with
``decay`` for a and ``grace`` for b; polynomial with a = 1/2 is what Nguyen et al. 2022 train with
("Federated learning with buffered asynchronous aggregation"). The last is the step rule of Koloskova, Stich
and Jaggi 2022 ("Sharper convergence guarantees for asynchronous SGD"), counted in versions: c is the mean
staleness while all devices are busy.

The weights are not divided by their sum: a buffer of stale updates moves the model less.
"""

from __future__ import annotations

from decimal import Decimal

from schemas.jobs import AsyncSettings


def staleness_weight(staleness: int, settings: AsyncSettings, cohort: int) -> float:
    """s(τ) for an update that is ``staleness`` versions old, in a job with buffers of ``cohort`` updates."""
    if not staleness:
        return 1.0
    match settings.weighting:
        case "constant":
            return 1.0
        case "polynomial":
            # The library's pow is rounded differently on different machines; decimal's is not.
            return float(Decimal(1 + staleness) ** -Decimal(settings.decay))
        case "hinge":
            beyond = staleness - settings.grace
            return 1.0 if beyond <= 0 else 1.0 / (settings.decay * beyond + 1.0)
        case "delay-adaptive":
            return min(1.0, settings.concurrency / (cohort * staleness))
