"""Published anchors and box codings, restated in plain NumPy or as printed in their sources, against ours.

Sources (what each test cites): [paper] Ren et al. 2015, arXiv:1506.01497; [py] rbgirshick/py-faster-rcnn;
[d2] facebookresearch/detectron2; [tv] pytorch/vision, torchvision/models/detection. docs/conventions.md says in words
where they differ and what we do.

py-faster-rcnn's boxes name their first and last pixel, from 0, so that width is x2 - x1 + 1. Ours are continuous:
the same pixels end at x2 + 1.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor

from edgerpn.train.network.anchors import AnchorConfig, cell_anchors, grid_anchors
from edgerpn.train.network.boxes import MAX_LOG_SCALE, decode_boxes, encode_boxes, pairwise_iou

Array = npt.NDArray[np.float64]
LAST_TO_END = np.array([0, 0, 1, 1])
"""From py-faster-rcnn's last pixel to our end of it."""


def tensor(values: object) -> Tensor:
    return torch.tensor(np.asarray(values), dtype=torch.float32)


# Anchors. [py] lib/rpn/generate_anchors.py prints these nine, from 1, as the original MATLAB code had them: ratio by
# ratio (0.5, 1, 2), in each ratio the scales 8, 16, 32 of a window of 16 pixels.
MATLAB_ANCHORS = np.array(
    [
        [-83, -39, 100, 56],
        [-175, -87, 192, 104],
        [-359, -183, 376, 200],
        [-55, -55, 72, 72],
        [-119, -119, 136, 136],
        [-247, -247, 264, 264],
        [-35, -79, 52, 96],
        [-79, -167, 96, 184],
        [-167, -343, 184, 360],
    ]
)
NINE = AnchorConfig(strides_px=(16,), sizes_px=((128.0, 256.0, 512.0),), ratios_hw=(0.5, 1.0, 2.0), rounding="base")
RATIO_BY_RATIO = [s * 3 + r for r in range(3) for s in range(3)]


def test_the_nine_anchors_of_py_faster_rcnn_come_out_to_the_last_pixel() -> None:
    (level,) = grid_anchors(NINE, (48, 64))
    first_cell = level[:9].numpy()[RATIO_BY_RATIO]
    zero_based = MATLAB_ANCHORS - 1
    assert zero_based[0].tolist() == [-84, -40, 99, 55]
    assert (first_cell - LAST_TO_END == zero_based).all()
    # Cells are 16 pixels apart: shift_x = arange(width) * feat_stride in lib/rpn/anchor_target_layer.py.
    last_cell = level[-9:].numpy()[RATIO_BY_RATIO]
    assert (last_cell - LAST_TO_END == zero_based + np.array([48, 32, 48, 32])).all()


@pytest.mark.parametrize(
    ("stride", "sizes"), [(4, (32,)), (8, (64, 90.5)), (16, (32, 64, 128, 256, 512)), (64, (512,))]
)
def test_rounded_base_anchors_follow_generate_anchors_at_any_stride(stride: int, sizes: tuple[float, ...]) -> None:
    # [py] generate_anchors.py: the sides of the window are rounded for each ratio (half to even), then scaled about
    # the window's centre (stride - 1) / 2.
    ratios = (0.5, 1.0, 2.0, 3.0)
    expected = []
    for size in sizes:
        for ratio in ratios:
            w = np.round(np.sqrt(stride * stride / ratio))
            h = np.round(w * ratio)
            half_w, half_h = (w * size / stride - 1) / 2, (h * size / stride - 1) / 2
            center = (stride - 1) / 2
            expected.append([center - half_w, center - half_h, center + half_w, center + half_h])
    found = cell_anchors(sizes, ratios, rounding="base", stride_px=stride).double().numpy() + stride / 2
    np.testing.assert_allclose(found - LAST_TO_END, expected, atol=1e-4)


# [d2] tests/modeling/test_anchor_generator.py: sizes 32 and 64, ratios 0.25, 1 and 4, stride 4, 1 x 2 cells.
DETECTRON2_CELL = [
    [-32, -8, 32, 8],
    [-16, -16, 16, 16],
    [-8, -32, 8, 32],
    [-64, -16, 64, 16],
    [-32, -32, 32, 32],
    [-16, -64, 16, 64],
]


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_detectron2s_anchors_come_out_in_its_order(offset: float) -> None:
    config = AnchorConfig(strides_px=(4,), sizes_px=((32.0, 64.0),), ratios_hw=(0.25, 1.0, 4.0), center_offset=offset)
    (level,) = grid_anchors(config, (4, 8))
    first = np.array(DETECTRON2_CELL) + 4 * offset
    assert (level.numpy() == np.concatenate((first, first + np.array([4, 0, 4, 0])))).all()


