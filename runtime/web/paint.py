"""Makes one annotated JPEG: scales the picture down, draws boxes, and marks it when it is not live."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgerpn.errors import SinkError
from edgerpn.proposals import Proposals
from edgerpn.runtime.draw import DEFAULT_NMS_IOU, DEFAULT_TOP, confirmed_tracks, draw_proposals, draw_tracks
from edgerpn.runtime.frame import Track
from edgerpn.runtime.opencv import load_cv2
from edgerpn.runtime.zones import ZoneMap

Image = npt.NDArray[np.uint8]

_EMPTY_HW = (360, 640)
_BANNER_BGR = (30, 30, 200)
_OLD_BGR = (0, 110, 190)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FrameCopy:
    """A copy of a frame with its proposals."""

    image: Image
    """(H, W, 3) uint8 BGR, owned by this object."""
    proposals: Proposals
    """Boxes in pixels of `image`, best first."""
    frame: int
    """Number of the frame in its source."""
    captured_at: float
    """Wall clock of the frame, UTC, seconds since the epoch."""
    monotonic_s: float
    """`time.monotonic()` at the same moment."""
    zone_map: ZoneMap | None = None
    """Zones and masks of the source; None: none."""
    tracks: tuple[Track | None, ...] | None = None
    """The track of each proposal; None: the run follows no objects."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewSettings:
    """Choice of the drawn boxes, for all viewers."""

    min_score: float = 0.0
    """Minimum score of drawn boxes, 0 to 1."""
    top: int = DEFAULT_TOP
    """Maximum number of boxes, the best ones."""
    nms_iou: float = DEFAULT_NMS_IOU
    """IoU with a better drawn box, of its class where the model has classes, above which a box is not drawn."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodedPicture:
    """An annotated picture as JPEG, with its origin."""

    number: int
    """Larger than those of all earlier pictures."""
    jpeg: bytes = field(repr=False)
    """The JPEG file."""
    frame: int | None
    """Number of the frame; None: no frame yet."""
    captured_at: float | None
    """Wall clock of the frame, UTC, seconds since the epoch."""
    is_live: bool
    """Whether the picture is not marked as old."""
    num_boxes: int
    """Number of boxes drawn."""
    marked_from_s: float
    """`time.monotonic()` from which it must not count as live; infinite when it is marked already."""

    def is_overdue(self, now_s: float) -> bool:
        """Returns whether it is old at `now_s` and not marked as old."""
        return now_s >= self.marked_from_s


def annotate(shot: FrameCopy, view: ViewSettings, *, max_width_px: int) -> tuple[Image, int]:
    """Draws the boxes that `view` selects: proposals, or confirmed tracks in a run that follows objects.

    Args:
        shot: Not changed.
        view: Choice of boxes.
        max_width_px: Wider pictures are scaled down first, so that lines keep their width.

    Returns:
        (H, W, 3) uint8 BGR, a new array; and the number of boxes in it.
    """
    small = shrink(shot, max_width_px=max_width_px)
    if small.tracks is not None:
        boxes, tracks = confirmed_tracks(small.proposals, small.tracks, top=view.top, min_score=view.min_score)
        return draw_tracks(small.image, boxes, tracks, zone_map=small.zone_map), len(boxes)
    boxes = small.proposals.above(view.min_score).nms(view.nms_iou, limit=view.top)
    drawn = draw_proposals(small.image, boxes, top=view.top, nms_iou=1, zone_map=small.zone_map)
    return drawn, len(boxes)


def shrink(shot: FrameCopy, *, max_width_px: int) -> FrameCopy:
    """Scales picture and boxes to at most `max_width_px`; returns `shot` itself when it is not wider."""
    height, width = shot.image.shape[:2]
    if width <= max_width_px:
        return shot
    cv2 = load_cv2()
    scale = max_width_px / width
    size_wh = (max_width_px, max(1, round(height * scale)))
    return dataclasses.replace(
        shot,
        image=cv2.resize(shot.image, size_wh, interpolation=cv2.INTER_AREA),
        # Nothing draws embeddings and features, and a copy of them would take longer than the rest.
        proposals=dataclasses.replace(
            shot.proposals, boxes=shot.proposals.boxes * np.float32(scale), embeddings=None, features=None
        ),
    )


def mark(picture: Image, *, age_s: float, is_down: bool) -> Image:
    """Marks a picture that is not live.

    Args:
        picture: (H, W, 3) uint8 BGR; not changed.
        age_s: Seconds since its capture.
        is_down: Whether its source is down: then the picture also loses its colours.
    """
    cv2 = load_cv2()
    marked = picture.copy()
    if is_down:
        grey = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)
        marked = cv2.cvtColor((grey * np.float32(0.55)).astype(np.uint8), cv2.COLOR_GRAY2BGR)
    text = f"NOT LIVE: {age_text(age_s)} old"
    _banner(marked, text, _BANNER_BGR if is_down else _OLD_BGR)
    return marked


def blank() -> Image:
    """Makes the picture of a source without frames yet."""
    picture = np.full((*_EMPTY_HW, 3), 40, np.uint8)
    _banner(picture, "NO PICTURE YET", _BANNER_BGR)
    return picture


def encode(picture: Image, *, quality: int) -> bytes:
    """Encodes a picture as JPEG.

    Raises:
        SinkError: OpenCV cannot encode the picture.
    """
    cv2 = load_cv2()
    is_done, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not is_done:
        raise SinkError(f"a picture of {picture.shape[1]}x{picture.shape[0]} cannot be encoded as JPEG")
    return data.tobytes()


def age_text(age_s: float) -> str:
    """Formats an age for people: 7 s, 12 min, 5 h, 3 d."""
    for size_s, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if age_s >= 2 * size_s:
            return f"{age_s // size_s:.0f} {unit}"
    return f"{age_s:.0f} s"


def _banner(picture: Image, text: str, color_bgr: tuple[int, int, int]) -> None:
    """Writes a line on a coloured bar at the bottom of the picture, as wide as fits."""
    cv2 = load_cv2()
    height, width = picture.shape[:2]
    font = cv2.FONT_HERSHEY_SIMPLEX
    (text_w, text_h), _ = cv2.getTextSize(text, font, 1.0, 2)
    scale = min(0.9 * width / text_w, 0.045 * height / text_h, 2.0)
    line = max(1, round(2 * scale))
    bar_h = max(1, round(2.2 * text_h * scale))
    cv2.rectangle(picture, (0, height - bar_h), (width - 1, height - 1), color_bgr, -1)
    place = (round((width - text_w * scale) / 2), height - round(0.6 * text_h * scale) - 1)
    cv2.putText(picture, text, place, font, scale, (255, 255, 255), line, cv2.LINE_AA)
