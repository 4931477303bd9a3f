"""What each update counts in its round's mean.

Norm bounding (Sun et al. 2019, "Can you really backdoor federated learning?"): a change that is longer than
``clip_norm`` is scaled down to it, s = min(1, clip / ‖δ‖).

FedNova (Wang et al. 2020, "Tackling the objective inconsistency problem in heterogeneous federated
optimization", section 4): devices that take more local steps don't pull the model to their own optimum. Each
change is divided by its effort a, and the mean multiplied by the mean effort:

    Δ = (Σ nₖ·aₖ / N) · Σ (nₖ / N)·δₖ / aₖ,  N = Σ nₖ

For τ steps of SGD a is τ; with momentum ρ it is (τ - ρ·(1 - ρ^τ) / (1 - ρ)) / (1 - ρ).

With both, ‖δ‖ is what it would be after all steps that the samples take: otherwise a device that claims
fewer than it took would count more than ``clip_norm`` allows.

In an asynchronous job the change of a stale update is scaled down by `staleness` as well.
"""

from __future__ import annotations

from dataclasses import dataclass

from coordinator.state import Request
from coordinator.strategies.staleness import staleness_weight
from schemas.jobs import JobSpec


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


def weigh(request: Request, spec: JobSpec) -> Weight:
    """The weight of the update that answers ``request`` of such a job, by what was recorded of it."""
    server, local = spec.server, spec.local
    effort, length = 1.0, request.norm
    if server.normalised:
        effort = _effort(request.steps, local.momentum)
        length *= _effort(local.steps(request.samples), local.momentum) / effort
    clip = server.clip_norm
    scale = clip / length if clip is not None and length > clip else 1.0
    if spec.asynchronous is not None:
        scale *= staleness_weight(request.staleness, spec.asynchronous, spec.cohort)
    return Weight(request.samples, scale, effort)


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
