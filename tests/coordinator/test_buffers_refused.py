"""Fields of a job that don't go with asynchronous buffers."""

from __future__ import annotations

from typing import Any

import pytest

from schemas.errors import JobRefused
from schemas.jobs import parse_job
from tests.standin import spec


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"over_selection": 1.3}, "over_selection 1.3 means nothing"),
        ({"asynchronous": {"concurrency": 20_000}}, "concurrency 20000 is more than 10000"),
        (
            {
                "asynchronous": {"concurrency": 2, "per_device_max": 2},
                "server": {"aggregation": "median"},
                "cohort": 3,
                "min_reports": 3,
            },
            "one device could outvote others",
        ),
    ],
)
def test_what_does_not_go_with_buffers_is_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(JobRefused, match=text):
        parse_job(spec(**{"asynchronous": {"concurrency": 2}} | fields))
