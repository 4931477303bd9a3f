"""Private brokers on free ports of 127.0.0.1: Mosquitto (one per test, up in 0.02 s) and RabbitMQ (one per
session, up in 10 s). Nothing of the system's own brokers is touched; everything ends with its context.

Where a broker is not installed, starting it raises `PackageMissing`, which skips the test (`tests.conftest`).
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, Self

from tests.management import Management, hashed

MOSQUITTO = "/usr/sbin/mosquitto"
RABBITMQ = "/usr/lib/rabbitmq/bin"
PATIENCE_S = 120.0
RELOADS_MAX = 20
WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
PORTS = range(20_000, 32_000)[WORKER::WORKERS]  # each test process takes its own
RELOADED = b"Reloading config."
SYSTEMD_ANALYZE = "/usr/bin/systemd-analyze"
PACKAGES = {
    "mosquitto": MOSQUITTO,
    "rabbitmq-server": f"{RABBITMQ}/rabbitmq-server",
    "systemd": SYSTEMD_ANALYZE,
    "dataset-fashion-mnist": "/usr/share/datasets/fashion-mnist",
}


class PackageMissing(Exception):
    """A Debian package that a test needs is not installed."""


def require(package: str) -> None:
    """Raises `PackageMissing`."""
    if not Path(PACKAGES[package]).exists():
        raise PackageMissing(f"{package} is not installed")


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, below those of outgoing connections: these could take them."""
    found: list[int] = []
    while len(found) < count:
        port = PORTS[secrets.randbelow(len(PORTS))]
        if port not in found and not answers(port):
            found.append(port)
    return found


