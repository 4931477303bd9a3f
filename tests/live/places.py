"""Brokers as our commands set them up, each with two federations, of which the first has a mole."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from schemas.enrolment import Token
from schemas.ids import DeviceId, broker_user
from tests.brokers import RabbitMQ, answers, free_ports, until
from tests.live.installation import Installation, SystemMosquitto
from tests.live.mqtt_client import Client

MOLE, VICTIM = DeviceId("mole"), DeviceId("victim")
SEEN_S = 20.0
Told = Callable[[str, str, str, str], bool]
"""Whether it stands in a piece of the broker's log that a user tried something (a verb and a name)."""


@contextmanager
def place(kind: str, base: Path, rabbitmq: Callable[[], RabbitMQ]) -> Iterator[Place]:
    with ExitStack() as stack:
        match kind:
            case "embedded":
                yield embedded(base, stack)
            case "mosquitto":
                yield mosquitto(base, stack)
            case _:
                yield rabbit(base, rabbitmq())


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

    def device(
        self,
        name: DeviceId,
        *,
        client_id: str = "",
        clean: bool = True,
        will: tuple[str, bytes] | None = None,
    ) -> Client:
        user, password = broker_user(self.id, name), self.tokens[name].password
        return Client(self.port, user, password, client_id=client_id, clean=clean, will=will)

    def coordinator(self, *, clean: bool = True) -> Client:
        return Client(self.port, *self.site.login, clean=clean)


@dataclass
class Place:
    """A broker, and what its operator can read in its log."""

    federations: list[Federation]
    shared: bool
    """Whether both are at this broker."""
    keeps_sessions: bool
    """Whether nobody can push another's connection out."""
    keeps_wills: bool
    """Whether there are last wills."""
    log: Path
    told: Told

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

    @contextmanager
    def told_of(self, user: str, verb: str, what: str) -> Iterator[None]:
        """What is tried in here is read by the operator, in lines that were not there before."""
        began = self.log.stat().st_size
        yield

        def seen() -> bool:
            with self.log.open("rb") as log:
                log.seek(began)
                return self.told(log.read().decode(errors="replace"), user, verb, what)

        until(seen, f"the log tells that {user} tried to {verb}: {what}", SEEN_S)


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

    def told(text: str, user: str, verb: str, what: str) -> bool:
        line = f"user {user} was denied to {'publish' if verb == 'leave a will' else verb}: '{what}'"
        if verb == "publish" and what.startswith("$"):
            line = f"{user} cannot use a topic with a leading $"
        if verb == "take over":
            line = f"user '{user}' was refused as client '{what}'"
        return line in text

    return Place(both, shared=False, keeps_sessions=True, keeps_wills=False, log=log, told=told)


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

    def told(text: str, user: str, verb: str, what: str) -> bool:
        lines = text.splitlines()
        match verb:
            case "subscribe":  # as one that is granted: nothing tells them apart
                return any(line.endswith(f": {user} 1 {what}") for line in lines)
            case "leave a will":  # told when it is deposited; that it is not sent, is not
                return f" as {user} (" in text and any(line.endswith(f"\t{what}") for line in lines)
            case "send too much":
                return f"Client {user} disconnected due to oversize packet" in text
            case "take over":  # every session is that of its user, whatever name was given
                return f" as {user} (" in text and f" as {what} (" not in text
        return any(f"Denied PUBLISH from {user} " in line and f"'{what}'" in line for line in lines)

    return Place(both, shared=True, keeps_sessions=True, keeps_wills=True, log=broker.log, told=told)


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

    def told(text: str, user: str, verb: str, what: str) -> bool:
        if verb == "take over":
            return (
                f"access to queue 'mqtt-subscription-{what}qos1' in vhost '/' refused for user '{user}'"
                in text
            )
        key = what.replace("/", ".").replace("+", "*")
        line = f"access to topic '{key}' in exchange 'amq.topic' in vhost '/' refused for user '{user}'"
        return line in text and (verb != "leave a will" or "Could not send last will" in text)

    return Place(both, shared=True, keeps_sessions=False, keeps_wills=True, log=node.log, told=told)
