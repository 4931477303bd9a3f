"""What is played: a re-keyed export, with the keys of all who speak in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from broker.bodies import Bodies
from broker.bus import Credentials, Tls
from broker.journal import Journal
from broker.ports import Ports
from coordinator.config import PASSWORD
from coordinator.entries import Logged, decode_entry
from coordinator.keystore import KeyStore, load_identity
from coordinator.onto import OntoRefused
from coordinator.recovery import FOLDER
from coordinator.rekey import devices
from coordinator.rekey.updates import Found, open_stored
from coordinator.store import Store
from coordinator.stored import read_envelope, stored_name
from schemas.codec import unpack
from schemas.ids import COORDINATOR, FederationId, broker_user, federation_id
from schemas.keys import BoxKey, KeySet, SigningKey, open_key_set


class Throwaway(msgspec.Struct, frozen=True, kw_only=True):
    """A device of an export: of its ``identity`` (`coordinator.rekey.devices`), what it speaks with."""

    device: str
    root: bytes
    password: str
    signing_seed: bytes
    box_secret: bytes
    key_set: bytes

    @property
    def federation(self) -> FederationId:
        return federation_id(self.root)

    @property
    def signing(self) -> SigningKey:
        return SigningKey.from_seed(self.signing_seed)

    @property
    def box(self) -> BoxKey:
        return BoxKey.from_secret(self.box_secret)

    @property
    def keys(self) -> KeySet:
        """The coordinator's."""
        return open_key_set(self.key_set, self.root, self.federation)


class Source:
    """A re-keyed export, opened for reading. Close it. ``ca`` is the PEM text of the authority of the broker
    at which it is played.

    Raises `OntoRefused`, `broker.journal.JournalError`, `coordinator.keystore.KeysMissing`.
    """

    def __init__(self, ports: Ports, directory: Path, ca: str = "") -> None:
        self.directory = directory
        self._tls = Tls(ca=ca)
        self._files = files = ports.files
        self.identity = load_identity(files, directory)
        self.names = files.names(directory / devices.FOLDER)
        if not files.exists(directory / devices.MARK):
            raise OntoRefused(
                f"{directory} is no re-keyed export (it has no file `{devices.MARK}`), and a "
                f"federation's own keys are never played; make one with `fedbus-coordinator journal export "
                f"--rekey TARGET --dir {directory}`, and name TARGET"
            )
        self.journal = Journal.open(files, directory / FOLDER, self.identity.federation, read_only=True)
        if self.journal.before.index:
            self.journal.close()
            raise OntoRefused(
                f"{directory} was pruned: what is played begins with the first entry; export anew"
            )
        self.keys = KeyStore(files, directory, ports.entropy)
        self.store = Store(files, directory, self.identity, self.keys)
        self._bodies = Bodies(files, directory / "bodies")

    def close(self) -> None:
        """Again: no effect."""
        self.journal.close()

    def device(self, name: str) -> Throwaway:
        """A device's keys. Raises `OntoRefused`."""
        path = self.directory / devices.FOLDER / name / "identity"
        if not self._files.exists(path):
            there = ", ".join(self.names) or "none"
            raise OntoRefused(f"{self.directory} has no device {name}; its devices: {there}")
        return unpack(self._files.read(path), Throwaway)

    def member(self, device: Throwaway) -> Credentials:
        """A device's user at the broker."""
        return self._user(device.device, device.password)

    def coordinator(self) -> Credentials:
        """The coordinator's user at the broker."""
        path = self.directory / PASSWORD
        password = self._files.read(path).decode().strip() if self._files.exists(path) else ""
        return self._user(COORDINATOR, password)

    def _user(self, name: str, password: str) -> Credentials:
        user = broker_user(self.identity.federation, name)
        # Nothing of its session stays at the broker.
        return Credentials(user, user if password else None, password or None, self._tls, durable=False)

    def entries(self) -> Iterator[Logged]:
        """All of the log."""
        return (decode_entry(logged.data) for logged in self.journal.entries())

    def require_content(self, job: str, round_: int, recipient: bytes, digest: bytes) -> None:
        """Raises `OntoRefused` if this update, which was folded, is not all there."""
        with self.update(job, round_, recipient, digest) as found:
            if found is None or not found.whole:
                raise OntoRefused(
                    f"{self.directory} has no whole update of round {round_} of job {job}: export with "
                    f"--bodies keep, while the keys of its requests are there"
                )

    @contextmanager
    def update(self, job: str, round_: int, recipient: bytes, digest: bytes) -> Iterator[Found | None]:
        """The stored update ``digest`` to the key id ``recipient``, opened, until the context ends."""
        key = self.keys.request_key(job, round_, recipient)
        file = self._bodies.open(stored_name(recipient, digest))
        try:
            envelope, at = read_envelope(file)
            yield open_stored(file, envelope, at, key, self.identity.federation) if key else None
        finally:
            file.close()
