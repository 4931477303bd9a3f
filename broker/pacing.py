"""When a device comes back to its broker: a fleet that was cut off at one moment must not return at one.

Bonawitz et al. 2019 ("Towards federated learning at scale", section 2.3) have the server tell each device
when to come back, because devices there come and go. Here an idle device stays connected, and what brings all
of them at once is a broker that starts anew: so each draws its own moment when it lost its connection, within
a window that nobody need tell it. It costs little: at most a hundredth part of the time for which the
connection stood.
"""

from __future__ import annotations

from typing import Final

RETURN_PART: Final = 0.01
RETURN_MAX_S: Final = 10.0
"""Ten thousand devices then come at one or two thousand per second."""


def return_window_s(stood_s: float, return_max_s: float) -> float:
    """Within how long to return, after a connection that stood so long."""
    return min(max(stood_s, 0.0) * RETURN_PART, return_max_s)