def test_torchvisions_anchors_have_whole_corners_and_the_inputs_size_over_the_grids() -> None:
    # [tv] anchor_utils.py: base anchors of generate_anchors are rounded; strides are image size // grid size; the
    # first anchor is centred on the corner of the image.
    config = AnchorConfig(
        strides_px=(32, 64), sizes_px=((32.0,), (500.0,)), ratios_hw=(0.5, 1.0, 2.0), center_offset=0.0,
        rounding="corners", spacing="grid",
    )  # fmt: skip
    height, width = 288, 416
    for level, stride, size in zip(grid_anchors(config, (height, width)), (32, 64), (32, 500), strict=True):
        rows, columns = math.ceil(height / stride), math.ceil(width / stride)
        step_y, step_x = height // rows, width // columns
        half = [(np.round(size / np.sqrt(r) / 2), np.round(size * np.sqrt(r) / 2)) for r in (0.5, 1.0, 2.0)]
        corners = [(x * step_x, y * step_y) for y in range(rows) for x in range(columns)]
        expected = [[x - w, y - h, x + w, y + h] for x, y in corners for w, h in half]
        assert (level.numpy() == np.array(expected)).all()
    # 288 / 5 and 416 / 7: the coarse level's cells are 57 and 59 pixels apart, not 64.
    assert (height // 5, width // 7) == (57, 59)


def test_levels_spaced_by_the_grid_need_no_multiples_of_the_stride() -> None:
    config = AnchorConfig(strides_px=(32, 64), sizes_px=((32.0,), (64.0,)), spacing="grid")
    assert config.misfit((800, 1056)) is None
    assert config.misfit((63, 1056)) == "both sides must be at least 64, the coarsest stride"
    assert AnchorConfig(strides_px=(32, 64), sizes_px=((32.0,), (64.0,))).misfit((800, 1056)) is not None


# Boxes.


def random_pixels(rng: np.random.Generator, count: int) -> Array:
    """Boxes as first and last pixel."""
    corner, size = rng.integers(0, 300, (count, 2)), rng.integers(1, 200, (count, 2))
    return np.concatenate((corner, corner + size - 1), axis=1).astype(np.float64)


def test_deltas_are_py_faster_rcnns_and_detectron2s() -> None:
    # [py] lib/fast_rcnn/bbox_transform.py bbox_transform: width = x2 - x1 + 1, centre = x1 + width / 2. [d2]
    # box_regression.py get_deltas and [tv] _utils.py encode_boxes are the same without the + 1.
    rng = np.random.default_rng(0)
    anchors, boxes = random_pixels(rng, 500), random_pixels(rng, 500)
    size_a, size_b = anchors[:, 2:] - anchors[:, :2] + 1, boxes[:, 2:] - boxes[:, :2] + 1
    shift = (boxes[:, :2] + size_b / 2 - anchors[:, :2] - size_a / 2) / size_a
    expected = np.concatenate((shift, np.log(size_b / size_a)), axis=1)
    found = encode_boxes(tensor(boxes + LAST_TO_END), tensor(anchors + LAST_TO_END))
    np.testing.assert_allclose(found, expected, atol=1e-6, rtol=1e-6)


def test_decoding_is_theirs_with_the_clamp_at_the_log_of_1000_over_16() -> None:
    # [d2] box_regression.py apply_deltas and [tv] _utils.py decode_single; [py] bbox_transform_inv has no clamp.
    assert math.log(1000.0 / 16) == MAX_LOG_SCALE
    rng = np.random.default_rng(1)
    anchors = random_pixels(rng, 500) + LAST_TO_END
    deltas = rng.normal(0, 2, (500, 4))
    assert (deltas[:, 2:] > MAX_LOG_SCALE).any()
    size = anchors[:, 2:] - anchors[:, :2]
    center = anchors[:, :2] + size / 2 + deltas[:, :2] * size
    new_size = np.exp(np.minimum(deltas[:, 2:], np.log(1000 / 16))) * size
    expected = np.concatenate((center - new_size / 2, center + new_size / 2), axis=1)
    np.testing.assert_allclose(decode_boxes(tensor(deltas), tensor(anchors)), expected, rtol=1e-5, atol=1e-3)


def test_iou_is_that_of_whole_pixels() -> None:
    # [py] lib/utils/bbox.pyx bbox_overlaps counts pixels, with + 1; ours is the same number on continuous boxes.
    rng = np.random.default_rng(2)
    first, second = random_pixels(rng, 60), random_pixels(rng, 80)
    found = pairwise_iou(tensor(first + LAST_TO_END)[None], tensor(second + LAST_TO_END)[None])[0]
    canvas = np.zeros((2, 500, 500), bool)
    for i in range(0, 60, 7):
        for j in range(0, 80, 5):
            canvas[:] = False
            for layer, box in zip(canvas, (first[i], second[j]), strict=True):
                x1, y1, x2, y2 = box.astype(int)
                layer[y1 : y2 + 1, x1 : x2 + 1] = True
            expected = (canvas[0] & canvas[1]).sum() / (canvas[0] | canvas[1]).sum()
            assert found[i, j].item() == pytest.approx(expected, rel=1e-6)
