"""Which encoding a device is asked for, and which ones a job takes. Pure.

A device says what it can do; a job names one encoding; float32 is always taken. What an update is encoded in
stands in the update itself, so nothing here has to be remembered.
"""

from __future__ import annotations

import msgspec

from schemas.encodings import FLOAT32, Encoding, encoded_bytes
from schemas.events import DeviceStatus
from schemas.jobs import JobSpec
from schemas.models import Layout


def wanted_encoding(spec: JobSpec, layout: Layout) -> Encoding:
    """That of a job's updates, from devices that can."""
    return spec.compression.encoding(layout.trained_count)


def asked_encoding(
    spec: JobSpec, layout: Layout, status: DeviceStatus | None
) -> Encoding | msgspec.UnsetType:
    """What a device with this status is asked for; unset is float32."""
    encoding = wanted_encoding(spec, layout)
    known = [] if status is None or status.encodings is msgspec.UNSET else status.encodings
    return encoding if encoding != FLOAT32 and encoding.name in known else msgspec.UNSET


def update_sizes(spec: JobSpec, layout: Layout) -> list[int]:
    """How many bytes the content of an update may have."""
    kinds = (FLOAT32, wanted_encoding(spec, layout))
    return sorted({encoded_bytes(encoding, layout.trained_count) for encoding in kinds})
