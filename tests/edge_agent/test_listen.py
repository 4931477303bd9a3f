"""What an agent says of messages that it does not take."""

from __future__ import annotations

import logging

import pytest

from edge_agent.listen import COMPLAIN_EVERY_S, Complaints
from schemas.errors import Forged, Malformed, Replayed, WireError


class Clock:
    """Stands where it is put."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_s(self) -> float:
        return self.now_s


def test_a_flood_is_one_line_of_each_kind_now_and_then(caplog: pytest.LogCaptureFixture) -> None:
    clock = Clock()
    complaints = Complaints(clock)
    flood: list[WireError] = [Forged("a"), Malformed("b"), Replayed("c")]
    for begin_s in (0.0, COMPLAIN_EVERY_S):
        for part in range(10):
            clock.now_s = begin_s + part
            for error in flood:
                complaints.add(error)
    warned = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert [line.partition(":")[0] for line in warned] == [
        f"a message was dropped ({kind})" for kind in ("forged", "malformed") * 2
    ]
    assert "check the broker's access rules" in warned[0]
