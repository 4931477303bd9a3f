"""A device that tries every other topic, through each broker as our commands set it up: nothing gets through,
and the operator sees it. Beside each attempt, what must work does."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from schemas import topics
from schemas.enrolment import Token
from schemas.ids import DeviceId, broker_user
from tests.brokers import RabbitMQ, answers, free_ports, until
from tests.live.installation import Installation, SystemMosquitto
from tests.live.mqtt_client import Client

pytestmark = [pytest.mark.live, pytest.mark.slow, pytest.mark.timeout(300)]

MOLE, VICTIM = DeviceId("mole"), DeviceId("victim")
SEEN_S = 20.0
Seen = Callable[[str, str, str], bool]


class Federation:
    """One of those at a broker, with the users that its coordinator and two devices are there."""

    def __init__(self, site: Installation, port: int) -> None:
        self.site = site
        self.port = port
        self.id = site.identity.federation
        self.tokens: dict[str, Token] = {}

    def invite(self) -> None:
        with self.site:
            self.tokens = {name: self.site.invite(name)[1] for name in (MOLE, VICTIM)}

    def device(self, name: DeviceId, *, client_id: str = "", clean: bool = True) -> Client:
        user, password = broker_user(self.id, name), self.tokens[name].password
        return Client(self.port, user, password, client_id=client_id, clean=clean)

    def coordinator(self) -> Client:
        return Client(self.port, *self.site.login)


@dataclass
class Place:
    """A broker, and whether it stood in its log that a user (or its client) tried a topic."""

    federations: list[Federation]
    shared: bool
    """Whether both are at this broker."""
    keeps_sessions: bool
    """Whether nobody can push another's connection out."""
    seen: Seen

    @property
    def ours(self) -> Federation:
        return self.federations[0]

    @property
    def theirs(self) -> Federation:
        return self.federations[1]

    @property
    def here(self) -> list[Federation]:
        """Those that are at this broker."""
        return self.federations if self.shared else [self.ours]

    def wait_seen(self, user: str, verb: str, topic: str) -> None:
        """Until the operator can read of it."""
        until(partial(self.seen, user, verb, topic), f"{user} was seen to {verb}: {topic}", SEEN_S)


@pytest.fixture(scope="module", params=["embedded", "mosquitto", "rabbitmq"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    base = tmp_path_factory.mktemp(request.param)
    with ExitStack() as stack:
        match request.param:
            case "embedded":
                yield embedded(base, stack)
            case "mosquitto":
                yield mosquitto(base, stack)
            case _:
                yield rabbit(base, request.getfixturevalue("rabbitmq"))


def embedded(base: Path, stack: ExitStack) -> Place:
    """The other federation has a broker of its own: its topics are tried at ours."""
    ports = free_ports(2)
    both = [
        Federation(Installation(base / f"fed-{index}", f"embedded:{port}"), port)
        for index, port in enumerate(ports)
    ]
    for federation in both:
        federation.invite()
    log = base / "embedded.log"
    users = both[0].site.directory / "broker" / "users.json"
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "broker.embedded", "--port", str(ports[0]), "--users", str(users)],
        stdin=subprocess.DEVNULL,
        stderr=stack.enter_context(log.open("wb")),
    )
    stack.callback(process.wait, SEEN_S)
    stack.callback(process.terminate)
    until(lambda: answers(ports[0]), "the embedded broker answers", SEEN_S)

    def seen(user: str, verb: str, topic: str) -> bool:
        line = f"user {user} was denied to {verb}: '{topic}'"
        if verb == "publish" and topic.startswith("$"):
            line = f"{user} cannot use a topic with a leading $"
        return line in log.read_text()

    return Place(both, shared=False, keeps_sessions=True, seen=seen)


def mosquitto(base: Path, stack: ExitStack) -> Place:
    """Two listeners, as two federations need them."""
    ports = free_ports(2)
    broker = SystemMosquitto(base / "system", ports[0], "per_listener_settings true")
    both = []
    for index, port in enumerate(ports):
        site = Installation(base / f"fed-{index}", f"mqtt://127.0.0.1:{port}")
        site.command("broker", "mosquitto", "--pid-file", str(broker.pid_file))
        broker.include(site.directory / "broker" / "mosquitto.conf")
        both.append(Federation(site, port))
    stack.enter_context(broker)
    for federation in both:
        federation.invite()

    def seen(user: str, verb: str, topic: str) -> bool:
        lines = broker.log.read_text().splitlines()
        if verb == "subscribe":
            return any(line.endswith(f": {user} 1 {topic}") for line in lines)
        return any(f"Denied PUBLISH from {user} " in line and f"'{topic}'" in line for line in lines)

    return Place(both, shared=True, keeps_sessions=True, seen=seen)


def rabbit(base: Path, node: RabbitMQ) -> Place:
    """One virtual host for both."""
    password = base / "admin.password"
    password.write_text("guest\n")
    both = []
    for index in range(2):
        site = Installation(base / f"fed-{index}", f"mqtt://127.0.0.1:{node.mqtt}")
        url = f"http://guest@127.0.0.1:{node.management}"
        options = "--management", url, "--management-password-file", str(password), "--store-credentials"
        site.command("broker", "rabbitmq", *options)
        both.append(Federation(site, node.mqtt))
        both[-1].invite()

    def seen(user: str, verb: str, topic: str) -> bool:
        key = topic.replace("/", ".").replace("+", "*")
        line = f"access to topic '{key}' in exchange 'amq.topic' in vhost '/' refused for user '{user}'"
        return line in node.log.read_text()

    return Place(both, shared=True, keeps_sessions=False, seen=seen)


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
                mole.publish(topic, b"denied")
                place.wait_seen(user, "publish", topic)
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
                mole.subscribe(wanted)
                place.wait_seen(user, "subscribe", wanted)
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
