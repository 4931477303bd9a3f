"""TLS over both transports: what is verified, and what a failure says.

A certificate fails before the first byte of MQTT or AMQP, so one TLS broker serves to test both for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from broker.bus import Bus, BusError, Connected, Credentials, Tls
from broker.connect import connect
from broker.system import system_ports
from tests.brokers import Mosquitto, free_ports
from tests.contract.certificates import DAY, Authority, Pair
from tests.contract.problems import problem
from tests.contract.transports import PATIENCE_S, Peer

SCHEMES = ("mqtts", "amqps")
LISTENER = (
    "listener {port} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n"
    "certfile {base}/broker.pem\nkeyfile {base}/broker.key\n"
)
DEMANDING = LISTENER + "cafile {base}/ca.pem\nrequire_certificate true\nuse_identity_as_username true\n"


@pytest.fixture(autouse=True)
async def bounded() -> AsyncIterator[None]:
    async with asyncio.timeout(PATIENCE_S):
        yield


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "tls")


@pytest.fixture
def valid(authority: Authority) -> Pair:
    return authority.issue("broker", "localhost", "127.0.0.1")


def mosquitto(authority: Authority, config: str = LISTENER, *, port: int = 0) -> Mosquitto:
    """It reads its certificate, and its log, where the authority writes."""
    return Mosquitto(authority.folder, config, port=port)


def bus_to(
    port: int,
    tls: Tls,
    *subscriptions: str,
    scheme: str = "mqtts",
    host: str = "127.0.0.1",
    name: str = "ann",
) -> Bus:
    credentials = Credentials(name, tls=tls)
    return connect(f"{scheme}://{host}:{port}", credentials, subscriptions, ports=system_ports())


@pytest.mark.live
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
@pytest.mark.usefixtures("valid")
async def test_a_certificate_that_names_the_host_is_trusted(authority: Authority, host: str) -> None:
    with mosquitto(authority) as broker:
        async with bus_to(broker.port, Tls(ca=authority.pem), "t", host=host) as bus:
            assert await Peer(bus).connected() == Connected(1)


@pytest.mark.live
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("hosts", "days", "said"),
    [
        (
            ["127.0.0.1"],
            (-2, -1),
            ("has expired", "subject 'broker'", "valid until", "renew it at the broker"),
        ),
        (["127.0.0.1"], (1, 2), ("not yet valid", "set this machine's clock")),
        (["elsewhere.example"], (-1, 1), ("127.0.0.1", "for elsewhere.example", "connect by a name")),
    ],
    ids=["expired", "early", "other-host"],
)
async def test_a_certificate_that_does_not_hold_is_described(
    authority: Authority, scheme: str, hosts: list[str], days: tuple[int, int], said: tuple[str, ...]
) -> None:
    authority.issue("broker", *hosts, begins=days[0] * DAY, ends=days[1] * DAY)
    with mosquitto(authority) as broker:
        async with bus_to(broker.port, Tls(ca=authority.pem), scheme=scheme) as bus:
            text = await problem(bus, "its certificate does not hold")
    assert [part for part in said if part not in text] == []


@pytest.mark.live
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.usefixtures("valid")
async def test_a_certificate_of_an_unknown_authority_says_what_to_set(
    authority: Authority, tmp_path: Path, scheme: str
) -> None:
    other = Authority(tmp_path / "other", "other authority")
    with mosquitto(authority) as broker:
        for tls in (Tls(), Tls(ca=other.pem)):
            async with bus_to(broker.port, tls, scheme=scheme) as bus:
                await problem(bus, "set ca to the certificate of the authority")


@pytest.mark.live
async def test_a_renewed_certificate_is_found_without_a_restart(authority: Authority) -> None:
    authority.issue("broker", "127.0.0.1", begins=-2 * DAY, ends=-DAY)
    (port,) = free_ports(1)
    async with bus_to(port, Tls(ca=authority.pem), "t") as bus:
        with mosquitto(authority, port=port):
            await problem(bus, "has expired")
        authority.issue("broker", "127.0.0.1")
        with mosquitto(authority, port=port):
            assert await Peer(bus).connected() == Connected(1)
            assert bus.problem == ""


@pytest.mark.live
@pytest.mark.usefixtures("valid")
async def test_a_renewed_certificate_of_ours_is_shown_without_a_restart(authority: Authority) -> None:
    old = authority.issue("ann", begins=-2 * DAY, ends=-DAY, client=True)
    with mosquitto(authority, DEMANDING) as broker:
        tls = Tls(authority.pem, old.certificate, old.key)
        async with bus_to(broker.port, tls, "t") as bus:
            await problem(bus, f"(we show certificate {old.certificate})")
            old.certificate.unlink()
            await problem(bus, f"{old.certificate}: No such file")
            authority.issue("ann", client=True)
            assert await Peer(bus).connected() == Connected(1)


@pytest.mark.live
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.usefixtures("valid")
async def test_a_broker_that_demands_a_certificate_says_so(
    authority: Authority, tmp_path: Path, scheme: str
) -> None:
    stranger = Authority(tmp_path / "other", "other authority").issue("ann", client=True)
    with mosquitto(authority, DEMANDING) as broker:
        async with bus_to(broker.port, Tls(authority.pem), scheme=scheme) as bus:
            await problem(bus, "demands a client certificate (we show no certificate)")
        tls = Tls(authority.pem, stranger.certificate, stranger.key)
        async with bus_to(broker.port, tls, scheme=scheme) as bus:
            await problem(bus, "the broker does not know the authority of our certificate")


@pytest.mark.live
@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_port_without_tls_is_called_so(tmp_path: Path, authority: Authority, scheme: str) -> None:
    with Mosquitto(tmp_path / "plain") as broker:
        async with bus_to(broker.port, Tls(authority.pem), scheme=scheme) as bus:
            await problem(bus, "no TLS on this port")


@pytest.mark.live
@pytest.mark.parametrize(("scheme", "speaks"), [("mqtt", "MQTT"), ("amqp", "AMQP")])
@pytest.mark.usefixtures("valid")
async def test_a_port_with_tls_that_is_called_without_gets_the_question(
    authority: Authority, scheme: str, speaks: str
) -> None:
    with mosquitto(authority) as broker:
        async with bus_to(broker.port, Tls(), scheme=scheme) as bus:
            await problem(bus, f"does it speak {speaks} without TLS on this port?")


def test_files_that_cannot_be_used_are_named_with_cause_and_remedy(
    authority: Authority, tmp_path: Path
) -> None:
    pair, other = authority.issue("ann", client=True), authority.issue("bob", client=True)
    missing, garbage = tmp_path / "missing.pem", tmp_path / "garbage.pem"
    garbage.write_text("no PEM")
    encrypted = tmp_path / "encrypted.key"
    encrypted.write_bytes(sealed(pair.key))
    bad = {
        Tls(certificate=missing): f"{missing}: No such file or directory; put the PEM file there",
        Tls(certificate=tmp_path): f"{tmp_path}: Is a directory",
        Tls(certificate=pair.certificate, key=missing): f"{missing}: No such file",
        Tls(certificate=garbage, key=pair.key): f"certificate {garbage}: it or its key in",
        Tls(
            certificate=pair.certificate, key=garbage
        ): f"certificate {pair.certificate}: it or its key in {garbage}",
        Tls(certificate=pair.certificate): f"its key in {pair.certificate} is no unencrypted PEM",
        Tls(certificate=pair.certificate, key=encrypted): f"its key in {encrypted} is no unencrypted PEM",
        Tls(certificate=pair.certificate, key=other.key): f"the key in {other.key} is not its key",
        Tls(key=pair.key): f"key {pair.key}: there is no certificate to it",
        Tls(ca="no PEM"): "not PEM certificates",
    }
    for tls, complaint in bad.items():
        for scheme in SCHEMES:
            with pytest.raises(BusError) as caught:
                bus_to(1, tls, scheme=scheme)
            assert complaint in str(caught.value)
            assert "; " in str(caught.value)


def sealed(key: Path) -> bytes:
    """The key, encrypted."""
    loaded = serialization.load_pem_private_key(key.read_bytes(), None)
    return loaded.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"secret"),
    )
