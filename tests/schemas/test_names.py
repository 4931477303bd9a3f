"""Names and topics: nothing that a broker or a file system could read as something else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import topics
from schemas.errors import Malformed
from schemas.ids import NAME, checked_name, device_id
from tests.schemas.parties import DEVICE_ID, FEDERATION, OTHER_FEDERATION

BAD_NAMES = ["", "a" * 65, "a.b", "a/b", "+", "#", "a b", "press-07\n", "\n", "..", "é", "a\0", "$SYS", "ª"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_bad_name_is_refused_everywhere(name: str) -> None:
    with pytest.raises(ValueError, match="1 to 64"):
        checked_name(name, "job")
    with pytest.raises(ValueError, match="1 to 64"):
        device_id(name)
    with pytest.raises(Malformed):
        topics.up_device(f"fedbus/{FEDERATION.hex()}/up/{name}", FEDERATION)


def test_no_device_may_take_the_coordinators_name() -> None:
    with pytest.raises(ValueError, match="coordinator's own"):
        device_id("coordinator")


@given(name=st.from_regex(NAME, fullmatch=True).filter(lambda name: name != "coordinator"))
def test_a_topic_names_its_device(name: str) -> None:
    device = device_id(name)
    assert topics.up_device(topics.up(FEDERATION, device), FEDERATION) == device


@given(topic=st.text(max_size=90))
def test_any_other_topic_is_refused(topic: str) -> None:
    with pytest.raises(Malformed):
        topics.up_device(topic, FEDERATION)


def test_a_topic_of_another_federation_or_direction_is_refused() -> None:
    for topic in (topics.up(OTHER_FEDERATION, DEVICE_ID), topics.down(FEDERATION, DEVICE_ID)):
        with pytest.raises(Malformed):
            topics.up_device(topic, FEDERATION)


def test_subscriptions_cover_the_topics_of_devices_and_nothing_else() -> None:
    assert topics.all_up(FEDERATION) == f"fedbus/{FEDERATION.hex()}/up/+"
    assert topics.all_down(FEDERATION) == f"fedbus/{FEDERATION.hex()}/down/+"
