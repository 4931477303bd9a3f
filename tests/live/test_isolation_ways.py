"""The ways around topic rules that MQTT offers: last wills, retained messages, messages without an answer,
and another's session. On each broker as our commands set it up; beside each attempt, what must work does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from coordinator.broker_admin.site import PACKET_BYTES_MAX
from schemas import topics
from schemas.ids import COORDINATOR, DeviceId, broker_user
from schemas.limits import MESSAGE_BYTES_MAX
from tests.brokers import until
from tests.live import places
from tests.live.mqtt_client import Client
from tests.live.places import MOLE, SEEN_S, VICTIM, Place

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", params=["embedded", "mosquitto", "rabbitmq"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    base = tmp_path_factory.mktemp(request.param)
    with places.place(request.param, base, lambda: request.getfixturevalue("rabbitmq")) as made:
        yield made


def foreign(place: Place) -> list[str]:
    return [
        topic
        for federation in place.federations
        for topic in (topics.up(federation.id, VICTIM), topics.down(federation.id, VICTIM))
    ]


def watch(place: Place, stack: ExitStack) -> list[Client]:
    """The coordinators and victims that are there, ours first."""
    watchers = []
    for federation in place.here:
        coordinator = stack.enter_context(federation.coordinator())
        coordinator.subscribe(topics.all_up(federation.id))
        victim = stack.enter_context(federation.device(VICTIM))
        victim.subscribe(topics.down(federation.id, VICTIM))
        watchers += [coordinator, victim]
    return watchers


def check_nothing_came(place: Place, watchers: list[Client]) -> None:
    for federation, coordinator, victim in zip(place.here, watchers[::2], watchers[1::2], strict=True):
        coordinator.publish(topics.down(federation.id, VICTIM), b"end")
        victim.publish(topics.up(federation.id, VICTIM), b"end")
        for watcher in (coordinator, victim):
            watcher.wait_for(b"end")
            assert not any(payload.startswith(b"denied") for _, payload in watcher.received)


@pytest.mark.parametrize(("qos", "retain"), [(0, False), (0, True), (1, True)])
def test_a_message_without_an_answer_or_to_be_retained_reaches_nobody_else_now_or_later(
    place: Place, qos: int, retain: bool
) -> None:
    ours = place.ours
    own, user = topics.up(ours.id, MOLE), broker_user(ours.id, MOLE)
    with ExitStack() as stack:
        watchers = watch(place, stack)
        for topic in foreign(place):
            with ours.device(MOLE) as mole:
                allowed = f"allowed before {topic}".encode()
                mole.publish(own, allowed, qos=qos, retain=retain)
                watchers[0].wait_for(allowed)
                with place.told_of(user, "publish", topic):
                    mole.publish(topic, b"denied", qos=qos, retain=retain)
        check_nothing_came(place, watchers)
    with ExitStack() as stack:
        check_nothing_came(place, watch(place, stack))
    with ours.device(MOLE) as mole:
        mole.publish(own, b"", retain=True)  # what was kept on its own topic is no more


def test_a_last_will_reaches_nobody_else(place: Place) -> None:
    ours = place.ours
    own, user = topics.up(ours.id, MOLE), broker_user(ours.id, MOLE)
    with ExitStack() as stack:
        watchers = watch(place, stack)
        for topic in foreign(place):
            with (
                place.told_of(user, "leave a will", topic),
                ours.device(MOLE, will=(topic, b"denied will")) as mole,
            ):
                mole.break_off()
            allowed = f"allowed after {topic}".encode()
            with ours.device(MOLE, will=(own, allowed)) as mole:
                if not place.keeps_wills:
                    mole.publish(own, allowed)
                mole.break_off()
            watchers[0].wait_for(allowed)
        check_nothing_came(place, watchers)


@pytest.mark.parametrize("place", ["mosquitto"], indirect=True)  # RabbitMQ: test_broker_rabbitmq
def test_a_message_larger_than_any_of_ours_ends_its_senders_connection(place: Place) -> None:
    ours = place.ours
    user, up = broker_user(ours.id, MOLE), topics.up(ours.id, MOLE)
    with ours.coordinator() as coordinator, ours.device(MOLE) as mole:
        coordinator.subscribe(topics.all_up(ours.id))
        mole.publish(up, bytes(MESSAGE_BYTES_MAX))
        with place.told_of(user, "send too much", up):
            mole.publish(up, bytes(PACKET_BYTES_MAX))
        assert mole.lost.is_set()
        with ours.device(MOLE) as again:
            again.publish(up, b"end")
        coordinator.wait_for(b"end")
        assert [len(payload) for _, payload in coordinator.received] == [MESSAGE_BYTES_MAX, len(b"end")]


@pytest.mark.parametrize("whose", [VICTIM, COORDINATOR])
def test_what_waits_for_another_is_still_there_after_a_device_named_its_session_to_have_it_cleared(
    place: Place, whose: DeviceId
) -> None:
    ours = place.ours
    up, down = topics.up(ours.id, VICTIM), topics.down(ours.id, VICTIM)
    mole, session = broker_user(ours.id, MOLE), broker_user(ours.id, whose)

    def party(name: DeviceId, *, clean: bool) -> Client:
        return ours.coordinator(clean=clean) if name == COORDINATOR else ours.device(name, clean=clean)

    def ready() -> bool:
        """RabbitMQ refuses a session while it still clears away another of that name."""
        with party(whose, clean=False) as reader:
            if not reader.refused:
                reader.subscribe(down if whose == VICTIM else topics.all_up(ours.id))
        return not reader.refused

    until(ready, "there is a session", SEEN_S)
    with party(COORDINATOR if whose == VICTIM else VICTIM, clean=True) as speaker:
        speaker.publish(down if whose == VICTIM else up, b"waits")
    with place.told_of(mole, "take over", session), ours.device(MOLE, client_id=session) as thief:
        assert thief.received == []
    with party(whose, clean=False) as reader:
        reader.wait_for(b"waits")
    with party(whose, clean=True):
        pass  # nothing of the session stays
