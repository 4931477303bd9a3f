"""The devices' lines to the broker, each of which can be cut: nothing passes, and nobody is told.

Where it is allowed, each device is in a network namespace of its own, and its cable is pulled. Elsewhere it
reaches the broker through a relay, a process of its own, which is stopped for as long.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Protocol, Self

HERE: Final = "127.0.0.1"
ROOT: Final = Path(__file__).resolve().parent.parent.parent
RELAY: Final = [sys.executable, "-m", "tests.chaos.relay"]


class Links(Protocol):
    """Lines by the devices' names. Leaving the context takes them away."""

    kind: str
    """What they are made of."""
    host: str
    """The broker's address, for devices."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...
    def connect(self, port: int) -> None:
        """The broker is there now, at this port."""

    def before(self, device: str) -> list[str]:
        """What a device's command line begins with."""

    def url(self, device: str) -> str:
        """Where a device finds the broker; empty: where its token says."""

    def cut(self, device: str) -> None:
        """From now on nothing passes."""

    def mend(self, device: str) -> None:
        """It passes again."""


def links(devices: Sequence[str]) -> Links:
    """Namespaces if this machine and this user may have them."""
    with suppress(OSError, subprocess.CalledProcessError), Namespaces(devices[:1]):
        return Namespaces(devices)
    return Relays(devices)


class Plain:
    """Lines that nobody will cut."""

    def __init__(self) -> None:
        self.kind = ""
        self.host = HERE

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing was made."""

    def connect(self, port: int) -> None:
        """Nothing is between them."""

    def before(self, device: str) -> list[str]:
        del device
        return []

    def url(self, device: str) -> str:
        del device
        return ""

    def cut(self, device: str) -> None:
        raise NotImplementedError(f"plain lines can't be cut ({device}): `links` makes some that can")

    mend = cut


class Namespaces(Plain):
    """A network namespace for each device, with a virtual cable to this machine's end of it."""

    def __init__(self, devices: Sequence[str]) -> None:
        self.kind = "network namespaces"
        self._names = {device: f"fb{os.getpid()}-{n}" for n, device in enumerate(devices, 1)}
        net = f"10.213.{os.getpid() % 256}"
        self.host = f"{net}.254"
        self._addresses = {device: f"{net}.{n}" for n, device in enumerate(devices, 1)}

    def __enter__(self) -> Self:
        try:
            for device, name in self._names.items():
                self._make(name, self._addresses[device])
        except BaseException:
            self.__exit__()
            raise
        return self

    def _make(self, name: str, address: str) -> None:
        inside = f"{name}i"
        _ip("netns", "add", name)
        _ip("link", "add", name, "type", "veth", "peer", "name", inside)
        _ip("link", "set", inside, "netns", name)
        _ip("address", "add", self.host, "peer", f"{address}/32", "dev", name)
        _ip("link", "set", name, "up")
        _ip("-n", name, "address", "add", address, "peer", f"{self.host}/32", "dev", inside)
        _ip("-n", name, "link", "set", inside, "up")
        _ip("-n", name, "link", "set", "lo", "up")

    def __exit__(self, *_: object) -> None:
        for name in self._names.values():
            for what in ("link", "netns"):  # a cable goes with one of its ends
                with suppress(subprocess.CalledProcessError):
                    _ip(what, "delete", name)

    def before(self, device: str) -> list[str]:
        return ["ip", "netns", "exec", self._names[device]]

    def cut(self, device: str) -> None:
        # The far end of the cable: what the broker sends is lost on the way, its own end stays up.
        _ip("-n", self._names[device], "link", "set", f"{self._names[device]}i", "down")

    def mend(self, device: str) -> None:
        name = self._names[device]
        _ip("-n", name, "link", "set", f"{name}i", "up")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


class Relays:
    """A relay for each device."""

    def __init__(self, devices: Sequence[str]) -> None:
        self.kind = "relays"
        self.host = HERE
        self._devices = devices
        self._ports: dict[str, int] = {}
        self._relays: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Self:
        return self

    def connect(self, port: int) -> None:
        for device in self._devices:
            relay = subprocess.Popen(
                [*RELAY, str(port)], cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
            )
            self._relays[device] = relay
            assert relay.stdout is not None
            self._ports[device] = int(relay.stdout.readline())

    def __exit__(self, *_: object) -> None:
        for relay in self._relays.values():
            relay.kill()
            relay.communicate()

    def before(self, device: str) -> list[str]:
        del device
        return []

    def url(self, device: str) -> str:
        return f"mqtt://{HERE}:{self._ports[device]}"

    def cut(self, device: str) -> None:
        self._relays[device].send_signal(signal.SIGSTOP)

    def mend(self, device: str) -> None:
        self._relays[device].send_signal(signal.SIGCONT)
