"""Keys and signatures: lengths, weak points, one purpose per signature, the chain from the pinned root."""

from __future__ import annotations

from itertools import permutations

import msgspec
import pytest

from schemas.errors import Forged, KeyRefused, Malformed, WireError
from schemas.ids import DeviceId, federation_id, key_id
from schemas.keys import (
    BoxKey,
    Certificate,
    KeySet,
    Kind,
    SigningKey,
    checked_box_public,
    checked_key,
    open_certificate,
    open_key_set,
    open_struct,
    sign_struct,
    verify,
)
from schemas.sealing import (
    aead_open,
    aead_seal,
    commitment,
    derive,
    open_bytes,
    open_key,
    seal_bytes,
    seal_key,
)
from tests.schemas.parties import (
    CERTIFICATE,
    CERTIFICATE_BLOB,
    COORDINATOR_BOX,
    DEVICE,
    DEVICE_BOX,
    DEVICE_ID,
    FEDERATION,
    KEY_SET,
    KEY_SET_BLOB,
    ONLINE,
    OTHER,
    OTHER_BOX,
    OTHER_FEDERATION,
    ROOT,
    secret,
    signing,
)

P = 2**255 - 19
ORDER_8 = (
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
)
# RFC 7748, section 6.1, and https://cr.yp.to/ecdh.html#validate: all encodings of all points of low order.
LOW_ORDER = [bytes.fromhex(point) for point in ORDER_8] + [
    value.to_bytes(32, "little") for value in (0, 1, P - 1, P, P + 1)
]
LOW_ORDER += [point[:31] + bytes([point[31] | 0x80]) for point in LOW_ORDER]

# Ed25519 public keys under which everybody can make signatures: the points of order 1, 2, 4 and 8.
WEAK_SIGNERS = [
    (1).to_bytes(32, "little"),
    (P - 1).to_bytes(32, "little"),
    bytes(32),
    bytes.fromhex("c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a"),
    bytes.fromhex("26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05"),
]


@pytest.mark.parametrize("point", LOW_ORDER, ids=bytes.hex)
def test_an_x25519_key_of_low_order_is_refused(point: bytes) -> None:
    for use in (checked_box_public, lambda key: seal_key(secret("k"), key), lambda key: seal_bytes(b"", key)):
        with pytest.raises(KeyRefused, match="low order"):
            use(point)


@pytest.mark.parametrize("length", [0, 1, 31, 33, 64])
def test_a_key_of_another_length_is_refused_with_one_error(length: int) -> None:
    key = bytes(range(1, length + 1))
    uses = (
        lambda: checked_key(key),
        lambda: checked_box_public(key),
        lambda: SigningKey.from_seed(key),
        lambda: BoxKey.from_secret(key),
        lambda: verify(Kind.ENVELOPE, key, b"", bytes(64)),
        lambda: seal_key(key, COORDINATOR_BOX.public),
        lambda: seal_key(secret("k"), key),
        lambda: seal_bytes(b"", key),
        lambda: derive(key, b"fb1.enc", b""),
        lambda: aead_seal(key, 0, 1, b"", b""),
        lambda: aead_open(key, 0, 1, bytes(16), b""),
        lambda: commitment(key, b"fb1.commit", b"", bytes(32)),
    )
    for use in uses:
        with pytest.raises(KeyRefused):
            use()


@pytest.mark.parametrize("length", range(100))
def test_sealed_bytes_of_any_length_that_do_not_open_raise_one_error(length: int) -> None:
    for data in (bytes(length), seal_bytes(bytes(100), OTHER_BOX.public)[:length]):
        with pytest.raises(Forged):
            open_key(data, COORDINATOR_BOX)
        with pytest.raises(Forged):
            open_bytes(data, COORDINATOR_BOX)
        with pytest.raises(Forged):
            aead_open(secret("k"), 0, 1, data, b"")


