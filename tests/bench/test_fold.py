"""The fold bench runs: with few updates, so that its times mean nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench import bounds, fold, plot


@pytest.mark.parametrize("up", ["float32", "q8"])
def test_folding_on_two_cores_is_measured_beside_the_bare_work(up: str, tmp_path: Path) -> None:
    row = fold.measure(600_000, 2, 1, 2, up)
    assert 0 < row["peak_over_idle_bytes"] < 32 * 600_000 + (16 << 20)
    assert row["ratio"] > 0
    assert 0 <= row["lag_p99_s"] <= row["fold"][0]["lag_max_s"]
    told = [bound.what.partition(": ")[2] for bound in bounds.of("fold", {"rows": [row]})]
    assert told == ["event loop late, p99, s", "peak over idle, bytes per parameter"]
    plot.fold({"rows": [row]}, tmp_path / "fold.png")
