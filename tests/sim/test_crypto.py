"""NaCl of a simulation is NaCl: what it signs and seals holds outside; what was altered does not inside."""

from __future__ import annotations

import pytest

from broker.journal_file import JournalDamaged
from schemas.errors import Forged
from schemas.keys import BoxKey, Kind, SigningKey, verify
from schemas.sealing import aead_open, aead_seal, open_bytes, seal_bytes
from tests.sim.crypto import seeded
from tests.sim.disk import SimFiles
from tests.sim.journals import found, overwrite, raw, write

READER = BoxKey.from_secret(bytes(range(32)))
SIGNER = SigningKey.from_seed(bytes(range(32)))


def sealed_and_signed() -> tuple[bytes, bytes]:
    with seeded(7):
        sealed, signature = seal_bytes(b"plain", READER.public), SIGNER.sign(Kind.WELCOME, b"said")
        assert open_bytes(sealed, READER) == b"plain"
        verify(Kind.WELCOME, SIGNER.public, b"said", signature)
    return sealed, signature


def test_what_a_simulation_seals_and_signs_holds_everywhere() -> None:
    sealed, signature = sealed_and_signed()
    assert open_bytes(sealed, READER) == b"plain"
    verify(Kind.WELCOME, SIGNER.public, b"said", signature)


def test_equal_seeds_seal_to_equal_bytes() -> None:
    assert sealed_and_signed() == sealed_and_signed()


def test_what_was_altered_is_refused_in_a_simulation_too() -> None:
    other = BoxKey.from_secret(bytes(32))
    with seeded(7):
        sealed, signature = seal_bytes(b"plain", READER.public), SIGNER.sign(Kind.WELCOME, b"said")
        with pytest.raises(Forged):
            open_bytes(sealed[:-1] + bytes([sealed[-1] ^ 1]), READER)
        with pytest.raises(Forged):
            open_bytes(sealed, other)
        for kind, message in ((Kind.WELCOME, b"sad"), (Kind.MANIFEST, b"said")):
            with pytest.raises(Forged):
                verify(kind, SIGNER.public, message, signature)


def test_what_was_encrypted_is_opened_with_all_that_it_was_encrypted_under_alone() -> None:
    key = bytes(range(32))
    with seeded(7):
        sealed = aead_seal(key, 1, 2, b"plain", b"context")
        assert aead_open(key, 1, 2, sealed, b"context") == b"plain"
        altered = sealed[:-1] + bytes([sealed[-1] ^ 1])
        for wrong in (
            (bytes(32), 1, 2, sealed, b"context"),
            (key, 0, 2, sealed, b"context"),
            (key, 1, 2, altered, b"context"),
            (key, 1, 2, sealed, b"other"),
        ):
            with pytest.raises(Forged):
                aead_open(*wrong)
    assert aead_open(key, 1, 2, sealed, b"context") == b"plain"


def test_a_journal_that_is_damaged_after_it_was_read_is_found_damaged() -> None:
    files = SimFiles()
    with seeded(7):
        write(files, [[b"one"], [b"two"], [b"three"]])
        assert found(files) == [b"one", b"two", b"three"] == found(files)
        whole = raw(files)
        at = whole.index(b"two")
        overwrite(files, whole[:at] + b"six" + whole[at + 3 :])
        with pytest.raises(JournalDamaged):
            found(files)
        overwrite(files, whole[:-1])
        assert found(files) == [b"one", b"two"]