def test_what_is_sealed_to_one_reader_opens_for_no_other() -> None:
    for sealed in (seal_key(secret("k"), OTHER_BOX.public), seal_bytes(secret("k"), OTHER_BOX.public)):
        assert open_bytes(sealed, OTHER_BOX) == secret("k")
        with pytest.raises(Forged):
            open_bytes(sealed, COORDINATOR_BOX)


def test_a_key_is_held_to_its_commitment() -> None:
    expected = derive(secret("k"), b"fb1.commit", b"context")
    commitment(secret("k"), b"fb1.commit", b"context", expected)
    for key, person, context, committed in (
        (secret("K"), b"fb1.commit", b"context", expected),
        (secret("k"), b"fb1.enc", b"context", expected),
        (secret("k"), b"fb1.commit", b"another", expected),
        (secret("k"), b"fb1.commit", b"context", expected[:31]),
        (secret("k"), b"fb1.commit", b"context", b""),
    ):
        with pytest.raises(KeyRefused):
            commitment(key, person, context, committed)


@pytest.mark.parametrize(("made", "read"), list(permutations(Kind, 2)), ids=lambda kind: kind.name)
def test_a_signature_of_one_kind_never_passes_for_another(made: Kind, read: Kind) -> None:
    signature = DEVICE.sign(made, b"message")
    verify(made, DEVICE.public, b"message", signature)
    with pytest.raises(Forged):
        verify(read, DEVICE.public, b"message", signature)
    # Nor with the other kind's prefix moved into the message, or a part of it taken away.
    for message in (made.value + b"message", read.value + b"message", b"\0message", b"essage", b""):
        with pytest.raises(Forged):
            verify(read, DEVICE.public, message, signature)


def test_no_kinds_prefix_begins_another() -> None:
    assert all(kind.value.endswith(b"\0") and kind.value.count(b"\0") == 1 for kind in Kind)
    assert not any(a.value.startswith(b.value) for a, b in permutations(Kind, 2))


@pytest.mark.parametrize("length", [0, 63, 65, 128])
def test_a_signature_of_another_length_is_refused(length: int) -> None:
    signature = (DEVICE.sign(Kind.ENVELOPE, b"m") * 2)[:length]
    with pytest.raises(Forged):
        verify(Kind.ENVELOPE, DEVICE.public, b"m", signature)


@pytest.mark.parametrize("public", WEAK_SIGNERS, ids=bytes.hex)
def test_a_signer_of_low_order_signs_nothing(public: bytes) -> None:
    for signature in (public + bytes(32), WEAK_SIGNERS[0] + bytes(32), bytes(64)):
        with pytest.raises(Forged):
            verify(Kind.ENVELOPE, public, b"m", signature)


def test_a_signature_with_its_scalar_moved_by_the_group_order_is_refused() -> None:
    """RFC 8032, section 8.4: or a signature could be changed without the key."""
    signature = DEVICE.sign(Kind.ENVELOPE, b"m")
    moved = int.from_bytes(signature[32:], "little") + 2**252 + 27742317777372353535851937790883648493
    with pytest.raises(Forged):
        verify(Kind.ENVELOPE, DEVICE.public, b"m", signature[:32] + moved.to_bytes(32, "little"))


def test_secrets_do_not_show_when_a_key_is_printed() -> None:
    shown = repr((DEVICE, DEVICE_BOX))
    assert repr(DEVICE.seed) not in shown
    assert repr(DEVICE_BOX.secret) not in shown


def test_a_key_set_signed_by_the_pinned_root_is_taken() -> None:
    assert open_key_set(KEY_SET_BLOB, ROOT.public, FEDERATION) == KEY_SET
    assert open_key_set(KEY_SET_BLOB, ROOT.public, FEDERATION, newest=1) == KEY_SET
    assert federation_id(ROOT.public) == FEDERATION


