"""Pictures with boxes for the report: a JPEG inside the page, boxes drawn over it as vectors."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from html import escape

import cv2
import numpy as np
import numpy.typing as npt

from edgerpn.demo.report_style import GROUND_TRUTH, MISSED, RAMP

_WIDTH_PX = 640
"""Wider pictures are scaled down to this."""
_QUALITY = 82


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """An image with its ground truth and what the model proposed."""

    name: str
    """Shown below it, such as the file's name."""
    image: npt.NDArray[np.uint8]
    """(H, W, 3) BGR."""
    gt_boxes_xyxy: npt.NDArray[np.float32]
    """(M, 4) ground truth, image pixels."""
    proposals_xyxy: npt.NDArray[np.float32]
    """(K, 4) proposals, image pixels, best first."""
    scores: npt.NDArray[np.float32]
    """(K,) 0..1."""


def covered(picture: Picture, *, iou: float = 0.5) -> npt.NDArray[np.bool_]:
    """Whether some proposal overlaps each ground-truth box by at least `iou`; (M,) bool."""
    truth, proposals = picture.gt_boxes_xyxy[:, None], picture.proposals_xyxy[None]
    if truth.shape[0] == 0 or proposals.shape[1] == 0:
        return np.zeros(truth.shape[0], np.bool_)
    sides = np.minimum(truth[..., 2:], proposals[..., 2:]) - np.maximum(truth[..., :2], proposals[..., :2])
    shared = np.clip(sides, 0, None).prod(axis=-1)
    areas = (truth[..., 2:] - truth[..., :2]).prod(axis=-1) + (proposals[..., 2:] - proposals[..., :2]).prod(axis=-1)
    found: npt.NDArray[np.bool_] = (shared >= iou * (areas - shared)).any(axis=1)
    return found


def picture_figure(picture: Picture, *, number: int, num_shown: int) -> str:
    """A `<figure>`: ground truth on the left, the best proposals on the right, a caption with the count.

    Args:
        picture: What to show.
        number: Differs from figure to figure of a page.
        num_shown: Proposals drawn at most; all of them count.
    """
    height, width = picture.image.shape[:2]
    found = covered(picture)
    shown = min(num_shown, len(picture.proposals_xyxy))
    view_box = f"viewBox='0 0 {width} {height}' role='img'"
    truth = _truth_boxes(picture.gt_boxes_xyxy, found)
    proposals = _proposal_boxes(picture.proposals_xyxy[:shown], picture.scores[:shown])
    total = len(found)
    count = f"{int(found.sum())} of {total} object{'' if total == 1 else 's'}"
    name = escape(picture.name)
    return (
        f"<figure><div class='pair'>"
        f"<svg {view_box} aria-label='{name} with {total} ground-truth boxes'>"
        f"<image id='picture-{number}' width='{width}' height='{height}' href='{_data_uri(picture.image)}'/>"
        f"{truth}</svg>"
        f"<svg {view_box} aria-label='{name} with the {shown} best proposals'>"
        f"<use href='#picture-{number}'/>{proposals}</svg></div>"
        f"<figcaption>{name}: {count} matched at IoU 0.5 by {len(picture.proposals_xyxy)} proposals; "
        f"the best {shown} are drawn.</figcaption></figure>"
    )


def ramp_color(score: float) -> str:
    """Colour of a score (0..1) as `#rrggbb`."""
    stops = np.array([[int(color[i : i + 2], 16) for i in (1, 3, 5)] for color in RAMP], float)
    position = float(np.clip(score, 0, 1)) * (len(RAMP) - 1)
    channels = [round(float(np.interp(position, np.arange(len(RAMP)), channel))) for channel in stops.T]
    return "#{:02x}{:02x}{:02x}".format(*channels)


def _data_uri(image: npt.NDArray[np.uint8]) -> str:
    height, width = image.shape[:2]
    if width > _WIDTH_PX:
        size = (_WIDTH_PX, max(1, round(height * _WIDTH_PX / width)))
        image = np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), np.uint8)
    _, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    return "data:image/jpeg;base64," + base64.b64encode(encoded.tobytes()).decode("ascii")


def _truth_boxes(boxes_xyxy: npt.NDArray[np.float32], found: npt.NDArray[np.bool_]) -> str:
    parts = []
    for box, is_found in zip(boxes_xyxy, found, strict=True):
        style = f"stroke='{GROUND_TRUTH}'" if is_found else f"class='dashed' stroke='{MISSED}'"
        parts.append(f"<rect class='edge' {_geometry(box)}/><rect {style} {_geometry(box)}/>")
    return "".join(parts)


def _proposal_boxes(boxes_xyxy: npt.NDArray[np.float32], scores: npt.NDArray[np.float32]) -> str:
    """Boxes with their scores as tooltips, the best one on top."""
    parts = []
    for box, score in reversed(list(zip(boxes_xyxy, scores.tolist(), strict=True))):
        title = f"<title>{score:.3f}</title>"
        edge = f"<rect class='edge' {_geometry(box)}/>"
        parts.append(f"{edge}<rect stroke='{ramp_color(score)}' {_geometry(box)}>{title}</rect>")
    return "".join(parts)


def _geometry(box_xyxy: npt.NDArray[np.float32]) -> str:
    x1, y1, x2, y2 = box_xyxy.tolist()
    return f"x='{x1:.1f}' y='{y1:.1f}' width='{max(0, x2 - x1):.1f}' height='{max(0, y2 - y1):.1f}'"