def until(condition: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait for what another process brings about."""
    end_s = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > end_s:
            raise TimeoutError(f"not within {patience_s} s: {what}")
        time.sleep(0.01)


def answers(port: int, host: str = "127.0.0.1") -> bool:
    """Whether somebody accepts connections there."""
    try:
        socket.create_connection((host, port), 0.5).close()
    except OSError:
        return False
    return True


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024


def reread(mosquitto: subprocess.Popen[bytes], log: Path) -> None:
    """Have it read password and ACL files again; returns once it does so before anything else."""
    done = log.read_bytes().count(RELOADED)
    for _ in range(RELOADS_MAX):  # a signal that comes while it reads them is lost
        mosquitto.send_signal(signal.SIGHUP)
        with suppress(TimeoutError):
            until(lambda: log.read_bytes().count(RELOADED) > done, "mosquitto reloads", 1)
            return
    raise TimeoutError(f"mosquitto does not read its files again; see {log}")


class Admit(Protocol):
    """Lets a user in at a broker, who may do this much (topic filters)."""

    def __call__(
        self, user: str, password: str, publish: Sequence[str], subscribe: Sequence[str]
    ) -> None: ...


class Mosquitto:
    """A Mosquitto with ``config`` as its whole configuration (``{port}`` and ``{base}`` are filled in).

    With `USERS` in it, only users that `admit` named get in.
    """

    OPEN = "listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n"
    DURABLE = "max_queued_messages 0\nmax_queued_bytes 0\npersistence true\npersistence_location {base}/\n"
    USERS = (
        "listener {port} 127.0.0.1\nset_tcp_nodelay true\nallow_anonymous false\n"
        "password_file {base}/passwords\nacl_file {base}/acl\n"
    )

    def __init__(self, base: Path, config: str = OPEN + DURABLE, *, port: int = 0) -> None:
        self.host = "127.0.0.1"  # as ``config`` says
        self.port = port or free_ports(1)[0]
        self.log = base / "mosquitto.log"
        self._base = base
        self._config = config
        self._users: dict[str, tuple[str, list[str]]] = {}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process is not None
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    def start(self) -> None:
        require("mosquitto")
        self._base.mkdir(parents=True, exist_ok=True)
        self._write_users()
        path = self._base / "mosquitto.conf"
        # As root it would change to a user that cannot write here.
        config = "user root\nlog_type all\n" + self._config
        path.write_text(config.replace("{port}", str(self.port)).replace("{base}", str(self._base)))
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [MOSQUITTO, "-c", str(path)], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        until(self._up, f"mosquitto answers on {self.port}; see {self.log}", 10)

    def _up(self) -> bool:
        if self.process.poll() is not None:
            raise RuntimeError(f"mosquitto ended: {self.log.read_text()}")
        return answers(self.port, self.host)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it; with SIGKILL it forgets what it did not save."""
        self.process.send_signal(number)
        self.process.wait(PATIENCE_S)

    def admit(
        self, user: str, password: str, publish: Sequence[str] = ("#",), subscribe: Sequence[str] = ("#",)
    ) -> None:
        """Let a user in, who may do this much (topic filters)."""
        rules = [f"topic write {topic}" for topic in publish] + [f"topic read {topic}" for topic in subscribe]
        self._users[user] = password, rules
        if self._running():
            self._write_users()
            reread(self.process, self.log)

    def _write_users(self) -> None:
        passwords = [f"{user}:{hashed(password)}\n" for user, (password, _) in self._users.items()]
        rules = ["\n".join([f"user {user}", *rules, ""]) for user, (_, rules) in self._users.items()]
        (self._base / "passwords").write_text("".join(passwords))
        (self._base / "acl").write_text("".join(rules))

    def _running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._running():
            self.stop()


class RabbitMQ:
    """A RabbitMQ node of its own with management and MQTT plugins. User ``guest`` / ``guest`` may do all.

    ``extra`` is added to rabbitmq.conf, ``erlang`` to the command line of the virtual machine.
    """

    def __init__(self, base: Path, *, extra: str = "", erlang: Sequence[str] = ()) -> None:
        self.amqp, self.mqtt, self.management, self.amqps, self.mqtts, dist, self._epmd_port = free_ports(7)
        self.operator = Management(self.management)
        self.log = base / "rabbitmq.log"
        self._base = base
        self.extra = extra.replace("{mqtts}", str(self.mqtts)).replace("{amqps}", str(self.amqps))
        self._processes: list[subprocess.Popen[bytes]] = []
        arguments = ["+sbwt none +sbwtdcpu none +sbwtdio none", "-kernel inet_dist_use_interface {127,0,0,1}"]
        self.environment = environment = {  # of ``rabbitmqctl``, too, to find this node
            "PATH": os.environ["PATH"],
            "HOME": str(base),
            "LANG": "C.UTF-8",
            "RABBITMQ_NODENAME": f"t{self.amqp}@localhost",
            "RABBITMQ_DIST_PORT": str(dist),
            "RABBITMQ_CONF_ENV_FILE": str(base / "env.conf"),
            "RABBITMQ_CONFIG_FILE": str(base / "rabbitmq"),
            "RABBITMQ_CONFIG_FILES": str(base / "conf.d"),
            "RABBITMQ_MNESIA_BASE": str(base / "mnesia"),
            "RABBITMQ_LOG_BASE": str(base / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_PID_FILE": str(base / "pid"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(base / "plugins"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(base / "generated"),
            "RABBITMQ_FEATURE_FLAGS_FILE": str(base / "features"),
            "ERL_EPMD_PORT": str(self._epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": " ".join([*arguments, *erlang]),
        }
        self._place: dict[str, Any] = {"env": environment, "cwd": base, "stdin": subprocess.DEVNULL}

    @property
    def pid(self) -> int:
        """Of the node itself, not of its shell."""
        return int((self._base / "pid").read_text())

    def _settings(self) -> str:
        return (
            f"listeners.tcp.1 = 127.0.0.1:{self.amqp}\n"
            f"mqtt.listeners.tcp.1 = 127.0.0.1:{self.mqtt}\n"
            "mqtt.allow_anonymous = false\nmqtt.exchange = amq.topic\n"
            f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {self.management}\n"
            "log.file = false\nlog.console = true\nlog.console.level = info\n"
            "vm_memory_high_watermark.absolute = 4GB\ndisk_free_limit.absolute = 50MB\n" + self.extra
        )

    def start(self) -> None:
        require("rabbitmq-server")
        self._base.mkdir(parents=True, exist_ok=True)
        (self._base / "plugins").write_text("[rabbitmq_management,rabbitmq_mqtt].\n")
        (self._base / "rabbitmq.conf").write_text(self._settings())
        (self._base / "env.conf").write_text("")
        cookie = self._base / ".erlang.cookie"
        if not cookie.exists():
            cookie.write_text(secrets.token_hex(16))
            cookie.chmod(0o400)
        self.log.touch()
        began = self.log.stat().st_size
        self._spawn("epmd", "-port", str(self._epmd_port), "-address", "127.0.0.1")
        until(lambda: answers(self._epmd_port), "epmd answers")
        self._spawn(f"{RABBITMQ}/rabbitmq-server")
        until(lambda: self._up(began), f"RabbitMQ is up; see {self.log}")

    def _up(self, began: int) -> bool:
        if self._processes[-1].poll() is not None:
            raise RuntimeError(f"RabbitMQ ended: {self.log.read_text()[-2000:]}")
        return b"startup complete" in self.log.read_bytes()[began:]

    def _spawn(self, *argv: str) -> None:
        with self.log.open("ab") as log:
            process = subprocess.Popen(argv, stdout=log, stderr=log, start_new_session=True, **self._place)
            self._processes.append(process)

    def ctl(self, *arguments: str) -> str:
        """``rabbitmqctl``; its output."""
        argv = [f"{RABBITMQ}/rabbitmqctl", *arguments]
        done: subprocess.CompletedProcess[str]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, **self._place)
        if done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        return done.stdout

    def settle(self) -> None:
        """Return once what was declared is on disk, as it is some seconds later by itself."""
        self.ctl("eval", "[dets:sync(T) || T <- dets:all()], mnesia:sync_log().")

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the node, unless it is dead, and its epmd. What is durable is there again after `start`."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)
        epmd, server = self._processes
        server.wait(PATIENCE_S)
        epmd.terminate()
        epmd.wait(PATIENCE_S)
        self._processes = []
        until(lambda: not answers(self.amqp), "the port is free")

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # A clean end would take it seconds, for data that nobody wants any more.
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(PATIENCE_S)
