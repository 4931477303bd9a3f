"""A device that trained on flipped labels, in a recorded run of the real task. The bench has ten of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.bench.blame import one


@pytest.mark.slow
def test_a_device_with_flipped_labels_is_ranked_first_and_its_round_is_better_without_it(
    tmp_path: Path,
) -> None:
    found = one(tmp_path, 100, rounds=4, round_=4)
    assert found["ranked"][0] == found["ranked_by_loss"][0] == found["flipped"]
    assert found["without"][4] > found["recorded"][4]
