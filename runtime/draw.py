"""Draws proposals so that many overlapping ones stay readable.

Draws only the best, and no near copies of them: the graph keeps boxes that overlap by up to its own threshold (IoU
0.9), so that one object would get many. The best comes last and on top; weak ones are thin and transparent, strong
ones thick and bright, all in one hue. Rank counts too, so that the first ones stand out where many scores are equal.
Only the first few get a label, where there is room for it, as transparent as the box; of a model with classes all but
the weak ones do, with the name, and each class has a colour of its own.

A run that follows objects shows its confirmed tracks instead, each with its number and in a colour of its own.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from edgerpn.proposals import Proposals
from edgerpn.runtime.frame import Result, Track
from edgerpn.runtime.opencv import load_cv2
from edgerpn.runtime.zones import ZoneMap

DEFAULT_TOP = 20
"""Default maximum number of boxes drawn."""

DEFAULT_NMS_IOU = 0.6
"""Default IoU with a better drawn box, of its class where the model has classes, above which a box is not drawn."""

NUM_LABELS = 5
"""Number of boxes, from the best, that get a label with their score, of a model without classes."""

NAMED_STRENGTH = 0.25
"""Strength from which boxes get a label, of a model with classes."""

FADE_RANK = 20
"""Rank at which a box is half as strong as the best one of equal score."""

_WEAK_BGR = np.array([20.0, 95.0, 175.0])
_STRONG_BGR = np.array([70.0, 225.0, 255.0])
_INK_BGR = (0, 20, 35)
_ZONE_BGR = (255, 200, 60)
_MASK_BGR = (190, 190, 190)
_GOLDEN_RATIO = 0.618034
_FIRST_HUE = 0.14

Image = npt.NDArray[np.uint8]
Rectangle = tuple[int, int, int, int]


def draw_proposals(
    image: Image,
    proposals: Proposals,
    *,
    top: int = DEFAULT_TOP,
    nms_iou: float = DEFAULT_NMS_IOU,
    zone_map: ZoneMap | None = None,
) -> Image:
    """Draws the best proposals on a copy of `image`, over the outlines of zones and masks.

    Args:
        image: (H, W, 3) uint8 BGR; not changed.
        proposals: Boxes in pixels of `image`, best first.
        top: Maximum number of boxes drawn.
        nms_iou: Boxes with a larger IoU with a better drawn one, of their class where the model has classes, are not
            drawn; 1: all are.
        zone_map: Zones and masks of the source; None: none.

    Returns:
        (H, W, 3) uint8 BGR, a new array.
    """
    canvas = np.array(image)
    unit = max(1, round(min(canvas.shape[:2]) / 360))
    _draw_outlines(canvas, zone_map, unit)
    shown = proposals.nms(nms_iou, limit=top)
    corners = _pixel_corners(shown, canvas)
    strengths = box_strengths(shown.scores).tolist()
    colors = box_colors(shown, strengths)
    for corner, strength, color in list(zip(corners, strengths, colors, strict=True))[::-1]:
        _draw_box(canvas, corner, strength, color, unit)
    taken = _draw_names(canvas, zone_map, unit)
    labels = zip(corners, box_texts(shown), colors, strengths, strict=True)
    for rank, (corner, text, color, strength) in enumerate(labels):
        if rank < NUM_LABELS if shown.labels is None else strength >= NAMED_STRENGTH:
            _draw_label(canvas, corner[:2], _ascii(text), color, unit, taken, _opacity(strength))
    return canvas


def draw_tracks(
    image: Image, proposals: Proposals, tracks: Sequence[Track], *, zone_map: ZoneMap | None = None
) -> Image:
    """Draws tracks on a copy of `image`; proposals and tracks as `confirmed_tracks` returns them.

    Args:
        image: (H, W, 3) uint8 BGR; not changed.
        proposals: A box for each track, in pixels of `image`.
        tracks: As many.
        zone_map: Zones and masks of the source; None: none.

    Returns:
        (H, W, 3) uint8 BGR, a new array.
    """
    canvas = np.array(image)
    unit = max(1, round(min(canvas.shape[:2]) / 360))
    _draw_outlines(canvas, zone_map, unit)
    corners = _pixel_corners(proposals, canvas)
    for corner, track in zip(corners, tracks, strict=True):
        _blend_frame(canvas, corner, 4 * unit, _INK_BGR, 0.45)
        _blend_frame(canvas, corner, 2 * unit, track_color(track.track_id), 1.0)
    taken = _draw_names(canvas, zone_map, unit)
    for corner, track in zip(corners, tracks, strict=True):
        text = _ascii(f"{track.track_id} {track.label}".rstrip())
        _draw_label(canvas, corner[:2], text, track_color(track.track_id), unit, taken)
    return canvas


def confirmed_tracks(
    proposals: Proposals, tracks: Sequence[Track | None], *, top: int, min_score: float = 0.0
) -> tuple[Proposals, list[Track]]:
    """Returns the confirmed tracks of a frame and their proposals, the best `top` from a score on."""
    found = [(row, track) for row, track in enumerate(tracks) if track is not None and track.is_confirmed]
    shown = [(row, track) for row, track in found if proposals.scores[row] >= min_score][:top]
    return proposals[[row for row, _ in shown]], [track for _, track in shown]


class Painter:
    """Draws each result once, however many sinks show it."""

    def __init__(self, *, top: int = DEFAULT_TOP, nms_iou: float = DEFAULT_NMS_IOU) -> None:
        self._top = top
        self._nms_iou = nms_iou
        self._last: tuple[Proposals, Image] | None = None

    def paint(self, result: Result) -> Image:
        """Returns the picture of `result` with at most `top` boxes, (H, W, 3) uint8 BGR; shared, do not change it."""
        # Keeps the proposals, not the result, whose frame may lie in memory that the capture needs again. In one step,
        # because several sinks draw in threads of their own.
        last = self._last
        if last is None or last[0] is not result.proposals:
            self._last = last = (result.proposals, self._draw(result))
        return last[1]

    def _draw(self, result: Result) -> Image:
        image, proposals, zone_map = result.image, result.proposals, result.zone_map
        if result.tracks is None:
            return draw_proposals(image, proposals, top=self._top, nms_iou=self._nms_iou, zone_map=zone_map)
        return draw_tracks(image, *confirmed_tracks(proposals, result.tracks, top=self._top), zone_map=zone_map)


def box_texts(proposals: Proposals) -> list[str]:
    """Returns the text of each box: its score, behind the name of its class where the model has classes."""
    scores = [f"{score:.2f}" for score in proposals.scores.tolist()]
    names = proposals.names
    return scores if names is None else [f"{name} {score}" for name, score in zip(names, scores, strict=True)]


def box_colors(proposals: Proposals, strengths: Sequence[float]) -> list[tuple[int, int, int]]:
    """Returns the BGR colour of each box: that of its class where the model has classes, else that of its strength."""
    if proposals.labels is None:
        return [score_color(strength) for strength in strengths]
    return [class_color(label) for label in proposals.labels.tolist()]


def class_color(label: int) -> tuple[int, int, int]:
    """Returns the BGR colour of a class by its number from 0."""
    # The first one is the yellow of boxes without a class.
    return _number_color(label + _FIRST_HUE / _GOLDEN_RATIO)


def track_color(track_id: int) -> tuple[int, int, int]:
    """Returns the BGR colour of a track."""
    return _number_color(track_id)


def _number_color(number: float) -> tuple[int, int, int]:
    """Returns a BGR colour; those of neighbouring numbers differ most."""
    red, green, blue = colorsys.hsv_to_rgb(number * _GOLDEN_RATIO % 1, 0.65, 1.0)
    return round(255 * blue), round(255 * green), round(255 * red)


def score_color(strength: float) -> tuple[int, int, int]:
    """Returns the BGR colour of a box of a strength from 0 to 1."""
    blue, green, red = (_WEAK_BGR + (_STRONG_BGR - _WEAK_BGR) * strength).round().astype(int).tolist()
    return blue, green, red


def box_strengths(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Returns the strength of each box, (M,) 0..1, from scores (M,), best first."""
    # Relative to the best score; a best score below 0.3 does not get full strength.
    relative = np.clip(scores / scores.max(initial=0.3), 0, 1).astype(np.float64)
    return relative / (1 + (np.arange(len(scores)) / FADE_RANK) ** 2)


