"""A small graph for tests of builds: the interface of an export around one convolution, compiled in about a second."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import edgerpn.golden
import edgerpn.manifest
from edgerpn.proposals import Outputs
from edgerpn.runtime.backends.open_backend import open_backend
from tests.support.models import NETWORK_HW, NUM_PROPOSALS, make_manifest

OPSET = 18


@pytest.fixture(scope="session")
def small_graph(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes the graph as model.onnx with a manifest and golden frames; with `batch=None` the batch is dynamic."""

    def write(*, batch: int | None = 1) -> Path:
        file = tmp_path_factory.mktemp("small") / "model.onnx"
        opset = helper.make_opsetid("", OPSET)
        onnx.save(
            helper.make_model(_graph("N" if batch is None else batch), opset_imports=[opset], ir_version=10), file
        )
        manifest = make_manifest(batch=batch, source_hw=None)
        proposals = dataclasses.replace(manifest.proposals, nms="portable", nms_iterations=1)
        edgerpn.manifest.write(manifest.replace(target="tensorrt-rtx", opset=OPSET, proposals=proposals), file)
        _write_golden(file)
        return file

    return write


@pytest.fixture(scope="session")
def fixed_graph(small_graph: Callable[..., Path]) -> Path:
    """The graph with a batch of 1; tests may not change it."""
    return small_graph()


def _graph(batch: int | str) -> onnx.GraphProto:
    rng, rows, node, info = np.random.default_rng(0), NUM_PROPOSALS, helper.make_node, helper.make_tensor_value_info
    constants = {
        "weights": rng.normal(0, 0.01, (5 * rows, 3, 8, 8)).astype(np.float32),
        "start": np.array([0]), "middle": np.array([4 * rows]), "end": np.array([5 * rows]), "axis": np.array([1]),
        "boxes_shape": np.array([0, rows, 4]), "zero": np.array(0, np.float32), "rows": np.array(rows, np.float32),
    }  # fmt: skip
    nodes = [
        node("Cast", ["frames"], ["pixels"], "cast", to=TensorProto.FLOAT),
        node("Transpose", ["pixels"], ["planes"], "transpose", perm=[0, 3, 1, 2]),
        node("Conv", ["planes", "weights"], ["features"], "conv", strides=[8, 8]),
        node("GlobalAveragePool", ["features"], ["pooled"], "pool"),
        node("Flatten", ["pooled"], ["flat"], "flatten", axis=1),
        node("Slice", ["flat", "start", "middle", "axis"], ["flat_boxes"], "cut_boxes"),
        node("Reshape", ["flat_boxes", "boxes_shape"], ["boxes"], "shape_boxes"),
        node("Slice", ["flat", "middle", "end", "axis"], ["logits"], "cut_scores"),
        node("Sigmoid", ["logits"], ["scores"], "sigmoid"),
        node("ReduceMax", ["scores", "axis"], ["best"], "best", keepdims=0),
        node("Mul", ["best", "zero"], ["zeros"], "zeros"),
        node("Add", ["zeros", "rows"], ["counts"], "add"),
        node("Cast", ["counts"], ["count"], "to_count", to=TensorProto.INT32),
    ]
    outputs = [
        info("boxes", TensorProto.FLOAT, [batch, rows, 4]),
        info("scores", TensorProto.FLOAT, [batch, rows]),
        info("count", TensorProto.INT32, [batch]),
    ]
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    return helper.make_graph(
        nodes, "small", [info("frames", TensorProto.UINT8, [batch, *NETWORK_HW, 3])], outputs, initializers
    )


def _write_golden(file: Path) -> None:
    manifest = edgerpn.manifest.read(file)
    frames = np.random.default_rng(0).integers(0, 256, (2, *manifest.input.frame_hw, 3), dtype=np.uint8)
    backend = open_backend(file)
    outputs = Outputs.join([backend.infer(frame[None]) for frame in frames])
    backend.close()
    golden = edgerpn.golden.Golden(frames=frames, **outputs.present)
    edgerpn.manifest.write(manifest.replace(golden=edgerpn.golden.write(golden, file)), file)
