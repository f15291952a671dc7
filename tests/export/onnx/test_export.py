"""The exported file: its interface, its operations, its manifest, and the files after a failed export."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import edgerpn.golden
import edgerpn.manifest
from edgerpn import files
from edgerpn.__main__ import main
from edgerpn.errors import ArtifactChangedError, ExportError, ManifestError, ParityError
from edgerpn.export.evaluate import RecallMeter
from edgerpn.export.export_config import ExportConfig
from edgerpn.export.onnx import export, nms_chain
from edgerpn.export.onnx.export import export_onnx
from edgerpn.export.onnx.graph import IR_VERSION
from edgerpn.manifest import DIGEST_KEY, METADATA_KEY, Precision, RecallSpec
from edgerpn.runtime import load
from edgerpn.runtime.backends import onnxruntime as onnxruntime_backend
from edgerpn.train.network import proposal_stage

GetExport = Callable[[str], Any]
ALL = ["standard", "portable", "portable-source", "portable-bgrx", "single-level", "peaks-standard", "peaks-portable"]
PORTABLE = [name for name in ALL if "standard" not in name]

# Operations of the portable graphs; every TensorRT from 8.6 on supports all of them.
PORTABLE_OPERATIONS = {
    "Add", "And", "Cast", "Clip", "Concat", "Constant", "Conv", "Div", "Equal", "Exp", "Expand", "Flatten", "Gather",
    "GatherElements", "GatherND", "Greater", "GreaterOrEqual", "Identity", "Less", "LessOrEqual", "MatMul", "Max",
    "Min", "Mul", "Neg", "Not", "Or", "Pad", "ReduceMax", "ReduceMin", "ReduceSum", "Relu", "Reshape", "Resize",
    "Shape", "Sigmoid", "Slice", "Split", "Sqrt", "Squeeze", "Sub", "TopK", "Transpose", "Trilu", "Unsqueeze", "Where",
}  # fmt: skip


def shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize("name", ALL)
def test_the_interface_is_the_fixed_one(name: str, exported: GetExport) -> None:
    made = exported(name)
    config: ExportConfig = made.config
    proto = onnx.load(made.file)
    batch: int | str = config.fixed_batch or "N"
    height, width = config.source_hw or made.network_hw
    k = config.num_proposals
    (frames,) = proto.graph.input
    assert (frames.name, shape(frames)) == ("frames", [batch, height, width, config.num_channels])
    assert frames.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    outputs = {value.name: (value.type.tensor_type.elem_type, shape(value)) for value in proto.graph.output}
    assert outputs == {
        "boxes": (onnx.TensorProto.FLOAT, [batch, k, 4]),
        "scores": (onnx.TensorProto.FLOAT, [batch, k]),
        "count": (onnx.TensorProto.INT32, [batch]),
    }
    assert list(outputs) == ["boxes", "scores", "count"]
    assert [(entry.domain, entry.version) for entry in proto.opset_import if entry.domain == ""] == [("", 18)]
    assert proto.ir_version == IR_VERSION
    onnx.checker.check_model(proto, full_check=True)


@pytest.mark.parametrize("name", PORTABLE)
def test_the_portable_graph_is_made_of_plain_operations(name: str, exported: GetExport) -> None:
    proto = onnx.load(exported(name).file)
    used = Counter(node.op_type for node in proto.graph.node)
    assert set(used) <= PORTABLE_OPERATIONS
    assert {node.domain for node in proto.graph.node} <= {"", "ai.onnx"}
    assert not proto.functions
    assert not any(attribute.HasField("g") for node in proto.graph.node for attribute in node.attribute)


@pytest.mark.parametrize("name", PORTABLE)
def test_no_shape_in_the_portable_graph_depends_on_the_data(name: str, exported: GetExport) -> None:
    proto = onnx.shape_inference.infer_shapes(onnx.load(exported(name).file), strict_mode=True, data_prop=True)
    open_axes = {
        dim.dim_param or "?"
        for value in proto.graph.value_info
        for dim in value.type.tensor_type.shape.dim
        if not dim.HasField("dim_value")
    }
    assert open_axes <= {"N"}
    if exported(name).config.fixed_batch:
        assert not open_axes


def test_the_standard_graph_has_one_nms_for_all_levels(exported: GetExport) -> None:
    made = exported("standard")
    used = Counter(node.op_type for node in onnx.load(made.file).graph.node)
    assert used["NonMaxSuppression"] == 1
    assert edgerpn.manifest.read(made.file).proposals.nms_candidates >= made.config.pre_nms
    assert not set(used) & {"Loop", "If", "NonZero", "Scan"}


@pytest.mark.parametrize("name", ["standard", "portable-source"])
def test_batch_norm_and_deviation_are_folded(name: str, exported: GetExport) -> None:
    used = Counter(node.op_type for node in onnx.load(exported(name).file).graph.node)
    assert used["BatchNormalization"] == 0
    # Five strided, two of a residual block, three lateral, one window, two outputs; the head is there on 3 levels.
    assert used["Conv"] == 5 + 2 + 3 + 3 * 3


@pytest.mark.parametrize("name", ALL)
def test_the_file_carries_the_manifest_that_lies_beside_it(name: str, exported: GetExport) -> None:
    made = exported(name)
    proto = onnx.load(made.file)
    entry, digest = proto.metadata_props
    assert (entry.key, digest.key) == (METADATA_KEY, DIGEST_KEY)
    assert edgerpn.manifest.check_seal(made.file, digest.value)
    inside = json.loads(entry.value)
    beside = json.loads(made.file.with_suffix(".json").read_text())
    for hashed in ("artifact_sha256", "onnx_sha256"):
        assert inside["provenance"].pop(hashed) is None
        assert beside["provenance"].pop(hashed) == files.sha256(made.file)
    assert inside["provenance"].pop("artifact_bytes") is None
    assert beside["provenance"].pop("artifact_bytes") == made.file.stat().st_size
    assert len(beside.pop("digest")) == 64
    # Golden frames are a file of their own, which a copy of the ONNX file alone does not have.
    assert inside.pop("golden") is None
    assert beside.pop("golden")["file"] == "model.golden.npz"
    assert inside == beside


def test_the_manifest_says_what_was_exported(exported: GetExport, photos: Path) -> None:
    made = exported("portable-source")
    manifest = edgerpn.manifest.read(made.file)
    assert manifest == made.manifest
    assert (manifest.name, manifest.kind, manifest.target, manifest.opset) == ("model", "onnx", "tensorrt", 18)
    assert manifest.input.batch == 1
    assert manifest.input.network_hw == (128, 192)
    assert manifest.input.source_hw == (200, 300)
    assert manifest.input.exif == "auto"
    assert manifest.anchors.strides_px == (8, 16, 32)
    assert (manifest.proposals.nms, manifest.proposals.nms_iterations) == ("portable", 9)
    assert manifest.proposals.nms_chain == 5
    assert (manifest.proposals.num_proposals, manifest.proposals.pre_nms) == (50, 100)
    assert manifest.parity is not None
    assert (manifest.parity.reference, manifest.parity.batch_sizes) == ("checkpoint", (1,))
    assert manifest.provenance.checkpoint_sha256 == files.sha256(made.checkpoint)
    assert manifest.provenance.data_sha256 == files.sha256(photos / "train.json")
    assert {"edgerpn", "torch", "onnx", "onnxscript", "onnxruntime", "numpy", "python"} <= dict(
        manifest.provenance.versions
    ).keys()
    assert manifest.recall is None
    assert edgerpn.manifest.read(exported("standard").file).proposals.nms_iterations is None


@pytest.mark.parametrize("name", ALL)
def test_nothing_of_this_machine_is_in_the_file(name: str, exported: GetExport, root: Path) -> None:
    made = exported(name)
    data = made.file.read_bytes() + made.file.with_suffix(".json").read_bytes()
    for secret in (str(root), str(made.file.parent), str(made.checkpoint.parent), "site-packages", "/home/", ".py"):
        assert secret.encode() not in data, secret
    assert b"stack_trace" not in data
    assert sorted(p.name for p in made.file.parent.iterdir()) == ["model.golden.npz", "model.json", "model.onnx"]


def test_the_file_loads_in_onnx_runtime(exported: GetExport) -> None:
    session = onnxruntime.InferenceSession(str(exported("portable").file), providers=["CPUExecutionProvider"])
    assert [value.type for value in session.get_inputs()] == ["tensor(uint8)"]
    assert [value.type for value in session.get_outputs()] == ["tensor(float)", "tensor(float)", "tensor(int32)"]


def test_a_graph_that_disagrees_is_not_written(
    checkpoints: dict[str, Path], peaks_files: list[Path], tmp_path: Path
) -> None:
    # A single round of portable NMS lets dropped boxes drop others; the frame "many" shows it.
    config = ExportConfig(
        nms="portable", num_proposals=60, pre_nms=96, nms_iou=0.3, score_threshold=0.5, nms_iterations=1
    )
    output = tmp_path / "model.onnx"
    output.write_bytes(b"an older export")
    with pytest.raises(ParityError, match=r"many\.png: portable NMS needs \d+ rounds here, and the graph has 1;"):
        export_onnx(checkpoints["peaks"], output, config, images=peaks_files)
    assert output.read_bytes() == b"an older export"
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_an_export_that_fails_at_its_last_file_leaves_the_old_one_whole(
    exported: GetExport, peaks_files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = exported("peaks-standard")
    before = {file.name: file.read_bytes() for file in made.file.parent.iterdir()}
    for name, data in before.items():
        (tmp_path / name).write_bytes(data)

    def write(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(edgerpn.manifest, "write", write)
    config = dataclasses.replace(made.config, num_proposals=9)
    with pytest.raises(ExportError, match=r"model\.onnx: cannot be written: No space left"):
        export_onnx(made.checkpoint, tmp_path / "model.onnx", config, images=peaks_files)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_list_that_is_too_short_for_an_image_is_refused(
    checkpoints: dict[str, Path], peaks_files: list[Path], tmp_path: Path
) -> None:
    config = ExportConfig(num_proposals=60, pre_nms=96, nms_iou=0.3, score_threshold=0.5, nms_candidates=3)
    with pytest.raises(
        ParityError, match=r"many\.png: NMS needs the best \d+ candidates here, and the graph looks at 3"
    ):
        export_onnx(checkpoints["peaks"], tmp_path / "model.onnx", config, images=peaks_files)
    assert not list(tmp_path.iterdir())


def test_a_precision_that_nothing_can_accept_is_refused_before_the_work(
    checkpoints: dict[str, Path], photo_files: list[Path], tmp_path: Path
) -> None:
    lines: list[str] = []
    with pytest.raises(ExportError, match="--precision fp16 is accepted by recall, which needs annotated"):
        export_onnx(
            checkpoints["pyramid"],
            tmp_path / "model.onnx",
            ExportConfig(precision="fp16"),
            images=photo_files,
            log=lines.append,
        )
    assert lines == []


@pytest.mark.slow
def test_all_candidates_are_all_that_the_levels_have(
    checkpoints: dict[str, Path], photo_files: list[Path], tmp_path: Path
) -> None:
    config = ExportConfig(num_proposals=60, pre_nms=96, nms_candidates="all", golden=False)
    result = export_onnx(checkpoints["pyramid"], tmp_path / "model.onnx", config, images=photo_files)
    # Cells of the levels: 384, 96 and 24.
    assert result.proposals.nms_candidates == 96 + 96 + 24
    assert result.parity is not None
    assert result.parity.num_matched > 0


@pytest.mark.slow
def test_a_list_longer_than_tensorrt_sorts_stays_one_for_each_level(
    checkpoints: dict[str, Path], photo_files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (nms_chain, proposal_stage):
        monkeypatch.setattr(module, "TOPK_LIMIT", 192)
    config = ExportConfig(target="tensorrt", nms="standard", num_proposals=20, pre_nms=96, golden=False)
    lines: list[str] = []
    result = export_onnx(
        checkpoints["pyramid"],
        tmp_path / "model.onnx",
        dataclasses.replace(config, nms_candidates="all"),
        images=photo_files,
        log=lines.append,
    )
    assert any("NMS runs level by level, because tensorrt cannot sort a list of 216" in line for line in lines)
    assert result.proposals.nms_candidates is None
    used = Counter(node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node)
    assert used["NonMaxSuppression"] == 3
    # Its own choice fits.
    short = export_onnx(checkpoints["pyramid"], tmp_path / "short.onnx", config, images=photo_files)
    assert short.proposals.nms_candidates is not None


def test_a_failing_measurement_leaves_nothing_behind(
    exported: GetExport, photos: Path, peaks_files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, seen = exported("peaks-standard"), []

    def recall(_: RecallMeter, proto: onnx.ModelProto) -> RecallSpec:
        # The graph can be used already, with its manifest inside.
        text = next(entry.value for entry in proto.metadata_props if entry.key == METADATA_KEY)
        seen.append(edgerpn.manifest.parse(text, source="graph").proposals.num_proposals)
        raise ExportError("no recall today")

    monkeypatch.setattr(RecallMeter, "recall", recall)
    # PyTorch's exporter takes seconds, and would make the same graph again.
    monkeypatch.setattr(export, "export_detector", lambda *_: onnx.load(made.file))
    with pytest.raises(ExportError, match="no recall today"):
        export_onnx(made.checkpoint, tmp_path / "model.onnx", made.config, data=photos, images=peaks_files[:1])
    assert seen == [10]
    assert not list(tmp_path.iterdir())


def test_an_export_needs_a_name_and_images(
    checkpoints: dict[str, Path], photo_files: list[Path], tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=r"model\.engine: expected a file name that ends in \.onnx"):
        export_onnx(checkpoints["peaks"], tmp_path / "model.engine", ExportConfig(), images=photo_files)
    with pytest.raises(ExportError, match=r"too long for a file beside it, a+\.golden\.npz; choose a shorter one"):
        export_onnx(checkpoints["peaks"], tmp_path / f"{'a' * 245}.onnx", ExportConfig(), images=photo_files)
    with pytest.raises(ExportError, match="no images to compare"):
        export_onnx(checkpoints["peaks"], tmp_path / "model.onnx", ExportConfig(), images=[])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("precision", [pytest.param("fp16", marks=pytest.mark.slow), "int8"])
def test_a_reduced_export_passes_its_own_self_test_and_says_how_it_was_accepted(
    precision: Precision, checkpoints: dict[str, Path], photo_files: list[Path], tmp_path: Path
) -> None:
    output = tmp_path / "model.onnx"
    config = ExportConfig(
        target="tensorrt", precision=precision, max_ar_drop="off", num_proposals=50, pre_nms=100, opset=18
    )
    manifest = export_onnx(checkpoints["pyramid"], output, config, images=photo_files, calibration=photo_files)
    assert (manifest.precision, manifest.opset) == (precision, 19 if precision == "int8" else 18)
    assert manifest.parity is not None
    assert manifest.parity.reference == f"checkpoint, before the graph became {precision}"
    assert manifest.accepted is not None
    assert manifest.accepted.max_ar_drop is None
    with load(output, self_test=True) as model:
        frame = edgerpn.golden.read(output, manifest).frames[:1]
        found = model.backend.infer(frame)
    # A trained network would show the difference; the biases of this small one are too small.
    kept = ["WeightBiasQuantization"] if precision == "int8" else []
    assert onnxruntime_backend.harmful_optimizers(manifest) == kept
    assert onnxruntime_backend.harmful_optimizers(manifest.replace(target="onnxruntime")) == []
    # As the graph is written, without any optimizer of ONNX Runtime.
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(output), options, providers=["CPUExecutionProvider"])
    written = session.run(["boxes", "scores", "count"], {"frames": frame})
    assert np.abs(found[1] - written[1]).max() < 2e-3


def test_a_copy_without_its_manifest_file_is_checked_by_the_digest_inside(exported: GetExport, tmp_path: Path) -> None:
    data = exported("portable").file.read_bytes()
    copy = tmp_path / "alone.onnx"
    copy.write_bytes(data)
    load(copy).close()
    assert main(["check", str(copy), "--target", "tensorrt-rtx"]) == 0
    position = len(data) // 2
    copy.write_bytes(data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :])
    with pytest.raises(ArtifactChangedError, match=r"alone\.onnx: changed since export: .* by the digest inside"):
        load(copy)
    for command in (["check", str(copy), "--target", "tensorrt-rtx"], ["inspect", str(copy)]):
        assert main(command) == 1
    place = data.index(b'"schema": 2') + 2
    copy.write_bytes(data[:place] + b"\xff\xfe" + data[place + 2 :])
    with pytest.raises(ManifestError, match=r"damaged|not a manifest"):
        load(copy)
    for command in (["check", str(copy), "--target", "tensorrt-rtx"], ["inspect", str(copy)]):
        assert main(command) == 1
