"""The pytest plugin ``fedbus``: recordings, a manual clock and buses with seeded faults as fixtures.

pytest loads it wherever fedbus is installed, so it imports nothing before a test asks for a fixture.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from coordinator.testing import Buses, ManualClock, Replayed

MARK = "fedbus"


def pytest_configure(config: pytest.Config) -> None:
    """Make the mark known."""
    config.addinivalue_line(
        "markers",
        f"{MARK}(recording=PATH, seed=N): the state directory, or a ZIP file of one, that `fedbus_recording` "
        f"copies (from pytest's root), and the seed of the faults of `fedbus_bus`",
    )


@pytest.fixture
def fedbus_recording(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of the recorded federation that the mark names, or of a small one of fedbus' own."""
    from coordinator.testing import RECORDING, unpack

    mark = request.node.get_closest_marker(MARK)
    named = mark.kwargs.get("recording") if mark else None
    return unpack(request.config.rootpath / named if named else RECORDING, tmp_path / "fedbus-recording")


@pytest.fixture
def fedbus_replayed(fedbus_recording: Path) -> Replayed:
    """The coordinator of `fedbus_recording`, its models computed again; the test fails if one differs."""
    from coordinator.testing import replayed

    return replayed(fedbus_recording)


@pytest.fixture
def fedbus_clock() -> ManualClock:
    """A clock that stands still until the test lets it go on."""
    from coordinator.testing import ManualClock

    return ManualClock()


@pytest.fixture
def fedbus_bus(request: pytest.FixtureRequest) -> Buses:
    """Makes buses of one broker in memory: ``fedbus_bus(name, subscriptions, FaultPlan(…))``."""
    from coordinator.testing import Buses

    mark = request.node.get_closest_marker(MARK)
    return Buses(mark.kwargs.get("seed", 0) if mark else 0)
