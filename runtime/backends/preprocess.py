"""Fits frames of any size to the graph's input, and maps its boxes back to the frame."""

from __future__ import annotations

import dataclasses
import threading
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from edgerpn.errors import InputError
from edgerpn.letterbox import Letterbox, letterbox
from edgerpn.manifest import Manifest
from edgerpn.proposals import DESCRIPTIONS, Outputs, Proposals
from edgerpn.runtime.opencv import load_cv2


def check_image(image: object, *, takes_bgrx: bool = False) -> npt.NDArray[np.uint8]:
    """Returns `image` if it is a picture that a model takes.

    Args:
        image: (H, W, 3) uint8 BGR.
        takes_bgrx: Whether (H, W, 4) BGRx will do too.

    Raises:
        InputError: It is not such an array.
    """
    if not isinstance(image, np.ndarray):
        raise InputError(f"frame: expected a NumPy array of shape (H, W, 3), got {type(image).__name__}")
    if image.ndim != 3 or image.shape[2] not in ((3, 4) if takes_bgrx else (3,)) or not image.size:
        hints = {2: " Turn a grey picture into BGR with cv2.cvtColor(frame, cv2.COLOR_GRAY2BGR).",
                 4: " Pass one frame at a time, or several to `batch`."}  # fmt: skip
        hint = hints.get(image.ndim, " Drop the alpha channel: frame[..., :3]." if image.shape[-1:] == (4,) else "")
        raise InputError(f"frame: expected shape (H, W, 3), got {image.shape}.{hint}")
    if image.dtype != np.uint8:
        raise InputError(f"frame: expected dtype uint8 (0..255, BGR, not normalised), got {image.dtype}")
    return image


def in_frame(proposals: Proposals, fit: Letterbox) -> Proposals:
    """Returns proposals for a frame that was letterboxed by `fit`, in pixels of the frame as it was before."""
    boxes = fit.to_frame(proposals.boxes)
    return dataclasses.replace(proposals, boxes=boxes)[_has_area(boxes)]


class Preprocessor:
    """Fits frames to a model and boxes to frames; threads may share it."""

    def __init__(self, manifest: Manifest) -> None:
        """Takes sizes and rule from `manifest`."""
        self._source_hw = manifest.input.source_hw
        self._network_hw = manifest.input.network_hw
        self._frame_shape = manifest.input.frame_shape
        self._class_names = manifest.class_names
        self.takes_bgrx = manifest.input.num_channels == 4
        self._local = threading.local()
        # Only letterboxing on the host needs OpenCV; a graph with a fixed source size resizes by itself.
        self._resize = load_cv2().resize if self._source_hw is None else None

    def prepare(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Returns the graph's input for one frame.

        Args:
            image: As `check_image` returned it.

        Returns:
            (1, H, W, C) uint8; reused by the next call from the same thread.

        Raises:
            InputError: The model is made for frames of another size.
        """
        if self._resize is None:
            self._check_size(image)
            fitted = np.ascontiguousarray(image)
        else:
            fitted = self._buffer(image.shape[2])
            _geometry(_hw(image), self._network_hw).apply(np.ascontiguousarray(image), self._resize, out=fitted)
        if fitted.shape[2] < self._frame_shape[2]:
            # NumPy copies three bytes of each four many times slower.
            cv2 = load_cv2()
            fitted = cv2.cvtColor(fitted, cv2.COLOR_BGR2BGRA, dst=self._buffer(4))
        return fitted[None]

    def restore(self, outputs: Outputs, row: int, frame_hw: tuple[int, int]) -> Proposals:
        """Proposals of one frame from one row of the graph's outputs.

        Args:
            outputs: Boxes in pixels of the graph's input.
            row: Number of the frame in them.
            frame_hw: Height and width of the frame, pixels.
        """
        count = int(outputs.count[row])
        boxes, scores = outputs.boxes[row, :count], outputs.scores[row, :count]
        described: dict[str, Any] = {
            name: array[row, :count] for name, array in outputs.present.items() if name in DESCRIPTIONS
        }
        described["class_names"] = self._class_names
        if self._resize is not None:
            boxes = _geometry(frame_hw, self._network_hw).to_frame(boxes)
            is_inside = _has_area(boxes)
            if not is_inside.all():
                return Proposals(boxes, scores, **described)[is_inside]
        return Proposals(boxes, scores, **described)

    def _buffer(self, num_channels: int) -> npt.NDArray[np.uint8]:
        """Returns a picture of the graph's size to be filled, the same one for each call of a thread."""
        # Allocating one for each frame costs more than filling it.
        name = f"of_{num_channels}"
        if not hasattr(self._local, name):
            setattr(self._local, name, np.empty((*self._frame_shape[:2], num_channels), np.uint8))
        buffer: npt.NDArray[np.uint8] = getattr(self._local, name)
        return buffer

    def _check_size(self, image: npt.NDArray[np.uint8]) -> None:
        if self._source_hw is not None and _hw(image) != self._source_hw:
            (height, width), (want_h, want_w) = _hw(image), self._source_hw
            raise InputError(
                f"frame: this model is made for frames of {want_h}x{want_w} (height x width), got {height}x{width}. "
                f"Export it with --source-size {height}x{width}, or without --source-size for frames of any size."
            )


def _has_area(boxes_xyxy: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Whether boxes (M, 4) have area; one inside the padding has none once it is clipped to the frame."""
    return (boxes_xyxy[:, 2] > boxes_xyxy[:, 0]) & (boxes_xyxy[:, 3] > boxes_xyxy[:, 1])


def _hw(image: npt.NDArray[np.uint8]) -> tuple[int, int]:
    return image.shape[0], image.shape[1]


@lru_cache(maxsize=64)
def _geometry(frame_hw: tuple[int, int], network_hw: tuple[int, int]) -> Letterbox:
    return letterbox(frame_hw, network_hw)
