"""Zones and masks: their settings, which proposals stand in a zone or are masked, and their outlines in pictures."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgerpn.proposals import Proposals
from edgerpn.runtime.draw import draw_proposals
from edgerpn.runtime.run import SourceConfig
from edgerpn.runtime.zones import ZoneConfig, ZoneMap

LEFT = ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0))
LOWER = ((0.0, 0.5), (1.0, 0.5), (1.0, 1.0), (0.0, 1.0))
HW = (100, 200)


def zone_map(**settings: Any) -> ZoneMap:
    made = SourceConfig(source="0", **settings).zone_map
    assert made is not None
    return made


def proposals(*boxes: tuple[float, ...]) -> Proposals:
    return Proposals(np.array(boxes, np.float32).reshape(-1, 4), np.linspace(0.9, 0.1, len(boxes), dtype=np.float32))


def test_a_box_stands_where_the_middle_of_its_lower_side_is() -> None:
    zones = zone_map(zones=(ZoneConfig(name="left", points=LEFT), ZoneConfig(name="lower", points=LOWER)))
    boxes = [
        (10, 10, 30, 30),  # left
        (90, 10, 130, 60),  # reaches into the left half, and stands on the right of it, below
        (10, 10, 30, 50),  # left, and its lower side is on the outline of the lower half
        (80, 10, 120, 100),  # between both halves, cut off by the frame's edge
        (150, 10, 160, 20),
    ]
    names = zones.zones_of(np.array(boxes, np.float32), HW)
    assert names == (("left",), ("lower",), ("left", "lower"), ("left", "lower"), ())
    assert zones.zones_of(np.zeros((0, 4), np.float32), HW) == ()


def test_a_zone_may_ask_for_the_centre() -> None:
    both = (ZoneConfig(name="foot", points=LOWER), ZoneConfig(name="centre", points=LOWER, anchor="center"))
    names = zone_map(zones=both).zones_of(np.array([[0, 30, 9, 60], [0, 50, 9, 60]], np.float32), HW)
    assert names == (("foot",), ("foot", "centre"))


@pytest.mark.parametrize(
    ("mask_share", "kept"),
    [(0.5, [3, 4]), (0.51, [2, 3, 4]), (1.0, [1, 2, 3, 4]), (0.2, [4])],
)
def test_a_proposal_is_masked_by_the_share_of_its_area(mask_share: float, kept: list[int]) -> None:
    found = proposals(
        (10, 10, 30, 30),  # all of it is in the left half
        (80, 0, 105, 10),  # 4/5
        (90, 0, 110, 10),  # 1/2
        (90, 0, 140, 10),  # 1/5
        (100, 0, 140, 10),  # none, beside it
    )
    left = zone_map(masks=(LEFT,), mask_share=mask_share).unmasked(found, HW)
    np.testing.assert_array_equal(left.boxes, found.boxes[kept])
    np.testing.assert_array_equal(left.scores, found.scores[kept])


def test_masks_count_one_by_one() -> None:
    quarters = (((0, 0), (0.25, 0), (0.25, 1), (0, 1)), ((0.25, 0), (0.5, 0), (0.5, 1), (0.25, 1)))
    across = proposals((30, 10, 70, 30))
    assert len(zone_map(masks=quarters, mask_share=0.6).unmasked(across, HW)) == 1
    assert len(zone_map(masks=quarters, mask_share=0.5).unmasked(across, HW)) == 0


def test_without_masked_ones_the_proposals_are_the_same_object() -> None:
    found = proposals((100, 0, 140, 10))
    zones = (ZoneConfig(name="left", points=LEFT),)
    assert zone_map(masks=(LEFT,)).unmasked(found, HW) is found
    assert zone_map(zones=zones).unmasked(found, HW) is found
    assert zone_map(masks=(LEFT,)).zones_of(found.boxes, HW) == ((),)
    assert SourceConfig(source="0").zone_map is None


def test_points_in_pixels_are_scaled_to_frames_of_any_size() -> None:
    pixels = tuple((x * 1920, y * 1080) for x, y in LEFT)
    in_pixels = zone_map(zones=(ZoneConfig(name="left", points=pixels),), masks=(pixels,), zones_wh=(1920, 1080))
    in_shares = zone_map(zones=(ZoneConfig(name="left", points=LEFT),), masks=(LEFT,))
    for zones in (in_pixels, in_shares):
        assert zones.zones_of(np.array([[0, 0, 640, 200]]), (360, 640)) == (("left",),)
        assert zones.zones_of(np.array([[0, 0, 640, 200]]), (360, 600)) == ((),)
        assert len(zones.unmasked(proposals((0, 0, 640, 200), (0, 0, 641, 200)), (360, 640))) == 1


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"masks": (LEFT[:2],)}, r"masks\[0\]: expected 3 to 100 points, got 2"),
        ({"masks": (LEFT, (*LEFT[2:], *LEFT[1::-1]))}, r"masks\[1\]: the outline crosses or touches itself"),
        ({"masks": (((0, 0), (320, 0), (320, 180)),)}, r"shares of the frame, 0 to 1, got \[320, 0\]; for pixels, set"),
        ({"masks": (((0, 0), (-0.1, 0), (0, 1)),)}, r"shares of the frame, 0 to 1, got \[-0.1, 0\]"),
        (
            {"masks": (((0, 0), (320, 0), (641, 180)),), "zones_wh": (640, 360)},
            r"pixels of a frame of 640x360 \(zones_wh\), got \[641, 180\]",
        ),
        (
            {"masks": (((0, 0), (320, 0), (320, 180)), LEFT), "zones_wh": (640, 360)},
            r"masks\[1\]: expected pixels of a frame of 640x360, got shares",
        ),
        ({"zones": (ZoneConfig(name="a", points=LEFT[:1]),)}, r"zones\[0\].points: expected 3 to 100 points"),
        ({"zones": (ZoneConfig(name="a", points=LEFT),) * 2}, r"zones: expected different names, got \['a'\]"),
        ({"masks": (LEFT,) * 101}, "masks: expected at most 100, got 101"),
        ({"mask_share": 0.0}, "mask_share: expected above 0, to 1, got 0.0"),
        ({"zones_wh": (0, 10)}, "zones_wh: expected two positive sizes"),
    ],
)
def test_wrong_zones_and_masks_are_one_clear_error(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        SourceConfig(source="0", **settings)


def test_a_zone_has_a_name_and_a_known_anchor() -> None:
    with pytest.raises(ValueError, match="name: expected a text, got ' '"):
        ZoneConfig(name=" ", points=LEFT)
    with pytest.raises(ValueError, match="anchor: expected bottom or center, got 'top'"):
        ZoneConfig(name="a", points=LEFT, anchor="top")  # type: ignore[arg-type]


@pytest.mark.parametrize("hw", [(180, 320), (1080, 1920)])
def test_pictures_show_the_outlines_of_zones_and_masks(hw: tuple[int, int]) -> None:
    inner = ((0.25, 0.25), (0.75, 0.25), (0.75, 0.75), (0.25, 0.75))
    grey = np.full((*hw, 3), 100, np.uint8)
    nothing = proposals()
    drawn = draw_proposals(grey, nothing, zone_map=zone_map(zones=(ZoneConfig(name="yard", points=inner),)))
    row, left, right = hw[0] // 2, round((hw[1] - 1) * 0.25), round((hw[1] - 1) * 0.75)
    blue, green, red = drawn[row, [left, right]].T.astype(int)
    assert (blue > green + 30).all()
    assert (green > red + 60).all()
    assert (drawn[row, left + hw[1] // 20 : right - hw[1] // 20] == 100).all()
    masked = draw_proposals(grey, nothing, zone_map=zone_map(masks=(inner,)))
    assert masked[row, left].min() > 130
    assert np.ptp(masked[row, left]) < 20
    # The name stands above the topmost point of a zone, a mask has none.
    above = slice(0, hw[0] // 4 - hw[0] // 45)
    assert (drawn[above] != 100).any()
    assert (masked[above] == 100).all()
    np.testing.assert_array_equal(draw_proposals(grey, nothing), grey)
