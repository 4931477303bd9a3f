"""The embedded broker: a first run on one machine without installing a broker.

It is amqtt in a daemon of its own on 127.0.0.1, which outlives the program that started it (also a
kill -9) and is found again. MQTT 3.1.1 over plain TCP, named users only.

What it does *not* promise, and what the receipts above the bus make good: sessions and queues live in
memory, so a killed broker forgets them; messages in flight when a connection breaks are lost, and a queue
is in flight as a whole once its reader is back; it has no window (the client's holds instead) and waits 5 s
for an acknowledgement; beyond 65,535 messages queued for an offline session it loses some; a denied publish
is acknowledged and thrown away. It queues without limit: the application bounds its bytes in flight.
Not for networks: no TLS, and it does not notice half-open connections.

By hand: ``python -P -m broker.embedded --port 1883 --users users.json``.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from broker.bus import BusError
from broker.local_port import HOST, answers, free_port
from broker.ports import Entropy, Files, Ports, write_atomic

START_DEADLINE_S = 20.0
STOP_DEADLINE_S = 5.0
KILL_DEADLINE_S = 2.0
RELEASE_DEADLINE_S = 2.0
POLL_S = 0.02
SALT_BYTES = 16
LOG_BYTES_MAX = 1 << 20


def write_user(
    files: Files,
    path: Path,
    username: str,
    password: str,
    *,
    publish: Iterable[str],
    subscribe: Iterable[str],
    entropy: Entropy,
) -> None:
    """Add the user to the users file, or replace it; a running broker knows it at the next login.

    The topic filters say where the user may publish and what it may subscribe to and receive. Its MQTT
    client id must be the user name, alone or followed by "/" and more. The password must be random with
    128 bits or more: it is stored as one salted BLAKE2b, which does not slow a guesser down.
    One writer at a time, please. Errors are OSError, and `BusError` for a damaged file.
    """
    salt = entropy.random_bytes(SALT_BYTES)
    users = _read_users(files, path)
    users[username] = {
        "hash": password_hash(password, salt).hex(),
        "salt": salt.hex(),
        "publish": list(publish),
        "subscribe": list(subscribe),
    }
    _write_users(files, path, users)


def remove_user(files: Files, path: Path, username: str) -> None:
    """Forget the user: no login any more, and its open connections neither send nor receive. Idempotent."""
    users = _read_users(files, path)
    if users.pop(username, None) is not None:
        _write_users(files, path, users)


def password_hash(password: str, salt: bytes) -> bytes:
    """32 bytes, BLAKE2b salted (RFC 7693)."""
    return blake2b(password.encode(), digest_size=32, salt=salt, person=b"fedbus.password").digest()


def _read_users(files: Files, path: Path) -> dict[str, Any]:
    if not files.exists(path):
        return {}
    try:
        users = json.loads(files.read(path))
    except ValueError as error:
        raise BusError(
            f"{path}: not a users file ({error}); restore it, or delete it and invite again"
        ) from error
    if not isinstance(users, dict):
        raise BusError(f"{path}: not a users file; restore it, or delete it and invite again")
    return users


def _write_users(files: Files, path: Path, users: dict[str, Any]) -> None:
    write_atomic(files, path, json.dumps(users, indent=1, sort_keys=True).encode() + b"\n")


@dataclass(frozen=True, slots=True)
class _Record:
    """What ``broker.json`` says. ``pid`` is 0 from before the start until the broker answers."""

    pid: int
    port: int
    nonce: str


class EmbeddedBroker:
    """The daemon of one state directory, which holds ``broker.json``, ``users.json`` and ``broker.log``.

    Once started it keeps its port for good, whatever ``port`` says later, because the agents know it;
    delete ``broker.json`` to move. ``port`` 0 picks a free one at the first start. One caller at a time
    per directory.
    """

    def __init__(self, ports: Ports, directory: Path, port: int) -> None:
        self.users_path = directory / "users.json"
        self._ports = ports
        self._directory = directory
        self._record_path = directory / "broker.json"
        self._log_path = directory / "broker.log"
        self._port = port

    @property
    def port(self) -> int:
        """The port it listens on; after `ensure` never 0."""
        record = self._read_record()
        return self._port if record is None else record.port

    def alive(self) -> bool:
        """Whether our broker's process lives. Cheap, and the broker does not notice: unlike `ensure`, this
        does not connect."""
        record = self._read_record()
        return record is not None and self._find(record) != 0

    async def ensure(self) -> None:
        """Return once our broker accepts connections: the one that lives, or a new one on the same port.

        Raises `BusError` when the port belongs to another program, amqtt is not installed, or the broker
        does not come up.
        """
        record = self._read_record()
        if record is not None and self._find(record):
            if await self._comes_up(record):
                return
            await self.stop()
        await self._start(record.port if record is not None else self._port)

    async def stop(self) -> None:
        """End it: SIGTERM, and SIGKILL if that does not help within 5 s. No error if it is gone."""
        record = self._read_record()
        if record is None:
            return
        for number, deadline_s in ((signal.SIGTERM, STOP_DEADLINE_S), (signal.SIGKILL, KILL_DEADLINE_S)):
            if not (pid := self._find(record)):
                return
            with suppress(ProcessLookupError):
                os.kill(pid, number)
            with suppress(TimeoutError):
                async with asyncio.timeout(deadline_s):
                    while self._find(record):  # noqa: ASYNC110 - another session's process: nobody tells us
                        await asyncio.sleep(POLL_S)

    async def _start(self, port: int) -> None:
        if find_spec("amqtt") is None:
            raise BusError(
                "embedded broker: amqtt is not installed; `pip install 'fedbus[demo]'` brings it, "
                "or use a broker of your own (mqtt://host:port)"
            )
        # A broker of ours that was just killed holds its port for a moment longer than its command line.
        port = await free_port(port, 0.0 if self._read_record() is None else RELEASE_DEADLINE_S)
        self._ports.files.make_dir(self._directory)
        record = _Record(pid=0, port=port, nonce=self._ports.entropy.random_bytes(16).hex())
        self._bound_log()
        # Before the start, so that a broker whose starter dies right now is found by its nonce.
        self._write_record(record)
        argv = [sys.executable, "-P", "-m", "broker.embedded", "--detach", "--nonce", record.nonce]
        argv += ["--port", str(port), "--users", str(self.users_path.absolute())]
        process = await self._ports.spawn.start(argv, env=_environment(), stderr=self._log_path)
        try:
            status = await process.wait()
        finally:
            process.kill()
        if status != 0 or not await self._comes_up(record):
            raise BusError(f"embedded broker: did not start on port {port}; {self._log_path} says why")
        self._write_record(_Record(pid=self._find(record), port=port, nonce=record.nonce))

    def _bound_log(self) -> None:
        if self._ports.files.exists(self._log_path):
            file = self._ports.files.open(self._log_path)
            try:
                if file.size() > LOG_BYTES_MAX:
                    file.truncate(0)
            finally:
                file.close()

    async def _comes_up(self, record: _Record) -> bool:
        """Wait until it answers; False if it ends first or takes too long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(START_DEADLINE_S):
                while not await answers(record.port):
                    if not self._find(record):
                        return False
                    await asyncio.sleep(POLL_S)
                return self._find(record) != 0
        return False

    def _find(self, record: _Record) -> int:
        """The pid of the living process with our nonce on its command line; 0 if there is none."""
        if record.pid:
            return record.pid if self._is_ours(str(record.pid), record.nonce) else 0
        for name in self._ports.files.names(Path("/proc")):
            if name.isdigit() and self._is_ours(name, record.nonce):
                return int(name)
        return 0

    def _is_ours(self, pid: str, nonce: str) -> bool:
        try:
            # Empty for a dead process that nobody waited for yet.
            arguments = self._ports.files.read(Path("/proc", pid, "cmdline")).split(b"\0")
        except OSError:
            return False
        return b"broker.embedded" in arguments and nonce.encode() in arguments

    def _read_record(self) -> _Record | None:
        if not self._ports.files.exists(self._record_path):
            return None
        try:
            fields = json.loads(self._ports.files.read(self._record_path))
            return _Record(int(fields["pid"]), int(fields["port"]), str(fields["nonce"]))
        except (ValueError, KeyError, TypeError) as error:
            raise BusError(
                f'{self._record_path}: damaged; write {{"pid": 0, "port": PORT, "nonce": "-"}} into it '
                "with the port that the agents know, or delete it"
            ) from error

    def _write_record(self, record: _Record) -> None:
        write_atomic(self._ports.files, self._record_path, json.dumps(asdict(record)).encode() + b"\n")


def _environment() -> dict[str, str]:
    """Ours, and of our packages the very same ones."""
    return {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}


def _become_daemon() -> None:
    """Leave the starter's session and pipes; the starter sees its child end with status 0."""
    if os.fork():
        os._exit(0)
    os.setsid()
    os.chdir("/")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run an MQTT broker for this machine until SIGTERM; logs go to standard error."""
    parser = argparse.ArgumentParser(prog="python -P -m broker.embedded", description=main.__doc__)
    parser.add_argument("--port", type=int, required=True, help="port on 127.0.0.1")
    parser.add_argument("--users", type=Path, required=True, help="users file (JSON)")
    parser.add_argument("--nonce", default="", help="mark by which the starter finds the process again")
    parser.add_argument("--detach", action="store_true", help="go on in the background")
    options = parser.parse_args(arguments)
    users = options.users.absolute()
    if options.detach:
        _become_daemon()
    # After the fork: amqtt is heavy, and only this process needs it.
    from broker.embedded_server import serve

    return serve(HOST, options.port, users)


if __name__ == "__main__":
    sys.exit(main())
