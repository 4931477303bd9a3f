"""A private certificate authority for one broker: its own certificate, the server's, those of clients.

PEM files, keys of EC P-256. Made where they are missing, about to expire or not what was asked for; run the
same command again to renew.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID as Usage
from cryptography.x509.oid import NameOID

from broker.ports import Ports, write_atomic
from coordinator.config import ConfigError

AUTHORITY: Final = "ca"
SERVER: Final = "server"
AUTHORITY_VALID_S: Final = 3_650 * 86_400.0
LEAF_VALID_S: Final = 825 * 86_400.0
RENEW_BEFORE_S: Final = 90 * 86_400.0
BACKDATED_S: Final = 86_400.0
"""A certificate begins a day ago, for machines whose clocks are behind."""
NAME_CHARS_MAX: Final = 64  # of a common name: RFC 5280, ub-common-name

Key = ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class Leaf:
    """A certificate that the authority signed, with its files."""

    certificate: Path
    key: Path
    names: tuple[str, ...]
    ends_wall_s: float
    renewed: bool


class CertificateAuthority:
    """The authority whose files are ``ca.crt`` and ``ca.key`` in ``folder``. All calls block."""

    def __init__(self, ports: Ports, folder: Path) -> None:
        self._ports = ports
        self._folder = folder
        self.path = folder / f"{AUTHORITY}.crt"

    def ensure(self, name: str) -> None:
        """Make the authority, with this common name, if there is none.

        Raises `ConfigError` when it has expired: devices trust this one, and would have to be given another.
        """
        files = self._ports.files
        if not files.exists(self.path):
            key = ec.generate_private_key(ec.SECP256R1())
            draft = _with_usage(self._draft(key, name, AUTHORITY_VALID_S), authority=True)
            signed = draft.issuer_name(_subject(name)).sign(key, hashes.SHA256())
            files.make_dir(self._folder)
            write_atomic(files, self.path.with_suffix(".key"), _pem(key))
            write_atomic(files, self.path, signed.public_bytes(Encoding.PEM), mode=0o644)
        if _ends_s(self._read(self.path)) < self._ports.clock.wall_s():
            raise ConfigError(
                f"{self.path}: this authority has expired; move it and its key away, run this again, and "
                f"give every device the new one (`ca` in its agent.toml)"
            )

    def server(self, folder: Path, hosts: Sequence[str]) -> Leaf:
        """The broker's certificate in ``folder``, for these names and addresses."""
        names = tuple(dict.fromkeys(hosts))
        return self._leaf(
            folder / f"{SERVER}.crt", names[0][:NAME_CHARS_MAX], names, Usage.SERVER_AUTH, 0o640
        )

    def client(self, path: Path, user: str) -> Leaf:
        """A client's certificate, whose common name is its user at the broker.

        Raises `ConfigError` if the name is longer than a certificate can hold.
        """
        if len(user) > NAME_CHARS_MAX:
            raise ConfigError(
                f"user {user}: a certificate holds names of up to {NAME_CHARS_MAX} characters; "
                f"invite the device under a shorter name"
            )
        return self._leaf(path, user, (), Usage.CLIENT_AUTH, 0o600)

    def _leaf(
        self, path: Path, name: str, hosts: tuple[str, ...], usage: x509.ObjectIdentifier, key_mode: int
    ) -> Leaf:
        files, key_path = self._ports.files, path.with_suffix(".key")
        renewed = not (files.exists(path) and files.exists(key_path) and self._holds(path, name, hosts))
        if renewed:
            key = ec.generate_private_key(ec.SECP256R1())
            signed = self._signed(key, name, hosts, usage)
            files.make_dir(path.parent)
            write_atomic(files, key_path, _pem(key), mode=key_mode)
            write_atomic(files, path, signed.public_bytes(Encoding.PEM), mode=0o644)
        return Leaf(path, key_path, hosts, _ends_s(self._read(path)), renewed)

    def _holds(self, path: Path, name: str, hosts: tuple[str, ...]) -> bool:
        """Whether the certificate is what was asked for, and lasts."""
        try:
            certificate, key = self._read(path), self._read_key(path.with_suffix(".key"))
            certificate.verify_directly_issued_by(self._read(self.path))
        except (ConfigError, ValueError, TypeError, InvalidSignature):
            return False
        if certificate.public_key() != key.public_key():
            return False
        try:
            found = list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
        except x509.ExtensionNotFound:
            found = []
        lasts_s = _ends_s(certificate) - self._ports.clock.wall_s()
        wanted = [_general(host) for host in hosts]
        return certificate.subject == _subject(name) and found == wanted and lasts_s > RENEW_BEFORE_S

    def _signed(
        self, key: Key, name: str, hosts: tuple[str, ...], usage: x509.ObjectIdentifier
    ) -> x509.Certificate:
        authority = self._read(self.path)
        identifier = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        left_s = _ends_s(authority) - self._ports.clock.wall_s()
        draft = _with_usage(self._draft(key, name, min(LEAF_VALID_S, left_s)), authority=False)
        draft = draft.issuer_name(authority.subject).add_extension(
            x509.ExtendedKeyUsage([usage]), critical=False
        )
        draft = draft.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
        )
        if hosts:
            names = x509.SubjectAlternativeName([_general(host) for host in hosts])
            draft = draft.add_extension(names, critical=False)
        return draft.sign(self._read_key(self.path.with_suffix(".key")), hashes.SHA256())

    def _draft(self, key: Key, name: str, valid_s: float) -> x509.CertificateBuilder:
        now = datetime.fromtimestamp(int(self._ports.clock.wall_s()), UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(_subject(name))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(seconds=BACKDATED_S))
            .not_valid_after(now + timedelta(seconds=valid_s))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )

    def _read(self, path: Path) -> x509.Certificate:
        try:
            return x509.load_pem_x509_certificate(self._ports.files.read(path))
        except ValueError as error:
            raise ConfigError(f"{path}: not a PEM certificate; restore it, or move it away") from error

    def _read_key(self, path: Path) -> Key:
        try:
            key = serialization.load_pem_private_key(self._ports.files.read(path), None)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path}: not an unencrypted PEM key; restore it from a backup") from error
        if not isinstance(key, Key):
            raise ConfigError(f"{path}: not a key of an elliptic curve; restore it from a backup")
        return key


def _ends_s(certificate: x509.Certificate) -> float:
    return certificate.not_valid_after_utc.timestamp()


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _general(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _with_usage(draft: x509.CertificateBuilder, *, authority: bool) -> x509.CertificateBuilder:
    usage = x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    length = 0 if authority else None
    draft = draft.add_extension(x509.BasicConstraints(ca=authority, path_length=length), critical=True)
    return draft.add_extension(usage, critical=True)


def _pem(key: Key) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
