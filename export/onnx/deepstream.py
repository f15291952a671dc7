"""The graph in the layout that DeepStream's element nvinfer feeds and reads.

nvinfer scales and converts the frames of a pipeline itself, and hands over float32 planes [N, 3, H, W], never uint8. So
the input is that here, BGR from 0 to 255. nvinfer takes the first axis of every tensor for the batch and describes the
others; `count` therefore has a second axis, [N, 1]. The rest of the graph stays.

Source: DeepStream 9 documentation, Gst-nvinfer (preprocessing, tensor metadata).
"""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from edgerpn.errors import ExportError, ParityError
from edgerpn.export.onnx.graph import save_sealed
from edgerpn.manifest import SCHEMA_LAYOUT, Manifest
from edgerpn.matching import match
from edgerpn.runtime.backends.onnxruntime import harmful_optimizers
from edgerpn.runtime.backends.open_backend import open_backend

ASKED = ("boxes", "scores", "count", "labels")
"""Outputs that the parser and the Python program of a bundle ask for by these names, where the graph has them."""


def write_deepstream(plain: Path, output: Path, frames: npt.NDArray[np.uint8]) -> Manifest:
    """Writes a graph of ours in DeepStream's layout, and proves on frames that it finds the same proposals.

    Args:
        plain: An exported ONNX file.
        output: File to write. Its manifest is inside.
        frames: (F, H, W, 3) uint8 BGR, as the graph's input.

    Returns:
        The manifest of the new graph.

    Raises:
        ExportError: DeepStream cannot feed or run the graph.
        ParityError: The proposals are others.
    """
    with contextlib.closing(open_backend(plain, providers=["cpu"])) as backend:
        manifest, expected = backend.manifest, backend.infer(frames)
    if manifest.input.color_order != "BGR":
        raise ExportError(f"{plain}: its frames are {manifest.input.color_order}, and nvinfer delivers BGR")
    if manifest.proposals.nms != "portable":
        raise ExportError(
            f"{plain}: its NMS is {manifest.proposals.nms}, and TensorRT, which DeepStream runs, needs plain "
            "operations; export the model with --target tensorrt"
        )
    names = {role: spec.name for role, spec in manifest.outputs_by_role.items()}
    asked = [role for role in names if role in ASKED]
    if any(names[role] != role for role in asked):
        raise ExportError(
            f"{plain}: its outputs are {', '.join(names[role] for role in asked)}, and the parser for DeepStream asks "
            f"for {', '.join(asked)}; package the file that it was made from, or give them these names and reseal it"
        )
    proto = _with_planes(onnx.load(plain), manifest.input.name, names["count"])
    outputs = [
        dataclasses.replace(spec, shape=("N", 1)) if role == "count" else spec
        for role, spec in manifest.outputs_by_role.items()
    ]
    described = manifest.replace(
        schema=SCHEMA_LAYOUT, layout="deepstream", outputs=tuple(outputs), provenance=manifest.provenance.derived()
    )
    save_sealed(proto, described, output)
    session = onnxruntime.InferenceSession(
        output, providers=["CPUExecutionProvider"], disabled_optimizers=harmful_optimizers(manifest)
    )
    for number, frame in enumerate(frames):
        planes = np.repeat(frame.transpose(2, 0, 1)[None].astype(np.float32), manifest.input.batch or 1, axis=0)
        boxes, scores, count = session.run(
            [names[role] for role in ("boxes", "scores", "count")], {manifest.input.name: planes}
        )
        wanted, given = int(expected.count[number]), int(count[0, 0])
        pairs, _ = match(
            (expected.boxes[number, :wanted], expected.scores[number, :wanted]),
            (boxes[0, :given], scores[0, :given]),
        )
        if not len(pairs) == wanted == given:
            raise ParityError(f"{output}: frame {number}: the proposals for DeepStream are not those of {plain}")
    return described


def _with_planes(proto: onnx.ModelProto, frames: str, count: str) -> onnx.ModelProto:
    """Returns the graph with planes of float32 as `frames`, and with a second axis of `count`."""
    graph = proto.graph
    for node in graph.node:
        node.input[:] = [{frames: "frames_nhwc", count: "count_of_frames"}.get(name, name) for name in node.input]
        node.output[:] = ["count_of_frames" if name == count else name for name in node.output]
    batch, height, width, channels = graph.input[0].type.tensor_type.shape.dim
    planes = [dim.dim_param or dim.dim_value for dim in (batch, channels, height, width)]
    graph.input[0].CopyFrom(helper.make_tensor_value_info(frames, TensorProto.FLOAT, planes))
    graph.node.insert(0, helper.make_node("Transpose", [frames], ["frames_nhwc"], perm=[0, 2, 3, 1]))
    graph.node.append(helper.make_node("Unsqueeze", ["count_of_frames", "count_axis"], [count]))
    graph.initializer.append(numpy_helper.from_array(np.array([1]), "count_axis"))
    position = [value.name for value in graph.output].index(count)
    graph.output[position].CopyFrom(helper.make_tensor_value_info(count, TensorProto.INT32, [planes[0], 1]))
    # Types in between are inferred anew.
    del graph.value_info[:]
    onnx.checker.check_model(proto, full_check=True)
    return proto
