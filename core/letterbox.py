"""Frame geometry: letterboxes a frame of any size into the network's input, and maps boxes back.

The rule, `top_left`: scale by one factor so that the frame just fits, round its size to whole pixels, put it into
the top left corner and fill the rest with a grey of 114. Boxes then need a scale and no offset.
Pixel coordinates are continuous: a frame of width W spans 0 to W, and the centre of its first pixel is 0.5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerpn.errors import InputError

PAD_VALUE = 114
"""Grey level (0..255) of the padding, as in the YOLO family."""

Resize = Callable[[npt.NDArray[np.uint8], tuple[int, int]], Any]
"""Resizes an (H, W, C) uint8 image to (width, height), linear with half-pixel centres: `cv2.resize` fits."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Letterbox:
    """Position and scale of frames of `source_hw` in an input of `network_hw`; made by `letterbox`."""

    source_hw: tuple[int, int]
    """Height and width of the frame, pixels."""
    network_hw: tuple[int, int]
    """Height and width of the network's input, pixels."""
    content_hw: tuple[int, int]
    """Height and width of the scaled frame inside the input, pixels; it starts at the top left corner."""

    @property
    def scale_xy(self) -> tuple[float, float]:
        """Input pixels per frame pixel, along x and y; they differ only by the rounding of `content_hw`."""
        return self.content_hw[1] / self.source_hw[1], self.content_hw[0] / self.source_hw[0]

    def apply(
        self, frame: npt.NDArray[np.uint8], resize: Resize, *, out: npt.NDArray[np.uint8] | None = None
    ) -> npt.NDArray[np.uint8]:
        """Scales and pads `frame` to the network's input.

        Args:
            frame: (H, W, C) uint8, of `source_hw`; C is 3 or 4.
            resize: Resizes an image, for example `cv2.resize`; not called when no scaling is needed.
            out: (network height, network width, C) uint8 buffer to fill, or None for a new one.

        Returns:
            `out`, or the new array; owned by the caller.

        Raises:
            InputError: `frame` has another size and would be stretched.
        """
        if frame.shape[:2] != self.source_hw or frame.shape[2:] not in ((3,), (4,)):
            raise InputError(f"letterbox: expected a frame of shape {(*self.source_hw, 3)}, got {frame.shape}")
        content_h, content_w = self.content_hw
        if out is None:
            out = np.empty((*self.network_hw, frame.shape[2]), np.uint8)
        out[content_h:] = PAD_VALUE
        out[:content_h, content_w:] = PAD_VALUE
        same_size = self.content_hw == self.source_hw
        out[:content_h, :content_w] = frame if same_size else resize(frame, (content_w, content_h))
        return out

    def to_frame(self, boxes_xyxy: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Maps (..., 4) x1, y1, x2, y2 from network input pixels to frame pixels, clipped to the frame."""
        height, width = self.source_hw
        scale_x, scale_y = self.scale_xy
        boxes = boxes_xyxy / np.array([scale_x, scale_y, scale_x, scale_y], np.float32)
        limit = np.array([width, height, width, height], np.float32)
        return np.clip(boxes, 0, limit, dtype=np.float32)

    def to_network(self, boxes_xyxy: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Maps (..., 4) x1, y1, x2, y2 from frame pixels to network input pixels."""
        scale_x, scale_y = self.scale_xy
        return (boxes_xyxy * np.array([scale_x, scale_y, scale_x, scale_y], np.float32)).astype(np.float32)


def letterbox(source_hw: tuple[int, int], network_hw: tuple[int, int]) -> Letterbox:
    """Computes position and scale of frames of `source_hw` in an input of `network_hw` (height, width in pixels).

    Raises:
        InputError: A size is not positive.
    """
    if min(*source_hw, *network_hw) < 1:
        raise InputError(f"letterbox: sizes must be positive (height, width), got {source_hw} and {network_hw}")
    scale = min(network_hw[0] / source_hw[0], network_hw[1] / source_hw[1])
    # Half a pixel rounds up: a rule that other languages can repeat without banker's rounding.
    content_h = max(1, min(network_hw[0], int(source_hw[0] * scale + 0.5)))
    content_w = max(1, min(network_hw[1], int(source_hw[1] * scale + 0.5)))
    return Letterbox(source_hw=source_hw, network_hw=network_hw, content_hw=(content_h, content_w))


def crop_corners(
    boxes_xyxy: npt.NDArray[np.float32], frame_hw: tuple[int, int], *, margin: float
) -> list[tuple[int, int, int, int]]:
    """Returns x1, y1, x2, y2 of a crop for each box, in whole pixels inside the frame, at least one wide and high.

    Args:
        boxes_xyxy: (M, 4), pixels of the frame.
        frame_hw: Height and width of the frame, pixels.
        margin: Added on each side, as a share of the box's width and height.
    """
    height, width = frame_hw
    boxes = boxes_xyxy.astype(np.float64)
    margins = margin * np.tile(boxes[:, 2:] - boxes[:, :2], 2) * (-1, -1, 1, 1)
    x1, y1, x2, y2 = (boxes + margins).T
    left, top = np.clip(np.floor(x1), 0, width - 1), np.clip(np.floor(y1), 0, height - 1)
    right, bottom = np.clip(np.ceil(x2), left + 1, width), np.clip(np.ceil(y2), top + 1, height)
    return [tuple(row) for row in np.stack([left, top, right, bottom], axis=1).astype(int).tolist()]


def parse_hw(text: str) -> tuple[int, int]:
    """Reads "384x640" (height x width) or "640" (a square) into (height, width).

    Raises:
        ValueError: The text is neither, or a size is not positive.
    """
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"expected HEIGHTxWIDTH such as 384x640, or one number for a square, got {text!r}")
    height, width = int(parts[0]), int(parts[-1])
    return height, width
