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

For τ steps of SGD a is τ; with momentum ρ it is (τ - ρ·(1 - ρ^τ) / (1 - ρ)) / (1 - ρ). FedProx's term pulls
the model back by α = η·μ of its way in each step, so a is (1 - (1 - α)^τ) / α; with both it is what they make
of τ equal gradients.

With both, ‖δ‖ is what it would be after all steps that the samples take: otherwise a device that claims
fewer than it took would count more than ``clip_norm`` allows.

In an asynchronous job the change of a stale update is scaled down by `staleness` as well.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from coordinator.state import Request
from coordinator.strategies.staleness import staleness_weight
from schemas.jobs import JobSpec, LocalPlan


@dataclass(frozen=True, slots=True)
class Weight:
    """``samples`` is n, ``scale`` s, ``effort`` a, of the module; ``fresh`` is what staleness leaves. ``way``
    is how far all steps that the samples take lead where gradients are 1: K·η, for SCAFFOLD."""

    samples: int
    scale: float = 1.0
    effort: float = 1.0
    fresh: float = 1.0
    way: float = field(default=1.0, compare=False)

    @property
    def of_change(self) -> float:
        """What the change is multiplied by."""
        return self.samples * self.scale * self.fresh / self.effort

    @property
    def of_centre(self) -> float:
        """What of these samples counts for the centre instead."""
        return (self.samples - self.samples * self.scale) * self.fresh

    @property
    def of_control(self) -> float:
        """What the change is multiplied by in the mean of δ / (K·η)."""
        return self.samples * self.scale / self.way


def weigh(request: Request, spec: JobSpec, radius: float = 0.0) -> Weight:
    """The weight of the update that answers ``request`` of such a job, by what was recorded of it, in a round
    that clips at ``radius``; 0: at the job's ``clip_norm``."""
    server = spec.server
    effort = _effort(request.steps, spec.local, request.round) if server.normalised else 1.0
    length, clip = _length(request, spec), radius or server.clip_norm
    scale = clip / length if clip is not None and length > clip else 1.0
    fresh = 1.0
    if spec.asynchronous is not None:
        fresh = staleness_weight(request.staleness, spec.asynchronous, spec.cohort)
    way = spec.local.steps(request.samples) * spec.local.rate(request.round)
    return Weight(request.samples, scale, effort, fresh, way)


def radius_after(counted: list[Request], spec: JobSpec, radius: float) -> float:
    """What clips in the round after one that clipped at ``radius`` and counted these updates; 0: the job's
    ``clip_norm``."""
    quantile = spec.server.clip_quantile
    if quantile is None or not counted:
        return radius
    lengths = sorted(_length(request, spec) for request in counted)
    return lengths[math.ceil(quantile * len(lengths)) - 1] or radius


def _length(request: Request, spec: JobSpec) -> float:
    local = spec.local
    if spec.server.clip_centre:
        return request.distance
    if not spec.server.normalised:
        return request.norm
    all_steps = _effort(local.steps(request.samples), local, request.round)
    return request.norm * (all_steps / _effort(request.steps, local, request.round))


def _effort(steps: int, local: LocalPlan, round_: int) -> float:
    pull = local.rate(round_) * local.mu
    return _held_back(steps, local.momentum, pull) if pull else _free(steps, local.momentum)


def _free(steps: int, momentum: float) -> float:
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


def _held_back(steps: int, momentum: float, pull: float) -> float:
    """How far equal gradients of 1 lead in so many steps v ← ρ·v + 1 - α·d, d ← d + v; α is ``pull``.

    A step is an affine map of (v, d); the map of twice as many steps is that map after itself.
    """
    one = _Affine(momentum, -pull, momentum, 1.0 - pull, 1.0, 1.0)
    found = _Affine(1.0, 0.0, 0.0, 1.0, 0.0, 0.0)
    for bit in f"{steps:b}":
        found = found.after(found)
        if bit == "1":
            found = one.after(found)
    return found.d


@dataclass(frozen=True, slots=True)
class _Affine:
    """(v, d) ← (vv·v + vd·d + v₀, dv·v + dd·d + d₀); ``v`` and ``d`` are the last of each."""

    vv: float
    vd: float
    dv: float
    dd: float
    v: float
    d: float

    def after(self, first: _Affine) -> _Affine:
        return _Affine(
            self.vv * first.vv + self.vd * first.dv,
            self.vv * first.vd + self.vd * first.dd,
            self.dv * first.vv + self.dd * first.dv,
            self.dv * first.vd + self.dd * first.dd,
            self.vv * first.v + self.vd * first.d + self.v,
            self.dv * first.v + self.dd * first.d + self.d,
        )
