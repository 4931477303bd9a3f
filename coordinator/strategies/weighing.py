"""What each update counts in its round's mean.

Norm bounding (Sun et al. 2019, "Can you really backdoor federated learning?"): a change that is longer than
``clip_norm`` is scaled down to it, s = min(1, clip / ‖δ‖). With ``clip_quantile`` q the bound of a round is
the q-quantile of ‖δ‖ over the updates of the round before (Andrew et al. 2021, "Differentially private
learning with adaptive clipping", bound the same quantile; without their noise it is at hand as it is).

Centred clipping (Karimireddy, He and Jaggi 2021, "Learning from history for Byzantine robust optimization",
section 4): with ``clip_centre`` lengths are ‖δ - v‖, v the Δ of the round before, 0 in the first one, and

    Δ = v + Σ (nₖ / N)·sₖ·(δₖ - v)

FedNova (Wang et al. 2020, "Tackling the objective inconsistency problem in heterogeneous federated
optimization", section 4): devices that take more local steps don't pull the model to their own optimum. Each
change is divided by its effort a, and the mean multiplied by the mean effort:

    Δ = (Σ nₖ·aₖ / N) · Σ (nₖ / N)·δₖ / aₖ,  N = Σ nₖ

For τ steps of SGD a is τ; with momentum ρ it is (τ - ρ·(1 - ρ^τ) / (1 - ρ)) / (1 - ρ).

With both, ‖δ‖ is what it would be after all steps that the samples take: otherwise a device that claims
fewer than it took would count more than ``clip_norm`` allows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from coordinator.state import Request
from schemas.jobs import LocalSettings, ServerSettings


@dataclass(frozen=True, slots=True)
class Weight:
    """``samples`` is n, ``scale`` is s, ``effort`` is a, of the module."""

    samples: int
    scale: float = 1.0
    effort: float = 1.0

    @property
    def of_change(self) -> float:
        """What the change is multiplied by."""
        return self.samples * self.scale / self.effort

    @property
    def of_centre(self) -> float:
        """What of these samples counts for the centre instead."""
        return self.samples - self.samples * self.scale


def weigh(request: Request, server: ServerSettings, local: LocalSettings, radius: float = 0.0) -> Weight:
    """The weight of the update that answers ``request``, by what was recorded of it, in a round that clips
    at ``radius``; 0: at the job's ``clip_norm``."""
    effort = _effort(request.steps, local.momentum) if server.normalised else 1.0
    length, clip = _length(request, server, local), radius or server.clip_norm
    scale = clip / length if clip is not None and length > clip else 1.0
    return Weight(request.samples, scale, effort)


def radius_after(
    counted: list[Request], server: ServerSettings, local: LocalSettings, radius: float
) -> float:
    """What clips in the round after one that clipped at ``radius`` and counted these updates; 0: the job's
    ``clip_norm``."""
    if server.clip_quantile is None or not counted:
        return radius
    lengths = sorted(_length(request, server, local) for request in counted)
    return lengths[math.ceil(server.clip_quantile * len(lengths)) - 1] or radius


def _length(request: Request, server: ServerSettings, local: LocalSettings) -> float:
    if server.clip_centre:
        return request.distance
    if not server.normalised:
        return request.norm
    all_steps = _effort(local.steps(request.samples), local.momentum)
    return request.norm * (all_steps / _effort(request.steps, local.momentum))


def _effort(steps: int, momentum: float) -> float:
    """What the gradients of all steps count: the sum of 1 + ρ + … + ρ^(k-1) for k = 1 to τ.

    By doubling, with nothing subtracted: the module's closed form comes to nothing where ρ is close to 1, and
    the library's pow is rounded differently on different machines.
    """
    done, total = 0, 0.0
    first, power = 0.0, 1.0  # what the first gradient counts, ρ^done
    for bit in f"{steps:b}":
        total += done * first + power * total
        first += power * first
        done, power = 2 * done, power * power
        if bit == "1":
            first += power
            total += first
            done, power = done + 1, power * momentum
    return total