def _pixel_corners(proposals: Proposals, canvas: Image) -> list[Rectangle]:
    height, width = canvas.shape[:2]
    limit = np.array([width - 1, height - 1, width - 1, height - 1])
    rows = np.clip(np.nan_to_num(proposals.boxes).round(), 0, limit).astype(int).tolist()
    return [(x1, y1, x2, y2) for x1, y1, x2, y2 in rows]


def _draw_outlines(canvas: Image, zone_map: ZoneMap | None, unit: int) -> None:
    """Draws the outlines of masks in grey, and those of zones in blue."""
    if zone_map is None:
        return
    cv2 = load_cv2()
    for outlines, color_bgr in ((zone_map.mask_outlines, _MASK_BGR), (zone_map.outlines, _ZONE_BGR)):
        corners = [_pixels(outline, canvas) for outline in outlines]
        # A dark rim, as for boxes.
        cv2.polylines(canvas, corners, True, _INK_BGR, 3 * unit, cv2.LINE_AA)
        cv2.polylines(canvas, corners, True, color_bgr, unit, cv2.LINE_AA)


def _draw_names(canvas: Image, zone_map: ZoneMap | None, unit: int) -> list[Rectangle]:
    """Writes the name of each zone at its topmost point, and returns the places that are taken now."""
    taken: list[Rectangle] = []
    if zone_map is None:
        return taken
    for name, outline in zip(zone_map.names, zone_map.outlines, strict=True):
        x, y = _pixels(outline[[outline[:, 1].argmin()]], canvas)[0].tolist()
        _draw_label(canvas, (x, y), _ascii(name), _ZONE_BGR, unit, taken)
    return taken


