"""What each update counts in its round's mean.

Norm bounding (Sun et al. 2019, "Can you really backdoor federated learning?"): a change that is longer than
``clip_norm`` is scaled down to it, s = min(1, clip / ‖δ‖).

FedNova (Wang et al. 2020, "Tackling the objective inconsistency problem in heterogeneous federated
optimization", section 4): devices that take more local steps don't pull the model to their own optimum. Each
change is divided by its effort a, and the mean multiplied by the mean effort:

    Δ = (Σ nₖ·aₖ / N) · Σ (nₖ / N)·δₖ / aₖ,  N = Σ nₖ

For τ steps of SGD a is τ; with momentum ρ it is (τ - ρ·(1 - ρ^τ) / (1 - ρ)) / (1 - ρ). FedProx's term pulls
the model back by α = η·μ of its way in each step, so a is (1 - (1 - α)^τ) / α; with both it is what they make
of τ equal gradients.

With both, ‖δ‖ is what it would be after all steps that the samples take: otherwise a device that claims
fewer than it took would count more than ``clip_norm`` allows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from coordinator.state import Request
from schemas.jobs import LocalSettings, ServerSettings


@dataclass(frozen=True, slots=True)
class Weight:
    """``samples`` is n, ``scale`` is s, ``effort`` is a, of the module. ``way`` is how far all steps that the
    samples take lead where gradients are 1: K·η, for SCAFFOLD."""

    samples: int
    scale: float = 1.0
    effort: float = 1.0
    way: float = field(default=1.0, compare=False)

    @property
    def of_change(self) -> float:
        """What the change is multiplied by."""
        return self.samples * self.scale / self.effort

    @property
    def of_control(self) -> float:
        """What the change is multiplied by in the mean of δ / (K·η)."""
        return self.samples * self.scale / self.way


def weigh(request: Request, server: ServerSettings, local: LocalSettings) -> Weight:
    """The weight of the update that answers ``request``, by what was recorded of it."""
    effort, length = 1.0, request.norm
    if server.normalised:
        effort = _effort(request.steps, local, request.round)
        length *= _effort(local.steps(request.samples), local, request.round) / effort
    clip = server.clip_norm
    scale = clip / length if clip is not None and length > clip else 1.0
    way = local.steps(request.samples) * local.rate(request.round)
    return Weight(request.samples, scale, effort, way)


def _effort(steps: int, local: LocalSettings, round_: int) -> float:
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
