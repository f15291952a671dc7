"""int8: the photographs for the ranges, the ranges, and the places of the quantizers for each target."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper

from edgerpn.errors import DataError, ExportError
from edgerpn.export.export_config import Calibration, ExportConfig
from edgerpn.export.onnx.export import export_onnx
from edgerpn.export.precision.blocks import find_network
from edgerpn.export.precision.calibration import (
    PERCENTILE,
    CalibratedRanges,
    frames,
    measure_ranges,
    partial_session,
)
from edgerpn.export.precision.quantize import convolutions, quantize, tensors_to_calibrate
from edgerpn.manifest import read
from edgerpn.targets import ExportTarget

GetExport = Callable[[str], Any]


def ranges_for(
    made: Any, images: list[Path], *, target: ExportTarget, method: Calibration = "percentile"
) -> CalibratedRanges:
    proto = onnx.load(made.file)
    names = tensors_to_calibrate(proto, find_network(proto), target)
    return measure_ranges(proto, names, images, read(made.file).input, method=method)


def quantized(made: Any, images: list[Path], *, target: ExportTarget, **options: Any) -> onnx.ModelProto:
    proto = onnx.load(made.file)
    return quantize(proto, find_network(proto), ranges_for(made, images, target=target), target=target, **options)


def arrays(proto: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def test_an_unreadable_photograph_is_skipped_with_a_line(
    tmp_path: Path, exported: GetExport, photo_files: list[Path]
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(photo_files[0].read_bytes()[:50])
    made, lines = exported("standard"), list[str]()
    proto, spec = onnx.load(made.file), read(made.file).input
    names = [convolutions(proto, find_network(proto))[0].input[0]]
    images = [photo_files[0], broken, photo_files[1]]
    ranges = measure_ranges(proto, names, images, spec, method="percentile", log=lines.append)
    assert ranges.num_images == 2
    assert len(lines) == 1
    assert lines[0].startswith("skipped: ")
    assert "broken.png" in lines[0]
    with pytest.raises(DataError, match="none of the 1 calibration images can be read"):
        measure_ranges(proto, names, [broken], spec, method="percentile")


def test_percentile_ranges_are_those_of_all_values_together(exported: GetExport, photo_files: list[Path]) -> None:
    made = exported("standard")
    proto, spec = onnx.load(made.file), read(made.file).input
    names = tensors_to_calibrate(proto, find_network(proto), "tensorrt")
    found = measure_ranges(proto, names, photo_files, spec, method="percentile").tensors
    session = partial_session(proto, names)
    outputs = [session.run(names, {"frames": frame[None]}) for frame in frames(photo_files, spec)]
    for i, name in enumerate(names):
        values = np.abs(np.concatenate([output[i].ravel() for output in outputs]))
        greatest = max(abs(float(limit)) for limit in found[name].range_value)
        # A histogram tells a value to within a bin, of which there are 2048 to the greatest value of the first image.
        bin_width = float(np.abs(outputs[0][i]).max()) / 2048
        assert greatest == pytest.approx(np.percentile(values, PERCENTILE, method="higher"), abs=1.01 * bin_width), name


def test_entropy_cuts_off_more_than_percentile(exported: GetExport, photo_files: list[Path]) -> None:
    made = exported("single-level")
    found = {
        method: ranges_for(made, photo_files, target="tensorrt", method=method) for method in ("percentile", "entropy")
    }
    assert found["entropy"].method == "entropy"
    assert found["percentile"].method == "percentile 99.999"
    for name, data in found["entropy"].tensors.items():
        low, high = (float(limit) for limit in data.range_value)
        limits = [float(limit) for limit in found["percentile"].tensors[name].range_value]
        assert 0 < max(-low, high) <= max(map(abs, limits)) * 1.001


@pytest.mark.parametrize("name", ["portable", "single-level", "portable-source"])
def test_for_tensorrt_wide_convolutions_have_symmetric_int8_inputs(
    name: str, exported: GetExport, photo_files: list[Path]
) -> None:
    made = exported(name)
    original = onnx.load(made.file)
    network = find_network(original)
    proto = quantized(made, photo_files, target=made.config.target)
    assert {entry.domain: entry.version for entry in proto.opset_import}[""] == 19
    assert list(proto.metadata_props) == list(original.metadata_props)
    assert [value.name for value in proto.graph.output] == ["boxes", "scores", "count"]
    constants, givers = arrays(proto), {output: node for node in proto.graph.node for output in node.output}
    quantizers = [node for node in proto.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for node in quantizers:
        zero_point, scale = constants[node.input[2]], constants[node.input[1]]
        assert zero_point.dtype == np.int8
        assert not zero_point.any()
        assert scale.dtype == np.float16
        assert (scale > 0).all()
    chosen = {node.name for node in convolutions(original, network)}
    weights = arrays(original)
    for node in proto.graph.node:
        if node.op_type == "Conv":
            sources = [givers[tensor].op_type if tensor in givers else "" for tensor in node.input]
            is_int8 = sources[:2] == ["DequantizeLinear", "DequantizeLinear"]
            assert is_int8 == (node.name in chosen), node.name
            assert all(constants[bias].dtype == np.float16 for bias in node.input[2:])
    wide = [n for n in original.graph.node if n.op_type == "Conv" and min(weights[n.input[1]].shape[:2]) >= 16]
    heads = {*network.logits, *network.deltas}
    assert chosen == {node.name for node in wide if node.output[0] not in heads}
    assert 0 < len(chosen) < sum(node.op_type == "Conv" for node in original.graph.node)


def test_int8_weights_are_the_weights_to_half_a_step_of_their_channel(
    exported: GetExport, photo_files: list[Path]
) -> None:
    made = exported("portable")
    original = arrays(onnx.load(made.file))
    proto = quantized(made, photo_files, target="tensorrt")
    constants = arrays(proto)
    dequantizers = [n for n in proto.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants]
    assert len(dequantizers) >= 5
    for node in dequantizers:
        whole, scale = constants[node.input[0]], constants[node.input[1]].astype(np.float64)
        assert next(attribute.i for attribute in node.attribute if attribute.name == "axis") == 0
        assert scale.shape == whole.shape[:1]
        weight = original[node.input[0].removesuffix("_quantized")]
        error = np.abs(whole * scale[:, None, None, None] - weight)
        # Half a step, and the rounding of the scale to float16, at most 127 times.
        assert (error <= scale[:, None, None, None] * (0.5 + 127 * 2**-11 + 1e-6)).all()
        assert (np.abs(whole).reshape(len(whole), -1).max(axis=1) == 127).all()


def test_blocks_can_stay_out_of_int8(exported: GetExport, photo_files: list[Path]) -> None:
    made = exported("portable")
    everything = quantized(made, photo_files, target="tensorrt")
    partly = quantized(made, photo_files, target="tensorrt", without=["backbone.stages.3.0"])
    names = {n.name for n in arrays_by_type(everything, TensorProto.INT8)}
    left = {n.name for n in arrays_by_type(partly, TensorProto.INT8)}
    assert {name for name in names - left if "_zero_point" not in name} == {
        "model.backbone.stages.3.0.conv.weight_quantized"
    }
    assert arrays(partly)["model.backbone.stages.3.0.conv.weight_half"].dtype == np.float16
    network = find_network(onnx.load(made.file))
    with pytest.raises(ValueError, match="expected a block to be left to quantize"):
        quantized(made, photo_files, target="tensorrt", without=network.blocks)


def arrays_by_type(proto: onnx.ModelProto, kind: int) -> list[onnx.TensorProto]:
    return [tensor for tensor in proto.graph.initializer if tensor.data_type == kind]


def test_for_onnx_runtime_every_chosen_convolution_runs_in_integers(
    tmp_path: Path, exported: GetExport, photo_files: list[Path]
) -> None:
    made = exported("standard")
    original = onnx.load(made.file)
    proto = quantized(made, photo_files, target="onnxruntime")
    assert list(proto.opset_import) == list(original.opset_import)
    assert not arrays_by_type(proto, TensorProto.FLOAT16)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert kinds["QLinearConv"] == len(convolutions(original, find_network(original)))
    frame = next(iter(frames(photo_files, read(made.file).input)))
    scores = session.run(["scores"], {"frames": np.stack([frame, frame])})[0]
    np.testing.assert_array_equal(scores[0], scores[1])
    assert (scores[0] > 0).sum() > 10


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_int8_logits_are_near_those_of_float32(
    target: ExportTarget, exported: GetExport, photo_files: list[Path]
) -> None:
    made = exported("standard" if target == "onnxruntime" else "portable")
    original, spec = onnx.load(made.file), read(made.file).input
    proto = quantized(made, photo_files, target=target)
    names = list(find_network(original).logits)
    frame = next(iter(frames(photo_files, spec)))[None]
    for expected, found in zip(
        *(partial_session(p, names).run(names, {"frames": frame}) for p in (original, proto)), strict=True
    ):
        error = np.abs(found - expected).mean()
        assert 1e-5 < error < 0.15 * expected.std()


def test_a_network_of_narrow_convolutions_is_refused(exported: GetExport) -> None:
    proto = onnx.load(exported("peaks-standard").file)
    with pytest.raises(ExportError, match=r"no convolution of the network has 16 or more .*; use --precision fp16"):
        tensors_to_calibrate(proto, find_network(proto), "tensorrt")


@pytest.mark.slow
def test_a_fixed_batch_is_filled_up(tmp_path: Path, checkpoints: dict[str, Path], photo_files: list[Path]) -> None:
    file = tmp_path / "two.onnx"
    config = ExportConfig(target="tensorrt", batch=2, num_proposals=10, pre_nms=100)
    export_onnx(checkpoints["single-level"], file, config, images=photo_files[:2])
    proto, spec = onnx.load(file), read(file).input
    names = tensors_to_calibrate(proto, find_network(proto), "tensorrt")
    found = measure_ranges(proto, names, photo_files[:3], spec, method="percentile")
    assert found.num_images == 3
    one = quantize(proto, find_network(proto), found, target="tensorrt")
    assert [dim.dim_value for dim in one.graph.output[0].type.tensor_type.shape.dim] == [2, 10, 4]
