"""What the log says that a device claimed in its update, beside the update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from broker.ports import File
from coordinator.facts import UpdateJudged
from coordinator.keystore import RequestKeys
from coordinator.stored import read_envelope
from schemas.envelope import open_envelope
from schemas.errors import WireError
from schemas.events import decode_from_device

CLAIMED: Final = ("samples", "steps", "train_s", "metrics", "evaluation", "content")


@dataclass(frozen=True, slots=True)
class Claims:
    """Opens updates as far as their claims go; their content is a matter of `coordinator.replay`."""

    keys: RequestKeys
    federation: bytes

    def look(self, file: File, fact: UpdateJudged, round_: int) -> str:
        """How the stored update differs from the verdict that folded it; nothing if its key was destroyed."""
        of = f"device {fact.device}, request {fact.request} of job {fact.job}"
        try:
            envelope, _ = read_envelope(file)
            key = self.keys.request_key(fact.job, round_, envelope.clear.recipient)
            if key is None:
                return ""
            said = decode_from_device(open_envelope(envelope, key, self.federation).inner)
        except WireError as error:
            return f"{of}: folded, and its update does not open: {error}"
        for name in CLAIMED:
            sealed, told = getattr(said, name, None), getattr(fact, name)
            if repr(sealed) != repr(told):  # as text: a measured NaN equals itself
                return f"{of}: {name} {told!r}, and its device sealed {sealed!r}"
        return ""
