"""What the fields of events and models are made of, with their bounds."""

from __future__ import annotations

from typing import Annotated

import msgspec

from schemas.limits import (
    CHUNK_BYTES_MAX,
    CHUNK_BYTES_MIN,
    CHUNKS_MAX,
    PULL_CHUNKS_MAX,
    SECONDS_MAX,
    TEXT_CHARS_MAX,
)

Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Key = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Transfer = Annotated[bytes, msgspec.Meta(min_length=16, max_length=16)]
Name = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")]
Text = Annotated[str, msgspec.Meta(max_length=TEXT_CHARS_MAX)]
Metrics = Annotated[dict[Text, float], msgspec.Meta(max_length=64)]
Seconds = Annotated[float, msgspec.Meta(ge=0, le=SECONDS_MAX)]  # finite: NaN and infinities are outside
ChunkBytes = Annotated[int, msgspec.Meta(ge=CHUNK_BYTES_MIN, le=CHUNK_BYTES_MAX)]
Index = Annotated[int, msgspec.Meta(ge=0, lt=CHUNKS_MAX)]
Indices = Annotated[list[Index], msgspec.Meta(max_length=CHUNKS_MAX)]
PullIndices = Annotated[list[Index], msgspec.Meta(max_length=PULL_CHUNKS_MAX)]
