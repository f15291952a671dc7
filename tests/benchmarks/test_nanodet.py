"""NanoDet-g's reader and decoding on a graph of the same operations, made by hand, whose answer is known."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from benchmarks.general import nanodet

BRIGHT_CLASS, BRIGHT_PER_STD, BIAS = 5, 1.0, -3.0


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> nanodet.NanoDet:
    """Finds bright cells: boxes that reach one stride to the left, two up, three to the right and four down."""
    folder = tmp_path_factory.mktemp("nanodet")
    kernel = np.zeros((1, 1, 3, 124), np.float16)
    kernel[0, 0, 0, BRIGHT_CLASS] = BRIGHT_PER_STD  # blue
    bias = np.full(124, -20.0, np.float16)
    bias[:80] = BIAS - 1
    bias[BRIGHT_CLASS] = BIAS
    bias[[80 + 11 * side + distance for side, distance in enumerate((1, 2, 3, 4))]] = 20.0
    tensors: dict[str, npt.NDArray[Any]] = {"kernel": kernel, "order": np.array([0, 2, 3, 1], np.int32), "bias": bias}
    tensors |= {
        "back": np.array([0, 3, 1, 2], np.int32),
        "axis": np.array(1, np.int32),
        "size": np.array([26, 26], np.int32),
    }
    nodes: list[dict[str, Any]] = [{"name": name, "op": "Const"} for name in tensors]
    nodes.append({"name": "image", "op": "Transpose", "input": ["input_1", "order"]})
    for stride, head in zip((8, 16, 32), (29, 33, 37), strict=True):
        size = {"list": {"i": ["1", str(stride), str(stride), "1"]}}
        ones = {"list": {"i": ["1", "1", "1", "1"]}}
        nodes += [
            {"name": f"pool{head}", "op": "MaxPool", "input": ["image"], "attr": {"ksize": size, "strides": size}},
            {"name": f"conv{head}", "op": "Conv2D", "input": [f"pool{head}", "kernel"], "attr": {"strides": ones}},
            {"name": f"PartitionedCall/Add_{head}", "op": "Add", "input": [f"conv{head}:0", "bias"]},
        ]
        nodes.append({"name": f"map{head}", "op": "Transpose", "input": [f"pool{head}", "back"]})
    nodes += [
        {"name": f"PartitionedCall/onnx_tf_prefix_Add_{number}", "op": "ConcatV2", "input": [f"map{head}", "axis"]}
        for number, head in zip((107, 149), (29, 37), strict=True)
    ]
    # The middle map is the coarse one, resized to the size that it has in images of 416 px.
    nodes += [
        {"name": "resized", "op": "ResizeBilinear", "input": ["pool37", "size"]},
        {"name": "PartitionedCall/onnx_tf_prefix_Add_128", "op": "Transpose", "input": ["resized", "back"]},
    ]
    weights = []
    for name, value in tensors.items():
        entry: dict[str, Any] = {"name": name, "shape": list(value.shape), "dtype": str(value.dtype)}
        if value.dtype == np.float16:
            entry |= {"dtype": "float32", "quantization": {"dtype": "float16"}}
        weights.append(entry)
    data = b"".join(value.tobytes() for value in tensors.values())
    (folder / "one.bin").write_bytes(data[:101])  # the files of a group are cut anywhere
    (folder / "two.bin").write_bytes(data[101:])
    manifest = [{"paths": ["one.bin", "two.bin"], "weights": weights}]
    content = {"modelTopology": {"node": nodes}, "weightsManifest": manifest}
    (folder / "nanodet.json").write_text(json.dumps(content))
    return nanodet.NanoDet(folder)


def test_boxes_are_in_pixels_of_the_image(network: nanodet.NanoDet) -> None:
    image = np.full((208, 832, 3), 103, np.uint8)
    image[96:112, 384:448] = 255  # one cell of stride 32: x and y from 192 to 224 of the input
    boxes, scores = network.find(image)
    assert boxes.shape == (52 * 52 + 26 * 26 + 13 * 13, 4)
    bright = scores > 0.3
    assert bright.sum() == 4 * 4 + 2 * 2 + 1
    assert (np.diff(scores) <= 0).all()
    logit = BIAS + (255 - 103.53) / 57.375
    assert scores[0] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-3)
    widths = boxes[bright, 2] - boxes[bright, 0]
    (largest,) = boxes[bright][widths > 250]  # center 208, 208 of the input; x is twice and y half of it in the image
    assert largest.tolist() == pytest.approx([2 * (208 - 32), (208 - 64) / 2, 2 * (208 + 96), (208 + 128) / 2], abs=0.1)


def test_boxes_end_at_the_border(network: nanodet.NanoDet) -> None:
    boxes, _ = network.find(np.zeros((100, 60, 3), np.uint8))
    assert boxes.min() == 0
    assert boxes.max(axis=0).tolist()[2:] == [60, 100]
    assert (boxes[:, 2:] >= boxes[:, :2]).all()


def test_proposals_pass_nms_and_are_counted(network: nanodet.NanoDet) -> None:
    image = np.full((416, 416, 3), 103, np.uint8)
    image[:, 200:] = 255
    few = network.propose(image, nms_iou=0.3, count=10_000)
    many = network.propose(image, nms_iou=0.9, count=10_000)
    assert len(few) < len(many)
    some = network.propose(image, nms_iou=0.3, count=7)
    assert some.boxes.tolist() == few.boxes[:7].tolist()


def test_suppression_keeps_the_best_of_overlapping_boxes() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 5], [20, 0, 30, 10]], np.float32)
    assert nanodet.suppress(boxes, 0.8).tolist() == [0, 2, 3]
    assert nanodet.suppress(boxes, 0.4).tolist() == [0, 3]
    assert nanodet.suppress(boxes[:0], 0.5).tolist() == []


def test_several_images_of_any_size_are_seen_together(network: nanodet.NanoDet) -> None:
    images = torch.zeros(2, 3, 96, 64)
    images[1, :, 32:64, :32] = 4.0
    sight = network.look(images)
    assert [tuple(x.shape) for x in sight.maps] == [(2, 3, 12, 8), (2, 3, 6, 4), (2, 3, 3, 2)]
    assert sight.boxes.shape == (2, 12 * 8 + 6 * 4 + 3 * 2, 4)
    assert (sight.scores[0] < 0.1).all()
    best = sight.scores[1] > 0.5
    assert best.sum() == 4 * 4 + 2 * 2 + 1
    assert sight.boxes[1, best][-1].tolist() == pytest.approx([16 - 32, 48 - 64, 16 + 96, 48 + 128], abs=0.1)
