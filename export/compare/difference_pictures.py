"""Draws the images on which two models differ most side by side; colours mark proposals of one model only."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from edgerpn import files
from edgerpn.export.compare.comparison import Comparison, ImageComparison
from edgerpn.matching import Boxes
from edgerpn.train.data.coco import read_image

NUM_PICTURES = 6
"""Images drawn by default."""

_MIN_WIDTH_PX, _MAX_WIDTH_PX = 480, 960
"""Width of one side; smaller photographs are enlarged, larger ones scaled down."""
_GAP_PX, _LINE_PX = 8, 22
_PAIRED_BGR, _BOUNDARY_BGR, _UNEXPLAINED_BGR, _RIM_BGR = (200, 200, 200), (0, 170, 255), (255, 0, 255), (20, 20, 20)
Color = tuple[int, int, int]
_FONT = cv2.FONT_HERSHEY_SIMPLEX


def write_pictures(comparison: Comparison, folder: Path, *, top: int = NUM_PICTURES) -> list[Path]:
    """Draws the worst images into `folder`; returns the files, the worst first.

    Args:
        comparison: The comparison to draw.
        folder: Made when missing; pictures of the same name are replaced.
        top: Images at most. Images without a difference are skipped, unless all are: then one is drawn.
    """
    worst = [image for image in comparison.worst if image.agreement.num_boundary or image.agreement.num_unexplained]
    written = []
    for rank, image in enumerate((worst or list(comparison.worst[:1]))[:top], start=1):
        path = folder / files.fitting(f"{rank:02d}_{image.file.stem}.png")
        picture = draw_comparison(image, comparison.names)
        with files.replacing(path) as temporary, files.native_path(temporary) as native:
            if not cv2.imwrite(native, picture):
                raise OSError(0, "OpenCV could not write the picture", str(path))
        written.append(path)
    return written


def draw_comparison(image: ImageComparison, names: tuple[str, str]) -> np.ndarray:
    """One image twice, with the proposals of the model on the left and of the reference on the right.

    Args:
        image: Proposals of both models.
        names: Names of the models.

    Returns:
        (H, W, 3) uint8 BGR. Thin grey: in both; orange: in one only, by a decision within rounding; magenta: in one
        only, unexplained.
    """
    photograph = read_image(image.file, image.exif)
    scale = float(np.clip(photograph.shape[1], _MIN_WIDTH_PX, _MAX_WIDTH_PX)) / photograph.shape[1]
    size = (round(photograph.shape[1] * scale), max(1, round(photograph.shape[0] * scale)))
    resized = cv2.resize(photograph, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    agreement = image.agreement
    # Rows of the agreement: 0 is the reference, 1 the model.
    panels = []
    for side, name in ((1, names[0]), (0, names[1])):
        boxes, scores = image.in_image[1 - side]
        paired = [pair[side] for pair in agreement.pairs]
        canvas = _dim(resized)
        for row in paired:
            _draw(canvas, boxes[row] * scale, _PAIRED_BGR, 1)
        marked = [(row, _BOUNDARY_BGR) for row in agreement.boundary[side]]
        marked += [(row, _UNEXPLAINED_BGR) for row in agreement.unexplained[side]]
        for row, color in sorted(marked, reverse=True):
            _draw(canvas, boxes[row] * scale, color, 2)
        _label(
            canvas, [(boxes[row] * scale, f"{row}: {float(scores[row]):.3f}", color) for row, color in sorted(marked)]
        )
        lines = (
            name,
            f"{len(paired)} in both, {len(agreement.boundary[side])} at a threshold (orange), "
            f"{len(agreement.unexplained[side])} unexplained (magenta)",
        )
        panels.append(np.concatenate((_caption(lines, canvas.shape[1]), canvas)))
    gap = np.full((panels[0].shape[0], _GAP_PX, 3), 255, np.uint8)
    return np.concatenate((panels[0], gap, panels[1]), axis=1)


def _dim(image: np.ndarray) -> np.ndarray:
    """Returns a darker copy, on which thin boxes stay visible."""
    return (image * np.float32(0.7)).astype(np.uint8)


def _draw(canvas: np.ndarray, box: Boxes, color: Color, thickness: int) -> None:
    x1, y1, x2, y2 = _corners(canvas, box)
    if thickness > 1:
        cv2.rectangle(canvas, (x1, y1), (x2, y2), _RIM_BGR, thickness + 2)
    cv2.rectangle(canvas, (x1, y1), (x2, y2), color, thickness, cv2.LINE_AA)


def _corners(canvas: np.ndarray, box: Boxes) -> tuple[int, int, int, int]:
    height, width = canvas.shape[:2]
    corners = np.clip(box.round(), 0, [width - 1, height - 1, width - 1, height - 1]).astype(int).tolist()
    return corners[0], corners[1], corners[2], corners[3]


def _label(canvas: np.ndarray, labels: list[tuple[Boxes, str, Color]]) -> None:
    """Writes row and score at boxes, best first; a label that would cover another is left out."""
    height, width = canvas.shape[:2]
    taken = np.zeros((height, width), np.bool_)
    for box, text, color in labels:
        (text_w, text_h), _ = cv2.getTextSize(text, _FONT, 0.4, 1)
        x1, y1, _, _ = _corners(canvas, box)
        left = min(x1, max(0, width - text_w - 4))
        # Inside the box where there is no room above it.
        bottom = y1 if y1 >= text_h + 6 else min(height, y1 + text_h + 6)
        place = taken[max(0, bottom - text_h - 6) : bottom, left : left + text_w + 4]
        if place.any():
            continue
        place[:] = True
        cv2.rectangle(canvas, (left, bottom - text_h - 6), (left + text_w + 4, bottom), _RIM_BGR, -1)
        cv2.putText(canvas, text, (left + 2, bottom - 4), _FONT, 0.4, color, 1, cv2.LINE_AA)


def _caption(lines: tuple[str, ...], width: int) -> np.ndarray:
    """Lines of text on white, shortened to `width` pixels."""
    canvas = np.full((_LINE_PX * len(lines) + 6, width, 3), 255, np.uint8)
    for number, line in enumerate(lines, start=1):
        text = line
        while text and cv2.getTextSize(text, _FONT, 0.45, 1)[0][0] > width - 8:
            text = text[:-1]
        cv2.putText(canvas, text, (4, number * _LINE_PX - 4), _FONT, 0.45, _RIM_BGR, 1, cv2.LINE_AA)
    return canvas
