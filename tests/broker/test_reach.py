"""The way to a broker: address, port, certificate, with a real TLS server."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from broker.bus import BusError, Tls
from broker.checkup import Finding, Level
from broker.reach import Endpoint, endpoint, reach
from broker.system import system_ports
from coordinator.broker_admin.certificates import CertificateAuthority
from tests.brokers import free_ports

YEAR_S = 366 * 86_400.0


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtt://broker.example", Endpoint("broker.example", 1883, secure=False)),
        ("mqtts://broker.example:99", Endpoint("broker.example", 99, secure=True)),
        ("amqps://broker.example/works%2Fa", Endpoint("broker.example", 5671, True, "works/a")),
        ("embedded:20001", Endpoint("127.0.0.1", 20_001, secure=False)),
    ],
)
def test_a_url_leads_to_an_endpoint(url: str, expected: Endpoint) -> None:
    assert endpoint(url) == expected


@pytest.mark.parametrize("url", ["http://x", "mqtt:", "mqtt://x:99999", "embedded:x", "mqtt://me:secret@"])
def test_a_url_that_leads_nowhere_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(BusError) as refused:
        endpoint(url)
    assert "secret" not in str(refused.value)


async def test_a_port_where_nobody_listens_is_a_fault() -> None:
    url = f"mqtt://127.0.0.1:{free_ports(1)[0]}"
    (found,) = await reach(url, Tls(), system_ports().clock.wall_s())
    assert (found.name, found.level) == ("broker", Level.FAULT)
    assert "start the broker" in found.remedy


class Server:
    """Accepts connections with a certificate for 127.0.0.1 of an authority of its own."""

    def __init__(self, folder: Path) -> None:
        authority = CertificateAuthority(system_ports(), folder)
        authority.ensure("test")
        self.leaf = authority.server(folder, ["127.0.0.1"])
        self.ca = authority.path.read_text()
        self.port = 0

    @asynccontextmanager
    async def listening(self, *, secure: bool = True) -> AsyncIterator[None]:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) if secure else None
        if context:
            context.load_cert_chain(self.leaf.certificate, self.leaf.key)

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"not TLS\n")
            writer.close()

        server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield

    async def certificate(self, tls: Tls, *, host: str = "127.0.0.1", later_s: float = 0.0) -> Finding:
        """What is found when the clock shows ``later_s`` more than it does."""
        wall_s = system_ports().clock.wall_s() + later_s
        broker, found = await reach(f"mqtts://{host}:{self.port}", tls, wall_s)
        assert (broker.name, broker.level, found.name) == ("broker", Level.OK, "certificate")
        return found


@pytest.fixture
def server(tmp_path: Path) -> Server:
    return Server(tmp_path)


async def test_a_trusted_certificate_shows_how_long_it_holds(server: Server) -> None:
    async with server.listening():
        found = await server.certificate(Tls(ca=server.ca))
    assert found.level is Level.OK
    assert "825 days left" in found.measured


async def test_an_expired_certificate_is_a_fault_that_names_its_date_and_the_setting(server: Server) -> None:
    async with server.listening():
        found = await server.certificate(Tls(ca=server.ca), later_s=3 * YEAR_S)
    assert found.level is Level.FAULT
    assert "expired 273 days ago" in found.measured
    assert "`certfile`" in found.remedy


async def test_a_certificate_of_an_unknown_authority_is_a_fault(server: Server) -> None:
    async with server.listening():
        found = await server.certificate(Tls())
    assert found.level is Level.FAULT
    assert "not trusted" in found.measured
    assert "`ca = " in found.remedy


async def test_a_certificate_for_another_name_is_a_fault(server: Server) -> None:
    async with server.listening():
        found = await server.certificate(Tls(ca=server.ca), host="localhost")
    assert found.level is Level.FAULT
    assert "localhost" in found.remedy


async def test_a_port_without_tls_is_a_fault(server: Server) -> None:
    async with server.listening(secure=False):
        found = await server.certificate(Tls(ca=server.ca))
    assert found.level is Level.FAULT
    assert "TLS port" in found.remedy


async def test_an_authority_that_cannot_be_read_is_a_fault(server: Server) -> None:
    async with server.listening():
        url = f"mqtts://127.0.0.1:{server.port}"
        (found,) = await reach(url, Tls(ca="no PEM"), system_ports().clock.wall_s())
    assert found.level is Level.FAULT
    assert "PEM" in found.measured
