"""Anchors against tables computed by hand."""

from __future__ import annotations

import pytest
import torch

from edgerpn.train.config import load_settings
from edgerpn.train.network.anchors import AnchorConfig, cell_anchors, grid_anchors

# 128 / sqrt(2) = 90.5097, 128 * sqrt(2) = 181.0193, and so on; half of each side of the origin.
PAPER_CELL = [
    [-90.50967, -45.25483, 90.50967, 45.25483],
    [-64.0, -64.0, 64.0, 64.0],
    [-45.25483, -90.50967, 45.25483, 90.50967],
    [-181.01934, -90.50967, 181.01934, 90.50967],
    [-128.0, -128.0, 128.0, 128.0],
    [-90.50967, -181.01934, 90.50967, 181.01934],
    [-362.03867, -181.01934, 362.03867, 181.01934],
    [-256.0, -256.0, 256.0, 256.0],
    [-181.01934, -362.03867, 181.01934, 362.03867],
]


def paper_anchors() -> AnchorConfig:
    return load_settings(preset="paper").model.anchors


def test_the_papers_nine_anchors_of_one_cell_are_the_hand_computed_ones() -> None:
    config = paper_anchors()
    found = cell_anchors(config.sizes_px[0], config.ratios_hw)
    torch.testing.assert_close(found, torch.tensor(PAPER_CELL), rtol=0, atol=1e-4)
    assert config.num_per_cell == 9


def test_an_anchor_keeps_its_area_in_every_ratio() -> None:
    x1, y1, x2, y2 = cell_anchors((32.0, 100.0), (0.25, 1.0, 3.0)).unbind(-1)
    area = torch.tensor([32.0**2] * 3 + [100.0**2] * 3)
    torch.testing.assert_close((x2 - x1) * (y2 - y1), area)
    torch.testing.assert_close((y2 - y1) / (x2 - x1), torch.tensor([0.25, 1.0, 3.0] * 2))


def test_38_rows_of_56_cells_have_19152_anchors_in_the_paper() -> None:
    (level,) = grid_anchors(paper_anchors(), (38 * 16, 56 * 16))
    assert level.shape == (38 * 56 * 9, 4) == (19152, 4)
    assert level.dtype == torch.float32


def test_the_first_and_the_last_anchor_of_the_paper_lie_in_the_corner_cells() -> None:
    (level,) = grid_anchors(paper_anchors(), (38 * 16, 56 * 16))
    torch.testing.assert_close(level[:9], torch.tensor(PAPER_CELL) + 8.0)
    last = torch.tensor([(56 - 0.5) * 16, (38 - 0.5) * 16] * 2)
    torch.testing.assert_close(level[-9:], torch.tensor(PAPER_CELL) + last)


def test_anchors_come_level_by_level_row_by_row_cell_by_cell_size_by_size_ratio_by_ratio() -> None:
    config = AnchorConfig(strides_px=(8, 16), sizes_px=((8.0, 16.0), (32.0, 64.0)), ratios_hw=(1.0, 4.0))
    fine, coarse = grid_anchors(config, (16, 24))
    assert fine.shape == (2 * 3 * 4, 4)
    assert coarse.shape == (1 * 2 * 4, 4)
    first_cell = [[0, 0, 8, 8], [2, -4, 6, 12], [-4, -4, 12, 12], [0, -12, 8, 20]]
    expected = torch.tensor(first_cell, dtype=torch.float32)
    torch.testing.assert_close(fine[:4], expected)
    torch.testing.assert_close(fine[4:8], expected + torch.tensor([8.0, 0.0, 8.0, 0.0]))  # the next column
    torch.testing.assert_close(fine[12:16], expected + torch.tensor([0.0, 8.0, 0.0, 8.0]))  # the next row
    torch.testing.assert_close(coarse[0], torch.tensor([-8.0, -8.0, 24.0, 24.0]))
    torch.testing.assert_close(coarse[-1], torch.tensor([24.0 - 16.0, 8.0 - 64.0, 24.0 + 16.0, 8.0 + 64.0]))


@pytest.mark.parametrize(("offset", "first_center"), [(0.5, 4.0), (0.0, 0.0)])
def test_the_centre_offset_is_in_strides(offset: float, first_center: float) -> None:
    config = AnchorConfig(strides_px=(8,), sizes_px=((8.0,),), center_offset=offset)
    (level,) = grid_anchors(config, (16, 16))
    centers = (level[:, :2] + level[:, 2:]) / 2
    expected = [[x + first_center, y + first_center] for y in (0.0, 8.0) for x in (0.0, 8.0)]
    torch.testing.assert_close(centers, torch.tensor(expected))


def test_a_started_cell_counts_in_odd_sizes() -> None:
    config = AnchorConfig()
    assert config.level_hw((384, 640)) == ((48, 80), (24, 40), (12, 20), (6, 10))
    assert config.level_hw((65, 33)) == ((9, 5), (5, 3), (3, 2), (2, 1))
    assert [len(level) for level in grid_anchors(config, (65, 33))] == [45, 15, 6, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"strides_px": (8, 12, 32)}, "strides_px: expected powers of two"),
        ({"strides_px": (16, 8, 32)}, "strides_px: expected finest first"),
        ({"sizes_px": ((32.0,), (64.0,))}, "sizes_px: expected one list for each of 4 levels"),
        ({"sizes_px": ((32.0,), (64.0, 80.0), (128.0,), (256.0,))}, "sizes_px: expected the same number"),
        ({"sizes_px": ((32.0,), (0.0,), (128.0,), (256.0,))}, "sizes_px: expected positive sizes"),
        ({"ratios_hw": (1.0, -2.0)}, "ratios_hw: expected positive ratios"),
        ({"ratios_hw": ()}, "ratios_hw: expected positive ratios"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnchorConfig(**changes)
