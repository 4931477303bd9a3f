"""The embedded broker: who may do what, and a daemon that outlives its starter. Real processes and kills."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from broker.bus import BusError, BusRefused, Connected
from broker.embedded import LOG_BYTES_MAX, EmbeddedBroker, remove_user
from broker.system import system_ports
from tests.brokers import free_ports
from tests.contract.transports import EmbeddedTransport

ROOT = Path(__file__).parents[2]
STARTER = """
import asyncio, sys
from pathlib import Path
from broker.embedded import EmbeddedBroker
from broker.system import system_ports

async def main():
    await EmbeddedBroker(system_ports(), Path(sys.argv[1]), int(sys.argv[2])).ensure()
    print("up", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
async def own(tmp_path: Path) -> AsyncIterator[EmbeddedBroker]:
    """A broker of this test alone, which the test starts."""
    broker = EmbeddedBroker(system_ports(), tmp_path, free_ports(1)[0])
    try:
        yield broker
    finally:
        await broker.stop()


def recorded(broker: EmbeddedBroker) -> dict[str, object]:
    fields = json.loads((broker.users_path.parent / "broker.json").read_text())
    assert isinstance(fields, dict)
    return fields


def kill(broker: EmbeddedBroker) -> None:
    pid = recorded(broker)["pid"]
    assert isinstance(pid, int)
    os.kill(pid, signal.SIGKILL)


async def test_a_device_reaches_its_own_topics_only(embedded: EmbeddedTransport) -> None:
    root = embedded.root
    embedded.invite("coordinator", publish=[f"{root}/down/#"], subscribe=[f"{root}/up/+"])
    embedded.invite("b", publish=[f"{root}/up/b"], subscribe=[f"{root}/down/b"])
    async with (
        embedded.enter("coordinator", [f"{root}/up/+"]) as coordinator,
        embedded.enter("b", [f"{root}/down/b"]) as b,
    ):
        await coordinator.connected()
        await b.connected()
        # The broker acknowledges what it throws away: only the absence at the reader shows it.
        await b.publish(f"{root}/up/a", b"forged")
        await b.publish(f"{root}/down/b", b"forged")
        await b.publish(f"{root}/up/b", b"own")
        assert [(d.topic, d.payload) for d in await coordinator.take(1)] == [(f"{root}/up/b", b"own")]
        await coordinator.publish(f"{root}/down/b", b"to b")
        assert [d.payload for d in await b.take(1)] == [b"to b"]


@pytest.mark.parametrize("wanted", ["down/a", "down/+", "#", "up/b"])
async def test_a_subscription_outside_the_rules_is_refused_and_said_so(
    embedded: EmbeddedTransport, wanted: str
) -> None:
    embedded.invite("b", publish=[f"{embedded.root}/up/b"], subscribe=[f"{embedded.root}/down/b"])
    async with embedded.enter("b", [f"{embedded.root}/{wanted}"]) as b:
        with pytest.raises(BusRefused, match="may not subscribe"):
            await b.connected()


@pytest.mark.parametrize("suffix", ["2", "-x", "b"])
async def test_a_user_cannot_take_the_session_of_another(embedded: EmbeddedTransport, suffix: str) -> None:
    embedded.invite("a")
    async with embedded.enter("a", suffix=suffix) as thief:
        with pytest.raises(BusRefused, match="refused"):
            await thief.connected()


async def test_a_user_may_have_a_second_session_under_its_name(embedded: EmbeddedTransport) -> None:
    embedded.invite("a")
    async with embedded.enter("a", suffix="/tool") as tool:
        assert await tool.connected() == Connected(1)


async def test_nobody_gets_in_without_a_name(embedded: EmbeddedTransport) -> None:
    async with embedded.enter("stranger") as stranger:
        with pytest.raises(BusRefused, match="refused"):
            await stranger.connected()


async def test_a_device_invited_while_the_broker_runs_gets_in_and_a_removed_one_is_silenced(
    embedded: EmbeddedTransport,
) -> None:
    topic = f"{embedded.root}/x"
    async with embedded.join("reader", [topic]) as reader, embedded.join("late", [topic]) as late:
        await reader.connected()
        assert await late.connected() == Connected(1)
        remove_user(embedded.ports.files, embedded.daemon.users_path, embedded.user("late"))
        await late.publish(topic, b"removed")
        await reader.publish(topic, b"own")
        assert [d.payload for d in await reader.take(1)] == [b"own"]
        async with embedded.enter("late", wire="again") as again:
            with pytest.raises(BusRefused, match="refused"):
                await again.connected()


async def test_a_refused_login_leaves_the_session_that_it_names_alone(embedded: EmbeddedTransport) -> None:
    topic = f"{embedded.root}/x"
    async with embedded.join("a", [topic]) as a:
        await a.connected()
        async with embedded.enter("a", password="wrong", wire="thief") as thief:
            with pytest.raises(BusRefused, match="refused"):
                await thief.connected()
            await a.publish(topic, b"x")
            item = await anext(a.incoming)
            assert not isinstance(item, Connected), "its connection still stands"


async def test_a_session_taken_over_by_a_new_connection_goes_on_receiving(
    embedded: EmbeddedTransport,
) -> None:
    topic = f"{embedded.root}/x"
    async with AsyncExitStack() as stack:
        reader = await stack.enter_async_context(embedded.join("reader", [topic]))
        a = await stack.enter_async_context(embedded.join("a"))
        await reader.connected()
        # The broker does not learn that the old connection is dead before the new one is there.
        embedded.proxies["reader"].detach()
        assert await reader.connected() == Connected(2)
        for number in range(50):
            await a.publish(topic, str(number).encode())
        assert len(await reader.take(50)) == 50


async def test_messages_of_a_sender_that_left_at_once_are_passed_on(embedded: EmbeddedTransport) -> None:
    topic = f"{embedded.root}/x"
    async with embedded.join("reader", [topic]) as reader:
        await reader.connected()
        async with embedded.join("a") as a, asyncio.TaskGroup() as group:
            for number in range(500):
                group.create_task(a.publish(topic, str(number).encode()))
        assert [d.payload for d in await reader.take(500)] == [str(number).encode() for number in range(500)]


async def test_after_a_kill_the_broker_comes_back_on_its_port_and_clients_reconnect(
    own: EmbeddedBroker,
) -> None:
    await own.ensure()
    port, before = own.port, recorded(own)
    async with AsyncExitStack() as stack:
        transport = EmbeddedTransport(system_ports(), own, 0, stack)
        a = await stack.enter_async_context(transport.join("a", ["x"]))
        await a.connected()
        kill(own)
        await own.ensure()
        assert own.port == port
        assert recorded(own)["pid"] != before["pid"]
        assert await a.connected() == Connected(2)
        await a.publish("x", b"again")
        assert [d.payload for d in await a.take(1)] == [b"again"]


async def test_whether_it_lives_is_seen_without_connecting(own: EmbeddedBroker) -> None:
    assert not own.alive()
    await own.ensure()
    assert own.alive()
    pid = recorded(own)["pid"]
    assert isinstance(pid, int)
    # Stopped, it would accept connections but answer none.
    os.kill(pid, signal.SIGSTOP)
    try:
        assert own.alive()
    finally:
        os.kill(pid, signal.SIGCONT)
    await own.stop()
    assert not own.alive()


async def test_a_log_that_grew_too_long_is_begun_anew_at_the_next_start(
    own: EmbeddedBroker, tmp_path: Path
) -> None:
    log = tmp_path / "broker.log"
    log.write_bytes(b"short\n")
    await own.ensure()
    assert log.read_bytes().startswith(b"short\n")
    await own.stop()
    with log.open("ab") as file:
        file.truncate(LOG_BYTES_MAX + 1)
    await own.ensure()
    assert log.stat().st_size < LOG_BYTES_MAX


async def test_without_amqtt_the_extra_that_brings_it_is_named(
    own: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "amqtt", None)
    with pytest.raises(BusError, match=r"amqtt is not installed; `pip install 'fedbus\[demo\]'`"):
        await own.ensure()
    assert list(tmp_path.iterdir()) == []


async def test_a_broker_outlives_the_kill_of_its_starter_and_is_found_again(
    own: EmbeddedBroker, tmp_path: Path
) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", STARTER, str(tmp_path), str(own.port)],
        env=env,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as starter:
        assert starter.stdout is not None
        assert starter.stdout.readline() == b"up\n"
        os.killpg(starter.pid, signal.SIGKILL)
        starter.wait()
        starter.stdout.close()
    before = recorded(own)
    await own.ensure()
    assert recorded(own) == before
    async with AsyncExitStack() as stack:
        a = await stack.enter_async_context(EmbeddedTransport(system_ports(), own, 0, stack).join("a"))
        assert await a.connected() == Connected(1)


async def test_a_broker_whose_starter_died_before_noting_the_pid_is_found_by_its_nonce(
    own: EmbeddedBroker, tmp_path: Path
) -> None:
    await own.ensure()
    before = recorded(own)
    (tmp_path / "broker.json").write_text(json.dumps({**before, "pid": 0}))
    await own.ensure()
    assert recorded(own)["nonce"] == before["nonce"]
    kill_target = before["pid"]
    assert isinstance(kill_target, int)
    os.kill(kill_target, 0)


async def test_a_stopped_broker_is_gone_and_keeps_its_port_for_the_next_start(own: EmbeddedBroker) -> None:
    await own.ensure()
    port, pid = own.port, recorded(own)["pid"]
    await own.stop()
    await own.stop()
    assert not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes()
    await EmbeddedBroker(system_ports(), own.users_path.parent, port + 1).ensure()
    assert own.port == port


async def test_a_port_of_another_program_is_named_with_the_remedy(tmp_path: Path) -> None:
    server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        with pytest.raises(BusError, match=f"port {port}: .*choose another port"):
            await EmbeddedBroker(system_ports(), tmp_path, port).ensure()


async def test_damaged_state_files_are_named_with_the_remedy(own: EmbeddedBroker, tmp_path: Path) -> None:
    (tmp_path / "broker.json").write_text("{")
    with pytest.raises(BusError, match=r"broker\.json: damaged"):
        await own.ensure()
    (tmp_path / "broker.json").unlink()
    (tmp_path / "users.json").write_text("[]")
    with pytest.raises(BusError, match=r"users\.json: not a users file"):
        remove_user(system_ports().files, tmp_path / "users.json", "a")
