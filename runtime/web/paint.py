"""One annotated picture as JPEG: made smaller, boxes drawn, and marked when it is not live."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from edgerpn.errors import SinkError
from edgerpn.proposals import Proposals
from edgerpn.runtime.draw import draw_proposals
from edgerpn.runtime.opencv import load_cv2

Image = npt.NDArray[np.uint8]

_EMPTY_HW = (360, 640)
_BANNER_BGR = (30, 30, 200)
_OLD_BGR = (0, 110, 190)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Shot:
    """A frame and its proposals, with a picture of its own."""

    image: Image
    """(H, W, 3) uint8 BGR, a copy."""
    proposals: Proposals
    """Boxes in pixels of `image`, best first."""
    frame: int
    """Number of the frame in its source."""
    captured_at: float
    """Wall clock of the frame, UTC, seconds since the epoch."""
    monotonic_s: float
    """`time.monotonic()` at the same moment."""


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """What is drawn, for all who watch."""

    min_score: float = 0.0
    """Boxes scored below this are not drawn, 0 to 1."""
    top: int = 20
    """Boxes drawn at most, the best."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """An encoded picture."""

    number: int
    """Larger than those of all pictures before."""
    jpeg: bytes = field(repr=False)
    """The file."""
    frame: int | None
    """Number of the frame; None: there is none yet."""
    captured_at: float | None
    """Wall clock of the frame, UTC, seconds since the epoch."""
    is_live: bool
    """Whether the picture is not marked as old."""
    num_boxes: int
    """Boxes drawn."""
    marked_from_s: float
    """`time.monotonic()` from which it must not pass for live; infinite of one that is marked."""

    def is_overdue(self, now_s: float) -> bool:
        """Whether it is old by now and not marked so."""
        return now_s >= self.marked_from_s


def annotate(shot: Shot, view: View, *, max_width_px: int) -> tuple[Image, int]:
    """Draws what `view` asks for.

    Args:
        shot: Not changed.
        view: Which boxes.
        max_width_px: Wider pictures are made smaller first, so that lines stay as wide as they are.

    Returns:
        (H, W, 3) uint8 BGR, a new array, and the number of boxes in it.
    """
    small = shrink(shot, max_width_px=max_width_px)
    boxes = small.proposals.above(view.min_score)[: view.top]
    return draw_proposals(small.image, boxes, top=view.top), len(boxes)


def shrink(shot: Shot, *, max_width_px: int) -> Shot:
    """The same, no wider than that, its boxes with it; `shot` itself when it is not wider."""
    height, width = shot.image.shape[:2]
    if width <= max_width_px:
        return shot
    cv2 = load_cv2()
    scale = max_width_px / width
    size_wh = (max_width_px, max(1, round(height * scale)))
    return dataclasses.replace(
        shot,
        image=cv2.resize(shot.image, size_wh, interpolation=cv2.INTER_AREA),
        proposals=Proposals(shot.proposals.boxes * np.float32(scale), shot.proposals.scores),
    )


def mark(picture: Image, *, age_s: float, is_down: bool) -> Image:
    """Makes a picture that is not live look like one.

    Args:
        picture: (H, W, 3) uint8 BGR; not changed.
        age_s: Seconds since it was taken.
        is_down: Whether its source is known to give nothing: then it also loses its colours.
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
    """What is shown of a source that has given no picture yet."""
    picture = np.full((*_EMPTY_HW, 3), 40, np.uint8)
    _banner(picture, "NO PICTURE YET", _BANNER_BGR)
    return picture


def encode(picture: Image, *, quality: int) -> bytes:
    """A JPEG file.

    Raises:
        SinkError: OpenCV cannot encode it.
    """
    cv2 = load_cv2()
    is_done, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not is_done:
        raise SinkError(f"a picture of {picture.shape[1]}x{picture.shape[0]} cannot be encoded as JPEG")
    return data.tobytes()


def age_text(age_s: float) -> str:
    """An age for people: 7 s, 12 min, 5 h, 3 d."""
    for size_s, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if age_s >= 2 * size_s:
            return f"{age_s // size_s:.0f} {unit}"
    return f"{age_s:.0f} s"


def _banner(picture: Image, text: str, color_bgr: tuple[int, int, int]) -> None:
    """Writes a line on a coloured bar at the foot of the picture, as wide as fits."""
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
