"""A device that tries every other topic, through each broker as our commands set it up: nothing gets through,
and the operator sees it. Beside each attempt, what must work does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from schemas import topics
from schemas.ids import DeviceId, broker_user
from tests.live import places
from tests.live.places import MOLE, SEEN_S, VICTIM, Place

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", params=["embedded", "mosquitto", "rabbitmq"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    base = tmp_path_factory.mktemp(request.param)
    with places.place(request.param, base, lambda: request.getfixturevalue("rabbitmq")) as made:
        yield made


def forbidden_topics(place: Place) -> list[str]:
    ours, theirs = place.ours.id, place.theirs.id
    return [
        topics.up(ours, VICTIM),
        topics.up(ours, DeviceId("coordinator")),
        topics.up(ours, MOLE) + "/deeper",
        topics.down(ours, MOLE),
        topics.down(ours, VICTIM),
        topics.probe(ours),
        topics.up(theirs, MOLE),
        topics.up(theirs, VICTIM),
        topics.down(theirs, MOLE),
        topics.down(theirs, VICTIM),
        topics.probe(theirs),
        "fedbus",
        "plant/line-1",
        "$SYS/broker/version",
    ]


def test_what_a_device_publishes_elsewhere_reaches_nobody(place: Place) -> None:
    ours = place.ours
    user = broker_user(ours.id, MOLE)
    with ExitStack() as stack:
        watchers = []
        for federation in place.here:
            coordinator = stack.enter_context(federation.coordinator())
            victim = stack.enter_context(federation.device(VICTIM))
            coordinator.subscribe(topics.all_up(federation.id))
            coordinator.subscribe(topics.probe(federation.id))
            victim.subscribe(topics.down(federation.id, VICTIM))
            watchers.append((federation, coordinator, victim))
        for topic in forbidden_topics(place):
            with ours.device(MOLE) as mole:
                mole.subscribe(topics.down(ours.id, MOLE))
                mole.publish(topics.up(ours.id, MOLE), f"allowed before {topic}".encode())
                watchers[0][1].wait_for(f"allowed before {topic}".encode())
                with place.told_of(user, "publish", topic):
                    mole.publish(topic, b"denied")
                assert mole.received == []
        for federation, coordinator, victim in watchers:
            coordinator.publish(topics.down(federation.id, VICTIM), b"end")
            victim.publish(topics.up(federation.id, VICTIM), b"end")
            for watcher in (coordinator, victim):
                watcher.wait_for(b"end")
                assert b"denied" not in [payload for _, payload in watcher.received]


def forbidden_filters(place: Place) -> list[str]:
    ours, theirs = place.ours.id, place.theirs.id
    return [
        topics.up(ours, MOLE),
        topics.up(ours, VICTIM),
        topics.all_up(ours),
        topics.down(ours, VICTIM),
        topics.all_down(ours),
        topics.probe(ours),
        topics.all_up(theirs),
        topics.down(theirs, MOLE),
        topics.all_down(theirs),
        topics.probe(theirs),
        f"fedbus/{ours.hex()}/#",
        "fedbus/#",
        "+/+/+/+",
        "#",
        "plant/line-1",
        "$SYS/#",
        f"$share/moles/{topics.all_up(ours)}",
    ]


def test_what_a_device_subscribes_to_elsewhere_brings_it_nothing(place: Place) -> None:
    ours, own = place.ours, topics.down(place.ours.id, MOLE)
    user = broker_user(ours.id, MOLE)
    with ExitStack() as stack:
        speakers = []
        for federation in place.here:
            coordinator = stack.enter_context(federation.coordinator())
            coordinator.subscribe(topics.all_up(federation.id))
            victim = stack.enter_context(federation.device(VICTIM))
            speakers.append((federation, coordinator, victim))
        for number, wanted in enumerate(forbidden_filters(place)):
            with ours.device(MOLE) as mole:
                mole.subscribe(own)
                speakers[0][1].publish(own, b"before")
                mole.wait_for(b"before")
                with place.told_of(user, "subscribe", wanted):
                    mole.subscribe(wanted)
                for federation, coordinator, victim in speakers:
                    said = f"said {number}".encode()
                    victim.publish(topics.up(federation.id, VICTIM), said)
                    coordinator.wait_for(said)
                    coordinator.publish(topics.down(federation.id, VICTIM), said)
                    coordinator.publish(topics.probe(federation.id), said)
                speakers[0][1].publish(own, b"after")
                mole.wait_for(b"after", or_lost=True)
                assert {topic for topic, _ in mole.received} == {own}


def test_a_device_gets_nothing_by_anothers_session(place: Place) -> None:
    ours = place.ours
    down, session = topics.down(ours.id, VICTIM), broker_user(ours.id, VICTIM)
    with ours.coordinator() as coordinator, ours.device(VICTIM, clean=False) as victim:
        victim.subscribe(down)
        with ours.device(MOLE, client_id=session, clean=False) as mole:
            if not mole.refused:
                mole.subscribe(down)
            coordinator.publish(down, b"for the victim")
            if place.keeps_sessions:
                victim.wait_for(b"for the victim")
            else:
                assert mole.refused
                assert victim.lost.wait(SEEN_S), "if this no longer holds, docs may promise more"
                with ours.device(VICTIM, clean=False) as again:
                    again.wait_for(b"for the victim")
            assert mole.received == []
        with ours.device(VICTIM, clean=True):
            pass  # nothing of the session stays
