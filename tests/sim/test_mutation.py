"""The planted bugs of `make mutants` can still be planted; a patch that rots would say nothing any more."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sim.mutation import PATCHES, fits


@pytest.mark.parametrize("patch", PATCHES, ids=[patch.stem for patch in PATCHES])
def test_a_planted_bug_still_fits_the_sources(patch: Path) -> None:
    assert not fits(patch)


def test_there_are_planted_bugs() -> None:
    assert {patch.stem for patch in PATCHES} >= {
        "ack-before-sync",
        "lost-bitmap",
        "missing-dedupe",
        "snapshot-before-fold",
        "stale-grant",
    }
