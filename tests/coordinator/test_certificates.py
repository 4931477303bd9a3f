"""The private authority: what it signs is trusted, by the right names, and renewed in time."""

from __future__ import annotations

import ssl
from dataclasses import replace
from pathlib import Path

import pytest

from broker.ports import Ports
from broker.system import system_ports
from coordinator.broker_admin.certificates import (
    AUTHORITY_VALID_S,
    LEAF_VALID_S,
    RENEW_BEFORE_S,
    CertificateAuthority,
    Leaf,
)
from coordinator.config import ConfigError

DAY_S = 86_400.0
USER = "press-07@3fa94c10"


class At:
    """A clock that stands."""

    def __init__(self, wall_s: float) -> None:
        self._wall_s = wall_s

    def wall_s(self) -> float:
        return self._wall_s

    def monotonic_s(self) -> float:
        return 0.0


def later(seconds: float) -> Ports:
    ports = system_ports()
    return replace(ports, clock=At(ports.clock.wall_s() + seconds))


def authority(folder: Path, seconds: float = 0.0) -> CertificateAuthority:
    made = CertificateAuthority(later(seconds), folder)
    made.ensure("fedbus test")
    return made


def handshake(folder: Path, server: Leaf, host: str, client: Leaf | None = None) -> dict[str, object]:
    """What the server learns of its client, with both checking each other. Raises ssl.SSLError."""
    inside = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(folder / "ca.crt"))
    inside.load_cert_chain(server.certificate, server.key)
    outside = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    if client is not None:
        inside.verify_mode = ssl.CERT_REQUIRED
        outside.load_cert_chain(client.certificate, client.key)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    here = inside.wrap_bio(up, down, server_side=True)
    there = outside.wrap_bio(down, up, server_hostname=host)
    for side in (there, here, there, here, there):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    return dict(here.getpeercert() or {})


def test_the_brokers_certificate_is_trusted_for_each_of_its_names_and_no_other(tmp_path: Path) -> None:
    server = authority(tmp_path).server(tmp_path, ["broker.example", "10.0.0.7", "broker.example"])
    assert server.names == ("broker.example", "10.0.0.7")
    for host in server.names:
        handshake(tmp_path, server, host)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"not valid for 'other\.example'"):
        handshake(tmp_path, server, "other.example")


def test_a_clients_certificate_names_its_user_and_is_no_servers(tmp_path: Path) -> None:
    made = authority(tmp_path)
    server = made.server(tmp_path, ["localhost"])
    client = made.client(tmp_path / "press.crt", USER)
    assert handshake(tmp_path, server, "localhost", client)["subject"] == ((("commonName", USER),),)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path, client, "localhost")


def test_an_authority_of_another_federation_is_not_trusted(tmp_path: Path) -> None:
    other = authority(tmp_path / "other").server(tmp_path / "other", ["localhost"])
    authority(tmp_path)
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(tmp_path, other, "localhost")


def test_a_certificate_is_kept_until_it_is_time_or_something_else_is_asked_for(tmp_path: Path) -> None:
    first = authority(tmp_path).server(tmp_path, ["a"])
    assert first.renewed
    assert not authority(tmp_path, DAY_S).server(tmp_path, ["a"]).renewed
    in_time_s = LEAF_VALID_S - RENEW_BEFORE_S
    assert not authority(tmp_path, in_time_s - DAY_S).server(tmp_path, ["a"]).renewed
    second = authority(tmp_path, in_time_s + DAY_S).server(tmp_path, ["a"])
    assert second.renewed
    assert second.ends_wall_s > first.ends_wall_s
    assert authority(tmp_path, in_time_s + DAY_S).server(tmp_path, ["a", "b"]).renewed


def test_a_certificate_whose_key_is_another_is_made_anew(tmp_path: Path) -> None:
    """As after a crash between the two files."""
    made = authority(tmp_path)
    leaf = made.server(tmp_path, ["a"])
    leaf.key.write_bytes(made.client(tmp_path / "x.crt", USER).key.read_bytes())
    assert made.server(tmp_path, ["a"]).renewed
    leaf.certificate.write_text("damaged")
    assert made.server(tmp_path, ["a"]).renewed


def test_no_certificate_outlives_its_authority_and_an_expired_one_is_named(tmp_path: Path) -> None:
    authority(tmp_path)
    late = authority(tmp_path, AUTHORITY_VALID_S - DAY_S)
    left_s = late.server(tmp_path, ["a"]).ends_wall_s - later(AUTHORITY_VALID_S).clock.wall_s()
    assert left_s <= 1
    with pytest.raises(ConfigError, match="authority has expired"):
        authority(tmp_path, AUTHORITY_VALID_S + DAY_S)


def test_private_keys_are_for_their_owners(tmp_path: Path) -> None:
    made = authority(tmp_path)
    made.server(tmp_path, ["a"])
    made.client(tmp_path / "press.crt", USER)
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.glob("*.key")}
    assert modes == {"ca.key": 0o600, "server.key": 0o640, "press.key": 0o600}


def test_a_user_with_too_long_a_name_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="names of up to 64 characters"):
        authority(tmp_path).client(tmp_path / "x.crt", "d" * 56 + "@3fa94c10")
