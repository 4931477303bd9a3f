"""A federation on a private Mosquitto or RabbitMQ, set up by the operator's commands, with stand-in devices.

The coordinator is the real program; the devices are connections in this process, without PyTorch.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from broker.bus import BusRefused
from broker.connect import connect
from broker.system import system_ports
from coordinator import control
from coordinator.broker_admin.rabbitmq_setup import ENVIRONMENT_TEXT, configuration
from schemas import topics
from schemas.enrolment import token_from_text
from schemas.ids import broker_user
from tests.bench.raw import Ends
from tests.brokers import Mosquitto, RabbitMQ, free_ports, rss_bytes
from tests.live.installation import Installation
from tests.standin import StandIn

BROKERS: Final = ("mosquitto", "rabbitmq")
TASK: Final = "vision"
ENROLLING: Final = 16  # devices that enrol side by side
SETTLED_S: Final = 5.0
HERE: Final = "127.0.0.1"


def config_of(parameters: int) -> dict[str, Any]:
    """A vision job's configuration with about so many parameters."""
    width = round((parameters) ** 0.5)
    return {"shape": [width - 1], "hidden": width, "classes": 2}


@dataclass(frozen=True)
class Deployment:
    """A broker that runs, and a federation on it that `Installation` serves when entered."""

    site: Installation
    broker: Mosquitto | RabbitMQ
    url: str
    device_url: str

    def broker_rss_bytes(self) -> int:
        return rss_bytes(self.broker.pid)

    def ends(self, devices: list[StandIn]) -> Ends:
        """The raw programs, as the same users on the same topics; the coordinator must not be running."""
        user = broker_user(self.site.identity.federation, "{user}").partition("@")[0]
        topic = topics.all_up(self.site.identity.federation).replace("+", user)
        givers = [(broker_user(d.federation, d.id), d.token.password) for d in devices]
        return Ends(self.device_url, givers, self.url, self.site.login, topic)

    async def ask(self, op: str, **fields: Any) -> Any:
        """A command to the coordinator that serves."""
        return await control.call(self.site.directory, {"op": op} | fields)

    async def submit(self, name: str, parameters: int, devices: int, **fields: Any) -> None:
        """A job for stand-ins: all of them in every round."""
        job = {"name": name, "task": TASK, "config": config_of(parameters), "deadline_s": 3_600.0}
        await self.ask("submit", spec=job | {"cohort": devices, "min_reports": devices} | fields)

    @asynccontextmanager
    async def devices(self, count: int, name: str = "device") -> AsyncIterator[list[StandIn]]:
        """Connected, enrolled stand-ins that will take a job."""
        async with AsyncExitStack() as stack:
            room = asyncio.Semaphore(ENROLLING)
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(self._device(f"{name}-{n + 1}", room, stack)) for n in range(count)
                ]
            yield [task.result() for task in tasks]

    async def _device(self, name: str, room: asyncio.Semaphore, stack: AsyncExitStack) -> StandIn:
        ports = system_ports()
        async with room:
            token = token_from_text((await self.ask("invite", device=name))["token"])
            while True:
                device = StandIn(
                    token,
                    lambda url, who, subscriptions: connect(url, who, subscriptions, ports=ports),
                    ports,
                    self.site.directory.parent,
                )
                await device.__aenter__()
                stack.push_async_callback(device.close)
                try:
                    await device.enrol()
                except BusRefused:  # the broker is still reading its list of users
                    await asyncio.sleep(0.1)
                else:
                    break
            await device.report(TASK)
        return device


@contextmanager
def deployed(kind: str, base: Path, *, tls: bool = False, host: str = HERE) -> Iterator[Deployment]:
    """``kind`` is one of `BROKERS`: Mosquitto for all, or AMQP for the coordinator and MQTT for devices,
    whose way to the broker is ``host``."""
    if kind == "mosquitto":
        with _on_mosquitto(base, host, tls=tls) as deployment:
            yield deployment
        return
    erlang = re.findall(r'ERL_ARGS="(.*)"', ENVIRONMENT_TEXT)
    node = RabbitMQ(base / "rabbitmq", extra=_settings(), erlang=erlang)
    if host != HERE:
        node.extra += f"mqtt.listeners.tcp.2 = {host}:{node.mqtt}\n"
    with node:
        password = base / "management"
        password.write_text("guest")
        url, device_url = f"amqp://{HERE}:{node.amqp}", f"mqtt://{host}:{node.mqtt}"
        site = Installation(base / "federation", url, "--device-url", device_url)
        login = ["--management", f"http://guest@127.0.0.1:{node.management}", "--store-credentials"]
        site.command("broker", "rabbitmq", *login, "--management-password-file", str(password))
        yield Deployment(site, node, url, device_url)


@contextmanager
def _on_mosquitto(base: Path, host: str, *, tls: bool) -> Iterator[Deployment]:
    (port,) = free_ports(1)
    url = f"mqtts://localhost:{port}" if tls else f"mqtt://{host}:{port}"
    home = base / "mosquitto"
    site = Installation(base / "federation", url)
    options = ["--listen", f"{host}:{port}", *(["--tls"] if tls else [])]
    site.command("broker", "mosquitto", "--pid-file", str(home / "mosquitto.pid"), *options)
    config = (site.directory / "broker" / "mosquitto.conf").read_text()
    config += "persistence_location {base}/\npid_file {base}/mosquitto.pid\n"
    broker = Mosquitto(home, config, port=port)
    broker.host = host
    with broker:
        yield Deployment(site, broker, url, url)


def _settings() -> str:
    """The file that `broker rabbitmq` writes, but for what `RabbitMQ` says itself."""
    text = configuration("/", None, [], clients=False)
    return "".join(
        line + "\n" for line in text.splitlines() if not line.startswith(("mqtt.allow", "mqtt.ex"))
    )
