"""The way to a broker, looked at step by step: its address, its port, its certificate. For the doctors."""

from __future__ import annotations

import asyncio
import os
import ssl
from contextlib import suppress
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote, urlsplit

from broker.bus import BusError, Tls
from broker.checkup import Finding, Level, span, when
from broker.connect import PORT_DEFAULTS
from broker.tls import tls_context

SECURE: Final = ("mqtts", "amqps")
REACH_S: Final = 10.0
EXPIRY_WARNING_S: Final = 21 * 86_400.0

_NO_CHECK_TIME: Final = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME: everything about a certificate is checked but its dates, so that we
learn them."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a broker's URL leads; ``vhost`` is for AMQP."""

    host: str
    port: int
    secure: bool
    vhost: str = "/"


def endpoint(url: str) -> Endpoint:
    """Of a broker's URL. Raises `BusError`; its text shows no password."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise BusError(f"broker URL: {error}; expected scheme://host:port") from error
    if parts.scheme == "embedded" and parts.path.isdigit():
        return Endpoint("127.0.0.1", int(parts.path), secure=False)
    if parts.scheme not in PORT_DEFAULTS or not parts.hostname:
        raise BusError(f"broker URL: not scheme://host:port with one of {', '.join(PORT_DEFAULTS)}")
    return Endpoint(
        parts.hostname,
        port or PORT_DEFAULTS[parts.scheme],
        parts.scheme in SECURE,
        unquote(parts.path[1:]) or "/",
    )


async def reach(url: str, tls: Tls, wall_s: float) -> list[Finding]:
    """Whether somebody answers at a broker's address, and for ``mqtts`` and ``amqps`` whether we trust the
    certificate and until when it holds, by a clock that shows ``wall_s``."""
    try:
        at = endpoint(url)
        context = _dateless(tls_context(tls)) if at.secure else None
    except BusError as error:
        return [Finding("broker", Level.FAULT, str(error), "correct `broker` in the settings")]
    there = f"{at.host}:{at.port}"
    try:
        async with asyncio.timeout(REACH_S):
            _, writer = await asyncio.open_connection(at.host, at.port)
            writer.close()
    except (OSError, TimeoutError) as error:
        cause = error.strerror or str(error) or f"no answer within {REACH_S:g} s"
        if error.errno is not None and error.errno > 0:
            cause = os.strerror(error.errno)  # asyncio's own text tells less
        remedy = f"start the broker, open port {at.port} in firewalls between, or correct `broker`"
        return [Finding("broker", Level.FAULT, f"{there} cannot be reached: {cause}", remedy)]
    reached = Finding("broker", Level.OK, f"{there} accepts connections")
    return [reached, await _certificate(at, context, wall_s)] if context else [reached]


def _dateless(context: ssl.SSLContext) -> ssl.SSLContext:
    context.verify_flags |= _NO_CHECK_TIME
    return context


async def _certificate(at: Endpoint, context: ssl.SSLContext, wall_s: float) -> Finding:
    try:
        async with asyncio.timeout(REACH_S):
            _, writer = await asyncio.open_connection(at.host, at.port, ssl=context)
    except ssl.SSLCertVerificationError as error:
        return Finding("certificate", Level.FAULT, f"not trusted: {error.verify_message}", _trust(error, at))
    except (OSError, TimeoutError) as error:
        cause = getattr(error, "reason", None) or str(error) or f"no answer within {REACH_S:g} s"
        remedy = f"is port {at.port} the broker's TLS port? Without TLS, the URL begins with mqtt: or amqp:"
        return Finding("certificate", Level.FAULT, f"no TLS with {at.host}:{at.port}: {cause}", remedy)
    try:
        known = writer.get_extra_info("peercert")
    finally:
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()
    begins_s, ends_s = (float(ssl.cert_time_to_seconds(known[name])) for name in ("notBefore", "notAfter"))
    return dated(begins_s, ends_s, wall_s)


RENEW: Final = "renew it (Mosquitto: `certfile`; RabbitMQ: `ssl_options.certfile`) and restart the broker"


def dated(
    begins_s: float, ends_s: float, wall_s: float, *, name: str = "certificate", renew: str = RENEW
) -> Finding:
    """A certificate by its dates, for a clock that shows ``wall_s``."""
    if wall_s < begins_s:
        measured = f"not valid before {when(begins_s)}; this machine's clock shows {when(wall_s)}"
        return Finding(name, Level.FAULT, measured, "set the clock that is wrong, here or where it was made")
    if wall_s > ends_s:
        measured = f"expired {span(wall_s - ends_s)} ago, on {when(ends_s)}"
        return Finding(name, Level.FAULT, measured, f"{renew}; or set this machine's clock")
    level = Level.WARNING if ends_s - wall_s < EXPIRY_WARNING_S else Level.OK
    measured = f"valid until {when(ends_s)} ({span(ends_s - wall_s)} left)"
    return Finding(name, level, measured, "" if level is Level.OK else renew)


def _trust(error: ssl.SSLCertVerificationError, at: Endpoint) -> str:
    if "match" in (error.verify_message or ""):
        return (
            f"write a name in `broker` that the certificate holds, or have {at.host} put into the certificate"
        )
    return 'name the PEM file of the authority that signed it: `ca = "ca.pem"`'