def _ascii(text: str) -> str:
    """Returns a text as OpenCV's fonts can write it."""
    return text.encode("ascii", "replace").decode()


def _pixels(points: npt.NDArray[np.float64], canvas: Image) -> npt.NDArray[np.int32]:
    """Returns the pixels (P, 2) of points (P, 2) that are shares of the picture."""
    return (points * (canvas.shape[1] - 1, canvas.shape[0] - 1)).round().astype(np.int32)


def _opacity(strength: float) -> float:
    return 0.25 + 0.75 * strength


def _draw_box(canvas: Image, corner: Rectangle, strength: float, color_bgr: tuple[int, int, int], unit: int) -> None:
    opacity = _opacity(strength)
    thickness = unit * (1 if strength < 0.5 else 2 if strength < 0.85 else 3)
    if strength >= 0.5:
        # A dark rim keeps strong boxes visible on bright ground.
        _blend_frame(canvas, corner, thickness + 2 * unit, _INK_BGR, 0.45 * opacity)
    _blend_frame(canvas, corner, thickness, color_bgr, opacity)


def _blend_frame(
    canvas: Image, corner: Rectangle, thickness: int, color_bgr: tuple[int, int, int], opacity: float
) -> None:
    """Blends the four sides of a box, centred on its edge; changes only these pixels, which is fast."""
    x1, y1, x2, y2 = corner
    outer = thickness // 2
    inner = thickness - outer
    left, right, top, bottom = max(x1 - outer, 0), x2 + outer + 1, max(y1 - outer, 0), y2 + outer + 1
    mid_top, mid_bottom = min(y1 + inner, bottom), max(y2 - inner + 1, y1 + inner)
    sides = (
        (top, mid_top, left, right),
        (mid_bottom, bottom, left, right),
        (mid_top, mid_bottom, left, min(x1 + inner, right)),
        (mid_top, mid_bottom, max(x2 - inner + 1, x1 + inner), right),
    )
    ink = np.array(color_bgr, np.float32) * opacity
    for y_start, y_end, x_start, x_end in sides:
        side = canvas[y_start:y_end, x_start:x_end]
        if side.size:
            side[:] = side * np.float32(1 - opacity) + ink


def _draw_label(
    canvas: Image,
    corner: tuple[int, int],
    text: str,
    color_bgr: tuple[int, int, int],
    unit: int,
    taken: list[Rectangle],
    opacity: float = 1.0,
) -> None:
    """Writes `text` above a corner, unless it would cover another label."""
    cv2 = load_cv2()
    font, scale, pad = cv2.FONT_HERSHEY_SIMPLEX, 0.4 * unit, 2 * unit
    (text_w, text_h), _ = cv2.getTextSize(text, font, scale, unit)
    height, width = canvas.shape[:2]
    label_w, label_h = text_w + 2 * pad, text_h + 2 * pad
    x = max(0, min(corner[0], width - label_w))
    # Above the corner, or below it at the top of the picture.
    y = corner[1] - label_h if corner[1] >= label_h else corner[1]
    place = (x, y, x + label_w, y + label_h)
    if y + label_h > height or any(_overlap(place, other) for other in taken):
        return
    taken.append(place)
    plate = canvas[y : place[3], x : place[2]]
    plate[:] = plate * np.float32(1 - opacity) + np.array(color_bgr, np.float32) * opacity
    cv2.putText(canvas, text, (x + pad, y + label_h - pad), font, scale, _INK_BGR, unit, cv2.LINE_AA)


def _overlap(one: Rectangle, other: Rectangle) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
