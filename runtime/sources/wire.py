"""Packets between a capture process and its parent, over a Unix socket that keeps packet boundaries.

From the child: `F` a frame in the ring (binary), `A` frames come but none is sent (binary), `R` a new ring, with its
file descriptor (JSON), `E` an event (JSON), `X` the last word (JSON). From the parent: first the request (JSON), then
`r` a slot is free again (binary), `s` stop.
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from typing import Any

MAX_PACKET_BYTES = 65536
"""No packet is longer, requests with their URLs included."""

_FRAME = struct.Struct("<cIIQIIddddfII")
_ALIVE = struct.Struct("<cI")
_RELEASE = struct.Struct("<cII")
STOP = b"s"


@dataclass(frozen=True, kw_only=True, slots=True)
class FramePacket:
    """A frame that waits in a slot of the ring."""

    generation: int
    """Number of the ring, from 1."""
    slot: int
    """Place in the ring."""
    index: int
    """Number of the frame in its connection, from 0."""
    height: int
    """Pixels."""
    width: int
    """Pixels."""
    media_time_s: float | None
    """Seconds in the stream."""
    captured_at: float
    """Wall clock, seconds since the epoch."""
    monotonic_s: float
    """`time.monotonic()`, one clock for all processes of a machine."""
    lag_s: float | None
    """Seconds behind the quickest frames."""
    decode_ms: float
    """Milliseconds."""
    num_dropped: int
    """Since the frame before, for want of a free slot."""
    num_skipped: int
    """Since the frame before, because of the frame rate cap."""
    path: str
    """File of a picture, or nothing."""

    def pack(self) -> bytes:
        """As bytes."""
        head = _FRAME.pack(
            b"F",
            self.generation,
            self.slot,
            self.index,
            self.height,
            self.width,
            _nan(self.media_time_s),
            self.captured_at,
            self.monotonic_s,
            _nan(self.lag_s),
            self.decode_ms,
            self.num_dropped,
            self.num_skipped,
        )
        return head + self.path.encode("utf-8", "surrogateescape")


def unpack_frame(packet: bytes) -> FramePacket:
    """A packet `F`; raises struct.error when it is too short."""
    (
        _,
        generation,
        slot,
        index,
        height,
        width,
        media_s,
        captured_at,
        monotonic_s,
        lag_s,
        decode_ms,
        dropped,
        skipped,
    ) = _FRAME.unpack_from(packet)
    return FramePacket(
        generation=generation,
        slot=slot,
        index=index,
        height=height,
        width=width,
        media_time_s=_none(media_s),
        captured_at=captured_at,
        monotonic_s=monotonic_s,
        lag_s=_none(lag_s),
        decode_ms=decode_ms,
        num_dropped=dropped,
        num_skipped=skipped,
        path=packet[_FRAME.size :].decode("utf-8", "surrogateescape"),
    )


def pack_alive(num_dropped: int) -> bytes:
    """A packet `A`."""
    return _ALIVE.pack(b"A", num_dropped)


def pack_json(kind: bytes, message: dict[str, Any]) -> bytes:
    """A packet of JSON."""
    return kind + json.dumps(message).encode("ascii")


def pack_release(generation: int, slot: int) -> bytes:
    """A packet `r`."""
    return _RELEASE.pack(b"r", generation, slot)


def unpack_release(packet: bytes) -> tuple[int, int]:
    """Generation and slot of a packet `r`."""
    _, generation, slot = _RELEASE.unpack(packet)
    return generation, slot


def _nan(value: float | None) -> float:
    return math.nan if value is None else value


def _none(value: float) -> float | None:
    return None if math.isnan(value) else value
