"""TLS for the transports: the context, and what its failures mean to an operator."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from broker.bus import BusError, Tls

LOOK_DEADLINE_S: Final = 3.0
"""For a second look at a certificate that was refused, to say whose it is."""

_NO_CHECK_TIME: Final = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL, which `ssl` does not name
_DATE_FAULTS: Final = (9, 10)  # X509_V_ERR_CERT_NOT_YET_VALID, ..._HAS_EXPIRED
_NAME_FAULTS: Final = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, ..._IP_ADDRESS_MISMATCH
_ALERTS: Final = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "demands a client certificate",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": "refuses the handshake; perhaps it demands a client certificate",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "says that our certificate has expired",
    "SSLV3_ALERT_CERTIFICATE_REVOKED": "says that our certificate was revoked",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN": "refuses our certificate",
    "SSLV3_ALERT_BAD_CERTIFICATE": "refuses our certificate",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE": "refuses our certificate as not meant for clients",
    "TLSV1_ALERT_UNKNOWN_CA": "does not know the authority of our certificate",
}
"""What a broker tells about the client's certificate (RFC 8446, section 6.2), as OpenSSL calls it."""


def tls_context(tls: Tls) -> ssl.SSLContext:
    """Verifies the broker's certificate and host name; shows our own certificate if there is one.

    The files are read now: call it for each connection, so that a renewed certificate is used without a
    restart. Raises `BusError`, which names the file.
    """
    for path in (tls.certificate, tls.key):
        if path is not None:
            _check_readable(path)
    if tls.key is not None and tls.certificate is None:
        raise BusError(f"key {tls.key}: there is no certificate to it; name the certificate file, too")
    try:
        context = ssl.create_default_context(cadata=tls.ca or None)
    except (ssl.SSLError, ValueError) as error:
        raise BusError(
            f"certificate of the broker's authority (ca): not PEM certificates ({_reason(error)}); "
            "name the file that the broker's operator gave you"
        ) from error
    if tls.certificate is not None:
        _load_own(context, tls.certificate, tls.key)
    return context


async def explain(
    error: BaseException | None, host: str, port: int, tls: Tls, *, unanswered: str = ""
) -> str:
    """Cause and remedy, when a connection broke for its TLS; empty when it was for something else.

    ``unanswered`` is the protocol that we spoke over TLS that stood, if the broker had not answered in it.
    Connects once more for a certificate that does not hold, to say whose it is and until when it was valid.
    """
    failure = _ssl_error(error)
    if isinstance(failure, ssl.SSLCertVerificationError):
        what = f"its certificate does not hold: {failure.verify_message}{await _known(host, port, tls)}"
        return f"{what}; {_remedy(failure, host)}"
    if alert := _ALERTS.get(getattr(failure, "reason", "")):
        return _refused(f"the broker {alert}", tls)
    if unanswered:
        # With TLS 1.3 our side of it stands before the broker has seen our certificate, and what it then
        # says of that is often lost with the connection.
        perhaps = (
            "perhaps it demands a client certificate, or refuses ours as expired or of another authority"
        )
        return f"{_refused(perhaps, tls)}; if they hold, does it speak {unanswered} on this port?"
    if failure is None:
        return ""
    return (
        f"no TLS on this port ({_reason(failure)}); use the broker's TLS port, or mqtt: or amqp: without TLS"
    )


def _refused(why: str, tls: Tls) -> str:
    own = f"certificate {tls.certificate}" if tls.certificate else "no certificate"
    return (
        f"it ended the connection right after TLS began, before it answered: {why} (we show {own}); "
        "set certificate and key to those that its operator made for this user and that have not expired "
        "(`fedbus-coordinator broker certificate NAME` makes them for a device), and see the broker's log"
    )


def _ssl_error(error: BaseException | None) -> ssl.SSLError | None:
    seen: set[int] = set()  # aiormq raises errors whose causes lead back to themselves
    while error is not None and id(error) not in seen:
        if isinstance(error, ssl.SSLError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None


def _remedy(failure: ssl.SSLCertVerificationError, host: str) -> str:
    if failure.verify_code in _DATE_FAULTS:
        return "renew it at the broker, or set this machine's clock"
    if failure.verify_code in _NAME_FAULTS:
        return f"connect by a name that it is for, or have {host} put into it"
    return "set ca to the certificate of the authority that signed it"


async def _known(host: str, port: int, tls: Tls) -> str:
    """Whose certificate it is, for which names, until when, if only dates or name are wrong with it."""
    with suppress(OSError, TimeoutError, BusError, KeyError, ValueError):
        context = tls_context(tls)
        context.check_hostname = False
        context.verify_flags |= _NO_CHECK_TIME
        async with asyncio.timeout(LOOK_DEADLINE_S):
            _, writer = await asyncio.open_connection(host, port, ssl=context)
        certificate: dict[str, Any] = writer.get_extra_info("peercert")
        writer.transport.abort()
        subject = ", ".join(value for names in certificate["subject"] for _, value in names)
        names = ", ".join(value for _, value in certificate.get("subjectAltName", ()))
        return f" (subject {subject!r}, for {names or 'no name'}, valid until {certificate['notAfter']})"
    return ""


def shake_hands(plain: socket.socket, context: ssl.SSLContext, host: str, deadline_s: float) -> ssl.SSLSocket:
    """The client's side of TLS. Blocks, ``deadline_s`` for each answer; when it fails, closes the socket and
    raises OSError."""
    secured = context.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)
    try:
        secured.settimeout(deadline_s)
        secured.do_handshake()
    except ConnectionResetError as error:
        secured.close()
        raise hung_up() from error
    except BaseException:
        secured.close()
        raise
    return secured


def hung_up() -> ssl.SSLError:
    """What a connection reset means, for `explain`, while TLS is being set up."""
    return ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "it hung up when TLS began")


def _load_own(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    try:
        # A password, or OpenSSL would ask for one at the terminal.
        context.load_cert_chain(certificate, key, password="-")  # noqa: S106 - keys are not encrypted
    except (ssl.SSLError, ValueError, OSError) as error:
        if getattr(error, "reason", "") == "KEY_VALUES_MISMATCH":
            cause = f"the key in {key or certificate} is not its key"
        else:
            cause = f"it or its key in {key or certificate} is no unencrypted PEM ({_reason(error)})"
        raise BusError(
            f"certificate {certificate}: {cause}; name a certificate and the private key that belongs to it"
        ) from error


def _check_readable(path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise BusError(
            f"{path}: {error.strerror}; put the PEM file there, readable for this user, or name another"
        ) from error


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error)
