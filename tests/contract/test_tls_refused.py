"""RabbitMQ refuses a client's certificate. With TLS 1.3 it does so when the client's handshake is over: what
it says of the reason is read, or is lost with the connection; a person is told what to do in both cases."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from broker.amqp import QUEUE_ARGUMENTS
from broker.bus import Bus, Connected, Credentials, Tls
from broker.connect import connect
from broker.system import system_ports
from tests.brokers import RabbitMQ
from tests.contract.certificates import DAY, Authority, Pair, secure_rabbitmq
from tests.contract.problems import problem
from tests.contract.transports import PATIENCE_S, Peer

pytestmark = pytest.mark.live

ENDED = "it ended the connection right after TLS began, before it answered: "
REMEDY = "`fedbus-coordinator broker certificate NAME`"
PERHAPS = "perhaps it demands a client certificate, or refuses ours as expired or of another authority"
SAID = {
    "none": "the broker demands a client certificate",
    "foreign": "the broker does not know the authority of our certificate",
    "expired": "the broker says that our certificate has expired",
}


@pytest.fixture(autouse=True)
async def bounded() -> AsyncIterator[None]:
    async with asyncio.timeout(PATIENCE_S):
        yield


@pytest.fixture(scope="module")
def demanding(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RabbitMQ, Authority]]:
    with secure_rabbitmq(tmp_path_factory.mktemp("rabbitmq"), demanding=True) as found:
        yield found


def shown(fault: str, authority: Authority, folder: Path) -> Pair | None:
    match fault:
        case "foreign":
            return Authority(folder / "other", "another authority").issue("ann", client=True)
        case "expired":
            return authority.issue("old", begins=-2 * DAY, ends=-DAY, client=True)
    return None


@pytest.mark.parametrize("fault", SAID)
@pytest.mark.parametrize("scheme", ["mqtts", "amqps"])
async def test_a_certificate_that_rabbitmq_refuses_is_told_with_its_remedy_until_it_is_replaced(
    demanding: tuple[RabbitMQ, Authority], tmp_path: Path, scheme: str, fault: str
) -> None:
    node, authority = demanding
    name, port = f"{scheme}-ann", node.amqps if scheme == "amqps" else node.mqtts
    node.operator.admit(name, "right")
    node.operator.declare(name, QUEUE_ARGUMENTS)
    good, bad = authority.issue("ann", client=True), shown(fault, authority, tmp_path)

    def bus(tls: Tls) -> Bus:
        url = f"{scheme}://{name}:right@127.0.0.1:{port}"
        return connect(url, Credentials(name, tls=tls), [f"fedbus/{scheme}"], ports=system_ports())

    tls = Tls(authority.pem, good.certificate, good.key)
    async with bus(tls) as here:
        assert await Peer(here).connected() == Connected(1), "its operator's certificate is taken"
    if bad is not None:
        tls = replace(tls, certificate=bad.certificate, key=bad.key)
    async with bus(tls if bad else Tls(authority.pem)) as here:
        told = await problem(here, ENDED)
        assert told.startswith(f"broker 127.0.0.1:{port}: {ENDED}")
        assert SAID[fault] in told or PERHAPS in told
        assert f"(we show {f'certificate {bad.certificate}' if bad else 'no certificate'})" in told
        assert REMEDY in told
        if bad is not None:  # it goes on trying, and reads the files again
            bad.certificate.write_bytes(good.certificate.read_bytes())
            bad.key.write_bytes(good.key.read_bytes())
            assert await Peer(here).connected() == Connected(1)
            assert here.problem == ""
