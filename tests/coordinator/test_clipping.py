"""Clipping around the last round's Δ, at a radius that follows the devices: formulas, restarts, replay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from broker.ports import Ports
from coordinator.facts import RoundClosed, UpdateJudged
from coordinator.recording import Recording
from coordinator.replay import replay
from coordinator.state import Request
from coordinator.strategies import radius_after
from coordinator.whatif import Settings, blame, what_if
from schemas.errors import JobRefused
from schemas.jobs import JobSpec, ServerSettings, parse_job
from tests.coordinator.test_aggregation import (
    CHUNKED,
    HOME,
    INLINE,
    NAMES,
    ROUNDS,
    delta,
    killed,
    models,
    nothing,
    recorded,
)
from tests.standin import spec

CENTRED = {"clip_norm": 1.0, "clip_quantile": 0.5, "clip_centre": True}
FOLLOWING = {"clip_norm": 1.0, "clip_quantile": 0.5}
Floats = NDArray[np.float64]


def reference(count: int, *, centred: bool) -> tuple[list[Floats], list[float]]:
    """Δ of each round, and the radius after it; all devices have the same samples."""
    centre, radius, found, radii = np.zeros(count), 1.0, [], []
    for round_ in range(1, ROUNDS + 1):
        changes = [delta(name, round_, count).astype(np.float64) - centre for name in NAMES]
        lengths = [float(np.linalg.norm(change)) for change in changes]
        clipped = [
            change * min(1.0, radius / length) for change, length in zip(changes, lengths, strict=True)
        ]
        mean = centre + np.mean(clipped, axis=0)
        radius = sorted(lengths)[len(lengths) // 2 - 1]
        centre = mean.astype(np.float32).astype(np.float64) if centred else centre
        found.append(mean)
        radii.append(radius)
    return found, radii


def facts(ports: Ports, kind: type[Any]) -> list[Any]:
    from coordinator.entries import Turned, decode_entry

    entries = [decode_entry(logged.data) for logged in Recording(ports, HOME).journal.entries()]
    return [
        fact
        for entry in entries
        if isinstance(entry, Turned)
        for fact in entry.facts
        if isinstance(fact, kind)
    ]


@pytest.mark.parametrize("count", [INLINE, CHUNKED])
@pytest.mark.parametrize("server", [CENTRED, FOLLOWING])
def test_versions_move_by_the_clipped_mean_at_the_radius_of_the_round_before(
    server: dict[str, Any], count: int
) -> None:
    ports = recorded(server, count)
    means, radii = reference(count, centred="clip_centre" in server)
    found = models(ports, count)
    for round_, mean in enumerate(means, 1):
        assert found[round_] - found[round_ - 1] == pytest.approx(mean, rel=1e-3, abs=1e-6)
    assert [fact.radius for fact in facts(ports, RoundClosed)] == pytest.approx(radii, rel=1e-5)
    measured = {fact.distance > 0 for fact in facts(ports, UpdateJudged)}
    assert measured == {"clip_centre" in server}


@pytest.mark.parametrize("server", [CENTRED | {"optimiser": "fedadam"}, FOLLOWING])
def test_a_recording_replays_to_the_bit_and_a_kill_changes_none(server: dict[str, Any]) -> None:
    ports = recorded(server, CHUNKED)
    result = replay(ports, HOME)
    assert result["equal"], result["difference"]
    torn = models(recorded(server, CHUNKED, killed), CHUNKED)
    assert [model.tobytes() for model in torn] == [model.tobytes() for model in models(ports, CHUNKED)]


@pytest.mark.parametrize("server", [CENTRED, FOLLOWING])
def test_what_if_it_had_been_clipped_so_is_what_clipping_makes_of_the_first_round(
    server: dict[str, Any],
) -> None:
    ports = recorded({}, INLINE, nothing)
    told = list(what_if(Recording(ports, HOME), "job", Settings(server=ServerSettings(**server))))
    assert told[1].other == models(recorded(server), INLINE)[1].tobytes()
    base = models(ports, INLINE)[1]
    means, _ = reference(INLINE, centred="clip_centre" in server)
    assert np.frombuffer(told[2].other, "<f4", INLINE) - base == pytest.approx(means[1], rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("server", [CENTRED, FOLLOWING])
def test_under_the_recorded_clipping_no_version_differs(server: dict[str, Any]) -> None:
    told = what_if(Recording(recorded(server), HOME), "job", Settings())
    assert [parted.row["distance"] for parted in told] == [0.0] * (ROUNDS + 1)


def test_blame_makes_the_version_without_a_device_as_the_centre_would() -> None:
    ports = recorded(CENTRED)
    _, blamed = blame(Recording(ports, HOME), "job", 2)
    means, radii = reference(INLINE, centred=True)
    base = models(ports, INLINE)[1]
    for one in blamed:
        others = [name for name in NAMES if name != one.row["device"]]
        parted = [delta(name, 2, INLINE).astype(np.float64) - means[0] for name in others]
        clipped = [change * min(1.0, radii[0] / float(np.linalg.norm(change))) for change in parted]
        wanted = base + means[0] + np.mean(clipped, axis=0)
        assert np.frombuffer(one.without, "<f4", INLINE) == pytest.approx(wanted, rel=1e-3, abs=1e-6)


def test_the_radius_is_the_quantile_and_never_nothing() -> None:
    requests = [Request("d", 1, 1, b"", norm=norm) for norm in (4.0, 1.0, 3.0, 2.0, 0.0)]

    def after(quantile: float | None, counted: list[Request], radius: float = 7.0) -> float:
        server = ServerSettings(clip_norm=1.0, clip_quantile=quantile)
        return radius_after(counted, JobSpec(name="j", task="t", server=server), radius)

    assert [after(quantile, requests) for quantile in (0.3, 0.5, 0.8, 1.0)] == [1.0, 2.0, 3.0, 4.0]
    assert after(0.1, requests) == 7.0, "at 0 nobody could move the model again"
    assert after(0.5, []) == 7.0
    assert after(None, requests, 0.0) == 0.0


@pytest.mark.parametrize(
    ("server", "text"),
    [
        ({"clip_quantile": 0.5}, "clip_quantile needs server.clip_norm"),
        ({"clip_centre": True}, "clip_centre needs server.clip_norm"),
        (CENTRED | {"normalised": True}, "not for normalised"),
        (CENTRED | {"aggregation": "median"}, "not for aggregation median"),
    ],
)
def test_clipping_that_cannot_be_is_refused_with_the_remedy(server: dict[str, Any], text: str) -> None:
    with pytest.raises(JobRefused, match=text):
        parse_job(spec(cohort=9, min_reports=3, server=server))
