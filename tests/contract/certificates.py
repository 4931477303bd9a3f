"""A private certificate authority for tests, which also makes what must be refused."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from tests.brokers import RabbitMQ

DAY = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Pair:
    """PEM files."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates, and writes its own as ``ca.pem`` into its folder."""

    def __init__(self, folder: Path, name: str = "test authority") -> None:
        self.folder = folder
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self._key = ec.generate_private_key(ec.SECP256R1())
        constraint = x509.BasicConstraints(ca=True, path_length=0)
        draft = self._draft(self._name, self._key, -DAY, DAY).add_extension(constraint, critical=True)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "ca.pem"
        self.path.write_bytes(self._sign(draft))
        self.pem = self.path.read_text()

    def issue(
        self,
        name: str,
        *hosts: str,
        begins: timedelta = -DAY,
        ends: timedelta = DAY,
        client: bool = False,
    ) -> Pair:
        """For a broker at these host names and addresses, or for a client; times from now. Written again for
        the same name."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        draft = self._draft(subject, key, begins, ends)
        usage = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
        draft = draft.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        if hosts:
            names = x509.SubjectAlternativeName([_general(host) for host in hosts])
            draft = draft.add_extension(names, critical=False)
        pair = Pair(self.folder / f"{name}.pem", self.folder / f"{name}.key")
        pair.certificate.write_bytes(self._sign(draft))
        pair.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        pair.key.chmod(0o644)  # read by the broker's user
        return pair

    def _draft(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, begins: timedelta, ends: timedelta
    ) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + begins)
            .not_valid_after(now + ends)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
        )

    def _sign(self, draft: x509.CertificateBuilder) -> bytes:
        return draft.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


@contextmanager
def secure_rabbitmq(folder: Path, *, demanding: bool = False) -> Iterator[tuple[RabbitMQ, Authority]]:
    """A RabbitMQ of its own with TLS for both protocols; a client may show a certificate, or must."""
    authority = Authority(folder)
    authority.issue("broker", "127.0.0.1")
    settings = (
        "listeners.ssl.1 = 127.0.0.1:{amqps}\nmqtt.listeners.ssl.1 = 127.0.0.1:{mqtts}\n"
        "ssl_options.versions.1 = tlsv1.3\nssl_options.versions.2 = tlsv1.2\n"
        f"ssl_options.verify = verify_peer\nssl_options.fail_if_no_peer_cert = {str(demanding).lower()}\n"
    )
    for option, name in (("cacertfile", "ca.pem"), ("certfile", "broker.pem"), ("keyfile", "broker.key")):
        settings += f"ssl_options.{option} = {authority.folder / name}\n"
    with RabbitMQ(authority.folder, extra=settings) as node:
        yield node, authority
