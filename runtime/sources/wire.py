"""Packets between a capture process and its parent, over a Unix socket that keeps packet boundaries.

From the child: `F` a frame in the ring (binary), `A` frames arrive but none is sent (binary), `R` a new ring, with its
file descriptor (JSON), `E` an event (JSON), `X` the reason of the end (JSON). From the parent: first the request
(JSON), then `r` a slot is free again (binary), `s` stop.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerpn.runtime.frame import Frame

MAX_PACKET_BYTES = 65536
"""No packet is longer, requests with their URLs included."""

ImageOfSlot = Callable[[int, int, tuple[int, int, int]], npt.NDArray[np.uint8]]
"""The picture in a slot; takes the number of the ring, the slot, and height, width and channels."""

_FRAME = struct.Struct("<cIIQIIIddddfIIII")
_ALIVE = struct.Struct("<cI")
_RELEASE = struct.Struct("<cII")
STOP = b"s"


def pack_frame(frame: Frame, *, generation: int, slot: int) -> bytes:
    """Packs a packet `F`: a frame without its picture, which waits in a slot of the ring, and without its source."""
    height, width, num_channels = frame.image.shape
    return _FRAME.pack(
        b"F",
        generation,
        slot,
        frame.index,
        height,
        width,
        num_channels,
        _nan(frame.media_time_s),
        frame.captured_at,
        frame.monotonic_s,
        _nan(frame.lag_ms),
        frame.decode_ms,
        frame.num_dropped,
        frame.num_skipped,
        *(frame.camera_hw or (0, 0)),
    )


def unpack_frame(packet: bytes, image: ImageOfSlot, *, source: str, connection: int, first_index: int) -> Frame:
    """Unpacks the frame of a packet `F`.

    Args:
        packet: As `pack_frame` made it.
        image: Returns the picture in a slot of the ring.
        source: Name of the source.
        connection: Number of the connection, from 1.
        first_index: Number of the connection's first frame in its source.

    Raises:
        struct.error: The packet is too short.
        ValueError: The ring has no such picture.
    """
    _, generation, slot, index, *rest, num_dropped, num_skipped, camera_h, camera_w = _FRAME.unpack_from(packet)
    height, width, num_channels, media_s, captured_at, monotonic_s, lag_ms, decode_ms = rest
    return Frame(
        image=image(generation, slot, (height, width, num_channels)),
        source=source,
        index=first_index + index,
        media_time_s=_none(media_s),
        captured_at=captured_at,
        monotonic_s=monotonic_s,
        decode_ms=decode_ms,
        connection=connection,
        lag_ms=_none(lag_ms),
        num_dropped=num_dropped,
        num_skipped=num_skipped,
        camera_hw=(camera_h, camera_w) if camera_h else None,
    )


def pack_alive(num_dropped: int) -> bytes:
    """Packs a packet `A`."""
    return _ALIVE.pack(b"A", num_dropped)


def pack_json(kind: bytes, message: dict[str, Any]) -> bytes:
    """Packs a packet of JSON."""
    return kind + json.dumps(message).encode("ascii")


def pack_release(generation: int, slot: int) -> bytes:
    """Packs a packet `r`."""
    return _RELEASE.pack(b"r", generation, slot)


def unpack_release(packet: bytes) -> tuple[int, int]:
    """Unpacks generation and slot of a packet `r`."""
    _, generation, slot = _RELEASE.unpack(packet)
    return generation, slot


def _nan(value: float | None) -> float:
    return math.nan if value is None else value


def _none(value: float) -> float | None:
    return None if math.isnan(value) else value
