"""The time at which a picture was taken, painted into it, so that its true age can be read after any decoder.

Five rows of eight fields of 16x16 px in the top left corner: 32 bits of the monotonic clock in units of 0.1 ms, least
bit first, and 8 bits for a check. White is one. Fields so large survive H.264 at any rate. The clock is the same for
all processes of a Linux system. Only the standard library, because the camera runs in the system's Python.
"""

from __future__ import annotations

import time
from typing import Any

FIELD_PX = 16
COLUMNS, ROWS = 8, 5
MIN_SIZE_WH = (COLUMNS * FIELD_PX, ROWS * FIELD_PX)
"""The least size of a picture."""

_BITS = 32
_UNIT_S = 1e-4
_WHITE, _BLACK = b"\xeb" * FIELD_PX, b"\x10" * FIELD_PX


def paint(luma: bytearray, width: int, now_s: float) -> None:
    """Paints a time into the luma plane, which comes first in `luma`."""
    word = _word(now_s)
    for row in range(ROWS):
        line = b"".join(_WHITE if word >> (COLUMNS * row + column) & 1 else _BLACK for column in range(COLUMNS))
        for y in range(FIELD_PX * row, FIELD_PX * (row + 1)):
            luma[y * width : y * width + len(line)] = line


def age_ms(image: Any, now_s: float | None = None) -> float | None:
    """Milliseconds since a picture (H, W, 3) was taken; None when its fields are damaged."""
    half = FIELD_PX // 2
    word = 0
    for row in range(ROWS):
        for column in range(COLUMNS):
            y, x = FIELD_PX * row + half, FIELD_PX * column + half
            word |= int(image[y - 3 : y + 3, x - 3 : x + 3].mean() > 127) << (COLUMNS * row + column)
    units = word & (1 << _BITS) - 1
    if word != _with_check(units):
        return None
    now_units = round((time.monotonic() if now_s is None else now_s) / _UNIT_S)
    return (now_units - units) % (1 << _BITS) * _UNIT_S * 1e3


def _word(now_s: float) -> int:
    return _with_check(round(now_s / _UNIT_S) % (1 << _BITS))


def _with_check(units: int) -> int:
    """Not zero for zero: a black picture is no stamp."""
    check = (
        0xA5 + sum((units >> shift & 0xFF) * factor for shift, factor in ((0, 1), (8, 3), (16, 5), (24, 7)))
    ) & 0xFF
    return units | check << _BITS
