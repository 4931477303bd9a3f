"""Every bound that both sides share, in one place. Sizes in bytes, times in seconds."""

from __future__ import annotations

from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# Wire.
PROTOCOL_VERSION: Final = 1
SUITE_XCHACHA20: Final = 1  # X25519 sealed box, XChaCha20-Poly1305, Ed25519, BLAKE2b, SHA-256
HEADER_BYTES_MAX: Final = KIB
INNER_PAD_BYTES: Final = 256
BODY_BYTES_MAX: Final = 2 * MIB  # inner (64 KiB of parameters or a manifest) and up to 32,768 chunk hashes
SMALL_BODY_BYTES_MAX: Final = 128 * KIB  # of a device's message that is no update
LAYOUT_BYTES_MAX: Final = MIB  # it travels in a request, beside a manifest
INLINE_BYTES_MAX: Final = 48 * KIB  # content that travels inside the body, without a grant
CHUNK_BYTES_DEFAULT: Final = MIB
CHUNK_BYTES_MIN: Final = 4 * KIB
CHUNK_BYTES_MAX: Final = 4 * MIB
CHUNK_BYTES_CHOSEN_MIN: Final = 64 * KIB  # that a job or a device's owner may choose
CHUNKS_MAX: Final = 32_768
CHUNK_OVERHEAD_BYTES: Final = 16  # Poly1305 tag
MESSAGE_BYTES_MAX: Final = 5 * MIB  # what a bus must carry: one chunk or one envelope with its body
CONTENT_BYTES_MAX: Final = 8 * 1024 * MIB
JOIN_BYTES_MAX: Final = 2 * KIB
WELCOME_BYTES_MAX: Final = 4 * KIB
TOKEN_CHARS_MAX: Final = 4 * KIB
CA_CHARS_MAX: Final = 2 * KIB  # of the PEM text in a token

# Parsing: what a msgpack document may hold before its types are looked at.
MSGPACK_ITEMS_MAX: Final = 65_536
MSGPACK_STRING_BYTES_MAX: Final = 64 * KIB
TENSORS_MAX: Final = 10_000
PARAMETERS_MAX: Final = 2_000_000_000

COHORT_MAX: Final = 10_000  # devices asked in one round

# Replay protection.
SEQ_MAX: Final = 2**63 - 1  # of the 64 bits that it has: databases and most languages count so far
INCARNATION_MAX: Final = 2**32 - 1
REPLAY_WINDOW: Final = 1_024  # messages behind the newest that may still arrive
SEQ_BLOCK: Final = 1_024  # sequence numbers reserved durably at a time
OPEN_UPDATES_MAX: Final = 64  # open update ids per device and job

# Flow control.
GRANT_BYTES_MAX: Final = 64 * MIB  # granted to all devices together
GRANT_CHUNKS_MAX: Final = 16  # granted to one device at a time
PULL_CHUNKS_MAX: Final = 16  # model chunks asked for at a time
TRANSFERS_MAX: Final = 64  # transfers with a grant at the same time

# Waiting.
RESEND_FIRST_S: Final = 2.0
RESEND_CAP_S: Final = 60.0
TICK_S: Final = 15.0  # how often a running deadline is journaled
TOKEN_VALID_S: Final = 24 * 3600.0
STOP_S: Final = 10.0  # for a clean end

# People.
TEXT_CHARS_MAX: Final = 500
SECONDS_MAX: Final = 366 * 86_400.0  # any duration that one side tells the other
