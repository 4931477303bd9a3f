"""The embedded broker: ways around its rules that MQTT offers and amqtt leaves open."""

from __future__ import annotations

import asyncio

import pytest

from tests.contract.transports import EmbeddedTransport
from tests.live.mqtt_client import Client

WRONG = "wrong"


async def client(
    embedded: EmbeddedTransport,
    user: str,
    *,
    named: str = "",
    password: str = "right",
    clean: bool = True,
    will: tuple[str, bytes] | None = None,
) -> Client:
    """A plain client on the wire of ``user``, not connected yet; ``named`` is whose client id it gives."""
    await embedded.url(user)
    port, name = embedded.proxies[user].port, embedded.user(named or user)
    return Client(port, embedded.user(user), password, client_id=name, clean=clean, will=will)


async def leave(embedded: EmbeddedTransport, user: str, gone: Client) -> None:
    """Without a word; returns once the broker has done what it does then."""
    await asyncio.to_thread(gone.break_off)
    await embedded.proxies[user].idle()


def logged(embedded: EmbeddedTransport) -> str:
    return embedded.daemon.users_path.with_name("broker.log").read_text()


async def test_a_last_will_goes_nowhere_and_one_for_a_foreign_topic_is_logged(
    embedded: EmbeddedTransport,
) -> None:
    root = embedded.root
    own, foreign = f"{root}/up/mole", f"{root}/down/victim"
    embedded.invite("mole", publish=[own], subscribe=[f"{root}/down/mole"])
    async with embedded.join("reader", [f"{root}/#"]) as reader:
        await reader.connected()
        for topic in (own, foreign):
            mole = await client(embedded, "mole", will=(topic, b"will"))
            await asyncio.to_thread(mole.__enter__)
            await leave(embedded, "mole", mole)
            await reader.publish(f"{root}/end", b"end")
            assert [d.payload for d in await reader.take(1)] == [b"end"]
    assert f"user {embedded.user('mole')} was denied to publish: '{foreign}'" in logged(embedded)


async def test_a_retained_message_is_passed_on_and_kept_for_nobody(embedded: EmbeddedTransport) -> None:
    root = embedded.root
    down, secret = f"{root}/down/mole", f"{root}/down/victim"
    embedded.invite("mole", publish=[f"{root}/up/mole"], subscribe=[down])
    async with embedded.join("victim", [secret]) as victim, embedded.join("coordinator") as coordinator:
        await victim.connected()
        embedded.invite("speaker")
        speaker = await client(embedded, "speaker")
        await asyncio.to_thread(speaker.__enter__)
        await asyncio.to_thread(speaker.publish, secret, b"kept", retain=True)
        assert [d.payload for d in await victim.take(1)] == [b"kept"]
        await asyncio.to_thread(speaker.__exit__, None, None, None)
        async with embedded.enter("mole", [down]) as mole:
            await mole.connected()
            await coordinator.publish(down, b"end")
            assert [d.payload for d in await mole.take(1)] == [b"end"]
        async with embedded.join("late", [secret]) as late:
            await late.connected()
            await coordinator.publish(secret, b"end")
            assert [d.payload for d in await late.take(1)] == [b"end"]


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize(("thief", "password"), [("mole", "right"), ("mole", WRONG), ("nobody", WRONG)])
async def test_a_refused_login_changes_nothing_in_the_session_that_it_names(
    embedded: EmbeddedTransport, thief: str, password: str, clean: bool
) -> None:
    topic, forged = f"{embedded.root}/down/victim", f"{embedded.root}/up/victim"
    embedded.invite("mole")
    embedded.invite("victim")
    async with embedded.join("reader", [forged]) as reader:
        await reader.connected()
        victim = await client(embedded, "victim", clean=False)
        await asyncio.to_thread(victim.__enter__)
        await asyncio.to_thread(victim.subscribe, topic)
        other = await client(
            embedded, thief, named="victim", password=password, clean=clean, will=(forged, b"will")
        )
        await asyncio.to_thread(other.__enter__)
        assert other.refused
        await asyncio.to_thread(other.__exit__, None, None, None)
        await reader.publish(topic, b"for the victim")
        await asyncio.to_thread(victim.wait_for, b"for the victim")
        await leave(embedded, "victim", victim)
        await reader.publish(forged, b"end")
        assert [d.payload for d in await reader.take(1)] == [b"end"]


async def test_a_session_that_shall_last_does_even_if_the_one_before_did_not(
    embedded: EmbeddedTransport,
) -> None:
    topic = f"{embedded.root}/down/reader"
    embedded.invite("reader")
    for clean in (True, False):
        reader = await client(embedded, "reader", clean=clean)
        await asyncio.to_thread(reader.__enter__)
        await asyncio.to_thread(reader.subscribe, topic)
        await asyncio.to_thread(reader.__exit__, None, None, None)
        await embedded.proxies["reader"].idle()
    async with embedded.join("a") as a:
        await a.publish(topic, b"waits")
    async with embedded.enter("reader", [topic]) as again:
        assert [d.payload for d in await again.take(1)] == [b"waits"]
