"""A `standard` graph gives the same proposals in every runtime that reads plain ONNX; graphs for other programs too."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest

from edgerpn.__main__ import main
from edgerpn.export.onnx.deepstream import write_deepstream
from edgerpn.export.onnx.frigate import raise_scores, write_frigate
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


@pytest.fixture(scope="module")
def layouts(
    exported: GetExport, frames: npt.NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The `portable` graph in the layouts of other programs."""
    folder = tmp_path_factory.mktemp("layouts")
    files = {name: folder / f"{name}.onnx" for name in ("frigate", "deepstream")}
    write_frigate(exported("portable").file, files["frigate"], frames, min_score=0.5)
    write_deepstream(exported("portable").file, files["deepstream"], frames)
    return files


def test_the_rows_for_frigate_in_openvino(
    exported: GetExport, frames: npt.NDArray[np.uint8], expected: Arrays, tmp_path: Path
) -> None:
    openvino = pytest.importorskip("openvino")
    write_frigate(exported("standard").file, tmp_path / "rows.onnx", frames, min_score=0.3)
    model = openvino.Core().compile_model(tmp_path / "rows.onnx", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for number, frame in enumerate(frames):
        rows = np.array(model(frame[None])[0])
        np.testing.assert_allclose(rows[:, 1:5], expected[0][number, :20], rtol=0, atol=MAX_PX)
        np.testing.assert_allclose(rows[:, 5], raise_scores(expected[1][number, :20], 0.3), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["frigate", "deepstream"])
def test_the_limits_of_a_target_are_checked_in_other_layouts(
    name: str, layouts: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(layouts[name]), "--target", "tensorrt-10.3"]) == 0, capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.rtx
@pytest.mark.parametrize("name", ["frigate", "deepstream"])
def test_graphs_for_other_programs_compile_in_tensorrt_rtx(name: str, layouts: dict[str, Path]) -> None:
    trt = importlib.import_module("tensorrt_rtx")
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, builder.logger)
    graph = layouts[name].read_bytes()
    assert parser.parse(graph), [str(parser.get_error(number)) for number in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    assert plan.nbytes > 20_000
