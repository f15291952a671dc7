"""A `standard` graph gives the same proposals in every runtime that reads plain ONNX."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from edgerpn.letterbox import letterbox
from edgerpn.train.data.coco import read_image

GetExport = Callable[[str], Any]
Arrays = list[npt.NDArray[Any]]

NAMES = ["boxes", "scores", "count"]
MAX_PX = 2e-4
"""Twelve steps of float32 at 192 px; measured: 3."""
LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_LAYOUT", "ORT_ENABLE_ALL")


@pytest.fixture(scope="module")
def file(exported: GetExport) -> str:
    return str(exported("standard").file)


@pytest.fixture(scope="module")
def frames(exported: GetExport, photo_files: list[Path]) -> npt.NDArray[np.uint8]:
    """Photographs (N, H, W, 3); an even picture has equal scores, whose order is free."""
    hw = exported("standard").network_hw
    pictures = [read_image(photo) for photo in photo_files]
    return np.stack([letterbox((p.shape[0], p.shape[1]), hw).apply(p, cv2.resize) for p in pictures])


def run_onnxruntime(file: str, frames: npt.NDArray[np.uint8], level: str) -> Arrays:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    outputs: Arrays = session.run(NAMES, {"frames": frames})
    return outputs


@pytest.fixture(scope="module")
def expected(file: str, frames: npt.NDArray[np.uint8]) -> Arrays:
    """The graph node by node, as it is written."""
    return run_onnxruntime(file, frames, LEVELS[0])


def assert_equal(found: Arrays, expected: Arrays) -> None:
    np.testing.assert_array_equal(found[2], expected[2])
    assert expected[2].min() > 0
    np.testing.assert_allclose(found[0], expected[0], rtol=0, atol=MAX_PX)
    np.testing.assert_allclose(found[1], expected[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("level", LEVELS[1:])
def test_every_optimization_level_of_onnx_runtime(
    level: str, file: str, frames: npt.NDArray[np.uint8], expected: Arrays
) -> None:
    assert_equal(run_onnxruntime(file, frames, level), expected)


@pytest.mark.skipif(int(cv2.__version__.split(".")[0]) < 5, reason="the engine of OpenCV before 5 lacks operators")
def test_opencv(file: str, frames: npt.NDArray[np.uint8], expected: Arrays) -> None:
    network = cv2.dnn.readNetFromONNX(file)
    rows = []
    for frame in frames:
        network.setInput(frame[None], "frames")
        rows.append([np.array(output) for output in network.forward(NAMES)])
    assert_equal([np.concatenate(arrays) for arrays in zip(*rows, strict=True)], expected)


def test_openvino(file: str, frames: npt.NDArray[np.uint8], expected: Arrays) -> None:
    openvino = pytest.importorskip("openvino")
    # Otherwise a CPU with bfloat16 computes in it.
    model = openvino.Core().compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    outputs = model(frames)
    assert_equal([np.array(outputs[name]) for name in NAMES], expected)
