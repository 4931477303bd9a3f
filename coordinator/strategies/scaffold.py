"""SCAFFOLD at the server: Karimireddy et al. 2020, "SCAFFOLD: stochastic controlled averaging for federated
learning", algorithm 1, option II (`edge_agent.own` has the device's side).

A device that took K steps at the rate η, which changed the model by δ, changes its control variate by

    cᵢ⁺ - cᵢ = -c - δ / (K·η)

so its update says all of it, and nothing more travels up. With S the devices of a round and N all there are,

    c ← c + |S| / N · mean(cᵢ⁺ - cᵢ),

the mean weighted as that of the changes: where all take part in a round, c is the mean of all cᵢ.
"""

from __future__ import annotations

from coordinator.strategies.optimiser import Floats


def follow(control: Floats, mean: Floats, share: float) -> None:
    """Bring c, a block of coordinates, up to date in place. ``mean`` is that of δ / (K·η), and is used up;
    ``share`` is |S| / N."""
    control *= 1.0 - share
    mean *= share
    control -= mean
