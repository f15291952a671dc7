"""Float16 for the network of an exported graph, and nothing else; and the graph that shows its rounding on a CPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgerpn.errors import ExportError
from edgerpn.export.precision.blocks import NetworkNodes, block_name, find_network
from edgerpn.export.precision.half import emulate_half, to_half
from edgerpn.letterbox import letterbox
from edgerpn.manifest import read
from edgerpn.matching import match

GetExport = Callable[[str], Any]
VARIANTS = ["standard", "portable", "portable-source", "single-level"]


def load(made: Any) -> tuple[onnx.ModelProto, NetworkNodes]:
    proto = onnx.load(made.file)
    return proto, find_network(proto)


def run(proto: onnx.ModelProto, inputs: dict[str, Any], outputs: list[str] | None = None) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(outputs, inputs)


def frame_for(made: Any, file: Path) -> np.ndarray:
    frame = cv2.imread(str(file))
    return letterbox(frame.shape[:2], read(made.file).input.frame_hw).apply(frame, cv2.resize)[None]


def types_of(proto: onnx.ModelProto) -> dict[str, int]:
    graph = onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph
    values = (*graph.value_info, *graph.output, *graph.input)
    return {value.name: value.type.tensor_type.elem_type for value in values}


@pytest.mark.parametrize(
    ("weight", "block"),
    [
        ("model.backbone.stages.2.1.first.conv.weight", "backbone.stages.2.1"),
        ("model.backbone.stages.3.0.conv.bias", "backbone.stages.3.0"),
        ("model.backbone.layer1.0.downsample.0.weight", "backbone.layer1.0"),
        ("model.backbone.conv1.weight", "backbone.conv1"),
        ("model.backbone.features.28.weight", "backbone.features.28"),
        ("model.neck.lateral.1.weight", "neck.lateral.1"),
        ("model.head.window.fused.2.weight", "head.window.fused.2"),
        ("model.head.objectness.bias", "head.objectness"),
    ],
)
def test_a_weight_names_its_block(weight: str, block: str) -> None:
    assert block_name(weight) == block


def test_the_network_of_a_pyramid_has_these_blocks(exported: GetExport) -> None:
    proto, network = load(exported("standard"))
    assert [block for block in network.blocks if block.startswith("backbone")] == [
        *("backbone.stages.0.0", "backbone.stages.1.0", "backbone.stages.2.0", "backbone.stages.2.1"),
        *("backbone.stages.3.0", "backbone.stages.4.0"),
    ]
    others = {block for block in network.blocks if not block.startswith("backbone")}
    laterals = {f"neck.lateral.{level}" for level in range(len(network.logits))}
    levels = range(len(network.logits))
    windows = {f"head.window.fused.{level}" for level in levels}
    assert others == laterals | windows | {"head.objectness", "head.deltas"}
    assert len(network.logits) == len(network.deltas) > 1
    kinds = {node.name: node.op_type for node in proto.graph.node}
    of_block = {kinds[name] for name, block in network.block_of.items() if block == "backbone.stages.2.1"}
    assert of_block == {"Conv", "Relu", "Add"}
    assert not {"Cast", "Sub", "TopK", "Sigmoid"} & {kinds[name] for name in network.block_of}


def test_a_graph_without_a_head_is_refused() -> None:
    node = helper.make_node("Relu", ["x"], ["y"], name="relu")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    proto = helper.make_model(helper.make_graph([node], "g", values[:1], values[1:]))
    with pytest.raises(ExportError, match=r"model\.head\.objectness\.weight and model\.head\.deltas\.weight"):
        find_network(proto)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_network_alone_becomes_half_with_one_cast_at_each_border(name: str, exported: GetExport) -> None:
    proto, network = load(exported(name))
    before = proto.SerializeToString()
    half = to_half(proto, network.nodes())
    assert proto.SerializeToString() == before
    for field in ("input", "output"):
        assert list(getattr(half.graph, field)) == list(getattr(proto.graph, field))
    assert list(half.metadata_props) == list(proto.metadata_props)
    assert list(half.opset_import) == list(proto.opset_import)
    # The image enters once; logits and deltas of each level leave.
    casts = [Counter(node.op_type for node in model.graph.node)["Cast"] for model in (proto, half)]
    assert casts[1] - casts[0] == 1 + len(network.logits) + len(network.deltas)
    types = types_of(half)
    # Some of the portable NMS is float16 by itself.
    untouched = {tensor for node in proto.graph.node if node.name not in network.block_of for tensor in node.output}
    before_types = types_of(proto)
    assert {t: types[t] for t in untouched} == {t: before_types[t] for t in untouched}
    assert {types[node.input[0]] for node in half.graph.node if node.op_type == "TopK"} == {TensorProto.FLOAT}
    convolutions = [node for node in half.graph.node if node.op_type == "Conv"]
    assert {types[node.output[0]] for node in convolutions} == {TensorProto.FLOAT16}
    weights = {tensor.name: tensor for tensor in half.graph.initializer if tensor.name.startswith("model.head")}
    assert {tensor.data_type for tensor in weights.values()} == {TensorProto.FLOAT16}
    assert half.ByteSize() < proto.ByteSize()


@pytest.mark.parametrize("name", VARIANTS)
def test_half_and_its_emulation_give_nearly_the_same_proposals(
    name: str, exported: GetExport, photo_files: list[Path]
) -> None:
    made = exported(name)
    proto, network = load(made)
    half = to_half(proto, network.nodes())
    frames = {"frames": frame_for(made, photo_files[0])}
    boxes, scores, count = run(proto, frames)
    expected = boxes[0, : count[0]], scores[0, : count[0]]
    for graph in (half, emulate_half(half, (*network.logits, *network.deltas))):
        boxes, scores, count = run(graph, frames)
        found = boxes[0, : count[0]], scores[0, : count[0]]
        assert [output.dtype for output in (boxes, scores, count)] == [np.float32, np.float32, np.int32]
        near = sum(abs(float(expected[1][e] - found[1][f])) < 5e-3 for e, f in match(expected, found)[0])
        assert near >= 0.8 * len(expected[1]) > 8


def test_a_block_can_stay_in_float32(exported: GetExport) -> None:
    proto, network = load(exported("portable"))
    half = to_half(proto, network.nodes(without=["backbone.stages.3.0"]))
    kinds = {tensor.name: tensor.data_type for tensor in half.graph.initializer}
    kept = {name for name, kind in kinds.items() if kind == TensorProto.FLOAT and name.startswith("model.backbone")}
    assert kept == {f"model.backbone.stages.3.0.conv.{name}" for name in ("weight", "bias")}
    types = types_of(half)
    stage = next(node for node in half.graph.node if "model.backbone.stages.3.0.conv.weight" in node.input)
    assert types[stage.input[0]] == types[stage.output[0]] == TensorProto.FLOAT


def chain(*scales: float) -> onnx.ModelProto:
    """x (1, 2, 3, 3) through 1x1 convolutions by random weights of these scales, with ReLUs between, in float16."""
    rng = np.random.default_rng(3)
    nodes, weights, name = [], [], "x"
    for i, scale in enumerate(scales):
        weights.append(numpy_helper.from_array((rng.random((2, 2, 1, 1)) * scale).astype(np.float32), f"w{i}"))
        nodes.append(helper.make_node("Conv", [name, f"w{i}"], [f"c{i}"], name=f"conv{i}"))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"], name=f"relu{i}"))
        name = f"r{i}"
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 2, 3, 3]) for n in ("x", name)]
    graph = helper.make_graph(nodes, "chain", values[:1], values[1:], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return to_half(proto, [node.name for node in nodes])


def test_the_emulation_rounds_every_stored_value_as_float16_does() -> None:
    proto = chain(1.0, 0.01, 20.0)
    x = np.random.default_rng(0).normal(size=(1, 2, 3, 3)).astype(np.float32)
    expected = x.astype(np.float16)
    for tensor in proto.graph.initializer:
        weight = numpy_helper.to_array(tensor)
        assert weight.dtype == np.float16
        sums = np.einsum("oi,nihw->nohw", weight[:, :, 0, 0].astype(np.float32), expected.astype(np.float32))
        expected = np.maximum(sums.astype(np.float16), 0)
    found = run(emulate_half(proto, [proto.graph.output[0].name]), {"x": x})[0]
    np.testing.assert_array_equal(found, expected.astype(np.float32))
    assert (found > 0).any()
    unrounded = run(proto, {"x": x})[0]
    assert (unrounded != found).any(), "ONNX Runtime's CPU rounds by itself now: the emulation can go"


def test_the_emulation_overflows_where_float16_does() -> None:
    # 60000 x 2 is beyond float16, though the end result would not be.
    proto, x = chain(60000.0, 1e-4), np.full((1, 2, 3, 3), 4.0, np.float32)
    assert np.isinf(run(emulate_half(proto, [proto.graph.output[0].name]), {"x": x})[0]).all()
    assert np.isfinite(run(proto, {"x": x})[0]).all()  # which is why there is an emulation


def test_a_weight_beyond_float16_is_refused() -> None:
    with pytest.raises(ExportError, match=r"w0: .* is beyond float16 \(65504\); use --precision fp32"):
        chain(1e6)
