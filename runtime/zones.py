"""Zones and masks of a source: the parts of its picture that have names, and the parts that are not of interest.

A proposal stands in a zone when the middle of its lower side lies in it: where an object touches the ground (Frigate
and supervision have the same rule). Zones may overlap; on the outline counts as inside.

A proposal is masked when one mask covers at least `mask_share` of its area. Frigate's object masks look at the middle
of the lower side here too, which suits whole objects on the ground. Proposals are also parts, screens and trees: with
that rule a box that reaches a pixel below its mask is proposed again, and the lower half of a person who stands before
a mask is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Literal

import numpy as np
import numpy.typing as npt

from edgerpn.errors import check_setting
from edgerpn.polygons import Point, Polygons, outline_problem
from edgerpn.proposals import Proposals

Outline = tuple[Point, ...]
"""Points of a polygon in order, x and y; the last one is joined to the first."""

MAX_AREAS = 100
"""Zones of a source at most, and masks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ZoneConfig:
    """A part of the picture with a name."""

    name: str
    """Name in records and pictures."""
    points: Outline
    """Points of its outline, x and y; see `zones_wh` of the source."""
    anchor: Literal["bottom", "center"] = "bottom"
    """Point of a box that must lie in the zone: the middle of its lower side, or its centre."""

    def __post_init__(self) -> None:
        check_setting(bool(self.name.strip()), "name", "a text", self.name)
        check_setting(self.anchor in ("bottom", "center"), "anchor", "bottom or center", self.anchor)


def check_areas(zones: Sequence[ZoneConfig], masks: Sequence[Outline], size_wh: tuple[int, int] | None) -> None:
    """Checks zones and masks whose points are in pixels of a frame of `size_wh`, or shares of any frame (None).

    Raises:
        ValueError: Two zones have one name, or points are outside the frame or not the outline of a polygon.
    """
    for kind, areas in (("zones", zones), ("masks", masks)):
        check_setting(len(areas) <= MAX_AREAS, kind, f"at most {MAX_AREAS}", len(areas))
    names = [zone.name for zone in zones]
    twice = sorted({name for name in names if names.count(name) > 1})
    check_setting(not twice, "zones", "different names", twice)
    outlines = {f"zones[{i}].points": zone.points for i, zone in enumerate(zones)}
    outlines |= {f"masks[{i}]": points for i, points in enumerate(masks)}
    for path, points in outlines.items():
        problem = outline_problem(points) or _unit_problem(points, size_wh)
        if problem is not None:
            raise ValueError(f"{path}: {problem}")


def _unit_problem(points: Outline, size_wh: tuple[int, int] | None) -> str | None:
    """Returns why points are not in the unit that `size_wh` stands for; None: they are."""
    width, height = size_wh or (1, 1)
    outside = next((point for point in points if not (0 <= point[0] <= width and 0 <= point[1] <= height)), None)
    if outside is not None and size_wh is None:
        return (
            f"expected shares of the frame, 0 to 1, got {list(outside)}; for pixels, set zones_wh to the width and "
            "height of the frame that they were measured in"
        )
    if outside is not None:
        return f"expected pixels of a frame of {width}x{height} (zones_wh), got {list(outside)}"
    if size_wh is not None and max(map(max, points)) <= 1:
        return f"expected pixels of a frame of {width}x{height}, got shares 0 to 1; without zones_wh all are shares"
    return None


class ZoneMap:
    """The zones and masks of one source, for frames of any size; immutable."""

    def __init__(
        self,
        zones: Sequence[ZoneConfig],
        masks: Sequence[Outline],
        *,
        mask_share: float,
        size_wh: tuple[int, int] | None = None,
    ) -> None:
        """Takes zones and masks that `check_areas` has found good.

        Args:
            zones: Their points are pixels of a frame of `size_wh`, or shares of any frame when that is None.
            masks: The same.
            mask_share: Share of its area in one mask from which a proposal is masked, above 0, to 1.
            size_wh: Width and height, pixels.
        """
        scale = np.array(size_wh or (1, 1), np.float64)
        self.names = tuple(zone.name for zone in zones)
        """Names of the zones, in order."""
        self.outlines = [np.asarray(zone.points, np.float64) / scale for zone in zones]
        """(P, 2) float64 for each zone: x and y of its points as shares of the frame, 0..1."""
        self.mask_outlines = [np.asarray(points, np.float64) / scale for points in masks]
        """The same for each mask."""
        self._zones = Polygons(self.outlines) if self.outlines else None
        self._masks = Polygons(self.mask_outlines) if self.mask_outlines else None
        self._mask_share = mask_share
        self._is_center = np.array([zone.anchor == "center" for zone in zones])[:, None]

    def unmasked(self, proposals: Proposals, frame_hw: tuple[int, int]) -> Proposals:
        """Returns the proposals that are not masked, in order; `frame_hw` is the size of their frame, pixels."""
        if self._masks is None or not len(proposals):
            return proposals
        # Rounding must not keep a box that lies in a mask as a whole.
        is_masked = self._masks.shares(_in_shares(proposals.boxes, frame_hw)).max(axis=0) >= self._mask_share - 1e-6
        return proposals[~is_masked] if is_masked.any() else proposals

    def zones_of(self, boxes_xyxy: npt.NDArray[np.floating], frame_hw: tuple[int, int]) -> tuple[tuple[str, ...], ...]:
        """Returns the names of the zones in which each box stands, in the order of the zones.

        Args:
            boxes_xyxy: (M, 4); x1, y1, x2, y2 in pixels of the frame.
            frame_hw: Height and width of the frame, pixels.
        """
        if self._zones is None:
            return ((),) * len(boxes_xyxy)
        x1, y1, x2, y2 = _in_shares(boxes_xyxy, frame_hw).T
        x = np.broadcast_to((x1 + x2) / 2, (len(self.names), len(x1)))
        is_inside = self._zones.contain(x, np.where(self._is_center, (y1 + y2) / 2, y2))
        return tuple(tuple(compress(self.names, row)) for row in is_inside.T.tolist())


def _in_shares(boxes_xyxy: npt.NDArray[np.floating], frame_hw: tuple[int, int]) -> npt.NDArray[np.float64]:
    height, width = frame_hw
    return boxes_xyxy.astype(np.float64) / (width, height, width, height)