def test_an_older_key_set_is_refused() -> None:
    with pytest.raises(Forged, match="older"):
        open_key_set(KEY_SET_BLOB, ROOT.public, FEDERATION, newest=2)


def test_a_key_set_of_a_substituted_root_is_refused() -> None:
    substitute = sign_struct(Kind.KEY_SET, signing("substituted root"), KEY_SET)
    with pytest.raises(Forged):
        open_key_set(substitute, ROOT.public, FEDERATION)
    with pytest.raises(Forged):
        open_key_set(sign_struct(Kind.KEY_SET, ONLINE, KEY_SET), ROOT.public, FEDERATION)


def test_a_key_set_of_another_federation_is_refused() -> None:
    with pytest.raises(Forged, match="another federation"):
        open_key_set(KEY_SET_BLOB, ROOT.public, OTHER_FEDERATION)


@pytest.mark.parametrize("field", ["signing", "box", "enrolment"])
@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_key_set_with_a_key_of_another_length_is_refused(field: str, length: int) -> None:
    keys = msgspec.structs.replace(KEY_SET, **{field: bytes(range(1, length + 1))})
    with pytest.raises(KeyRefused):
        open_key_set(sign_struct(Kind.KEY_SET, ROOT, keys), ROOT.public, FEDERATION)


@pytest.mark.parametrize("field", ["box", "enrolment"])
def test_a_key_set_with_a_key_of_low_order_is_refused(field: str) -> None:
    keys = msgspec.structs.replace(KEY_SET, **{field: LOW_ORDER[0]})
    with pytest.raises(KeyRefused):
        open_key_set(sign_struct(Kind.KEY_SET, ROOT, keys), ROOT.public, FEDERATION)


def test_a_certificate_holds_for_its_device_in_its_federation_only() -> None:
    assert open_certificate(CERTIFICATE_BLOB, KEY_SET, DEVICE_ID) == CERTIFICATE
    with pytest.raises(Forged):
        open_certificate(CERTIFICATE_BLOB, KEY_SET, DeviceId("press-08"))
    elsewhere = msgspec.structs.replace(KEY_SET, federation=OTHER_FEDERATION)
    with pytest.raises(Forged):
        open_certificate(CERTIFICATE_BLOB, elsewhere, DEVICE_ID)


@pytest.mark.parametrize("signer", [ROOT, DEVICE, OTHER], ids=["root", "the device", "another device"])
def test_a_certificate_not_signed_by_the_online_key_is_refused(signer: SigningKey) -> None:
    with pytest.raises(Forged):
        open_certificate(sign_struct(Kind.CERTIFICATE, signer, CERTIFICATE), KEY_SET, DEVICE_ID)


def test_a_signed_document_cut_or_changed_anywhere_is_refused() -> None:
    for at in range(len(CERTIFICATE_BLOB)):
        for data in (
            CERTIFICATE_BLOB[:at],
            CERTIFICATE_BLOB[:at] + bytes([CERTIFICATE_BLOB[at] ^ 1]) + CERTIFICATE_BLOB[at + 1 :],
        ):
            with pytest.raises(WireError):
                open_certificate(data, KEY_SET, DEVICE_ID)


def test_a_signed_document_of_another_type_is_refused() -> None:
    with pytest.raises(Malformed):
        open_struct(Kind.KEY_SET, ROOT.public, sign_struct(Kind.KEY_SET, ROOT, CERTIFICATE), KeySet)
    untagged = ROOT.sign(Kind.CERTIFICATE, b"\x80") + b"\x80"
    with pytest.raises(Malformed):
        open_struct(Kind.CERTIFICATE, ROOT.public, untagged, Certificate)


def test_a_key_id_names_one_key() -> None:
    assert len({key_id(key.public) for key in (ROOT, ONLINE, DEVICE, OTHER, DEVICE_BOX, OTHER_BOX)}) == 6
    assert DEVICE.id == key_id(DEVICE.public)
