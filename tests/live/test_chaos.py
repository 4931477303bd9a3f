"""A short form of ``make chaos`` against each broker: nothing is lost, nothing counts twice, all jobs end."""

from __future__ import annotations

import pytest

from tests.brokers import require
from tests.chaos.plan import KILLS, Kind
from tests.chaos.run import PACKAGES, Wish, run

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(600)]

KILLS_EACH = 2
BROKER_KILLS = {"mosquitto": KILLS_EACH, "rabbitmq": 1}  # which takes long to start


@pytest.mark.parametrize("broker", PACKAGES)
def test_what_was_receipted_survives_kills_of_everybody_in_the_midst_of_a_round(broker: str) -> None:
    require(PACKAGES[broker])
    counts = dict.fromkeys(KILLS, KILLS_EACH) | {Kind.BROKER: BROKER_KILLS[broker]}
    summary, wrong = run(Wish(broker, 7, counts, devices=3), print)
    assert wrong == [], f"{wrong}; see {summary.get('directory')}"
    assert summary["faults"] == counts, "each hit an open round"
    assert summary["folded"] + summary["rejected"] == summary["receipted"] > 0
