"""Checkpoint to ONNX: export, check, prove, and write the artifact in one step.

Steps of `export_onnx`:
    1. Build the detector with fixed shapes from the checkpoint.
    2. `torch.onnx.export(dynamo=True)` and the ONNX checker.
    3. Check that the interface is the one of `edgerpn.manifest` and that no data-dependent shape leaves the graph.
    4. Parity with PyTorch on real images; recall, when they are annotated.
    5. Put the manifest into the file and beside it.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import onnxscript
import torch
from onnxscript import opset18 as op
from torch import Tensor, nn

import edgerpn.manifest
from edgerpn import files
from edgerpn.errors import ExportError
from edgerpn.export.config import ExportConfig
from edgerpn.export.graph import export_module, network_hw, proposal_config
from edgerpn.export.parity import ParityReport, check_parity
from edgerpn.manifest import METADATA_KEY, AnchorSpec, InputSpec, Manifest, ProposalSpec, Provenance, RecallSpec
from edgerpn.train.checkpoint import Checkpoint, load_model, versions
from edgerpn.train.detector import Detector

IR_VERSION = 10
"""ONNX file version: new enough for opset 21, old enough for the runtimes of JetPack 6."""

MAX_BYTES = 2_000_000_000
"""Limit of one protobuf file."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportResult:
    """What an export produced."""

    manifest: Manifest
    """As written beside the file."""
    parity: ParityReport
    """How well graph and network agree."""


def export_onnx(
    checkpoint_file: Path,
    output: Path,
    config: ExportConfig,
    *,
    images: Sequence[Path],
    measure_recall: Callable[[Path], RecallSpec | None] = lambda _: None,
    say: Callable[[str], None] = lambda _: None,
) -> ExportResult:
    """Exports a checkpoint; `output` and its manifest appear only when every check has passed.

    Args:
        checkpoint_file: A checkpoint of `edgerpn train`.
        output: The .onnx file to write; the manifest goes beside it with the suffix .json.
        config: Target and sizes.
        images: Real photographs on which graph and network must agree; at least one.
        measure_recall: Given the finished ONNX file, returns the recall to record.
        say: Called with one line of text for people, now and then.

    Raises:
        CheckpointError: The checkpoint cannot be read.
        ExportError: The sizes do not fit, or the exporter fails.
        ParityError: Graph and network disagree.
    """
    if output.suffix != ".onnx":
        raise ExportError(f"{output}: expected a file name that ends in .onnx")
    _check_output(output)
    if not images:
        raise ExportError("no images to compare the graph with the network; name a folder of photographs with --images")
    model, checkpoint = load_model(checkpoint_file)
    hw = network_hw(checkpoint, config)
    proposals = proposal_config(checkpoint, config)
    reference = Detector(model, proposals, network_hw=hw, source_hw=config.source_hw).eval()
    say(
        f"exporting {checkpoint.settings.model.backbone} at {hw[0]}x{hw[1]} for {config.target}, "
        f"{config.resolved_nms} NMS"
    )
    proto = _export(export_module(model, proposals, config, hw), config)  # steps 1 and 2
    _check_interface(proto, config, proposals.num_proposals)  # step 3
    manifest = _manifest(checkpoint_file, checkpoint, config, hw, output.stem)
    _embed(proto, manifest)
    with files.replacing(output) as temporary:
        onnx.save(proto, temporary)
        parity = check_parity(reference, temporary, images, batch=config.fixed_batch)  # step 4
        say(parity.summary())
        edgerpn.manifest.write(manifest, temporary)
        try:
            recall = measure_recall(temporary)
        finally:
            edgerpn.manifest.manifest_path(temporary).unlink(missing_ok=True)
        manifest = manifest.replace(recall=recall)
        _embed(proto, manifest)  # step 5
        onnx.save(proto, temporary)
    edgerpn.manifest.write(manifest, output)
    return ExportResult(manifest=edgerpn.manifest.read(output), parity=parity)


def _check_output(output: Path) -> None:
    """Refuses, before the work, what cannot be written or would replace something else.

    Raises:
        ExportError: The name is a folder's, or the manifest's name is taken by another JSON file.
    """
    if output.is_dir():
        raise ExportError(f"{output}: this is a folder, expected the name of a file")
    output.parent.mkdir(parents=True, exist_ok=True)
    sidecar = edgerpn.manifest.manifest_path(output)
    if sidecar.exists() and not edgerpn.manifest.is_manifest(sidecar):
        raise ExportError(f"{sidecar}: the manifest would replace this file, which is none; choose another name")


def _export(detector: Detector, config: ExportConfig) -> onnx.ModelProto:
    """Steps 1 and 2 for a detector with the interface of `edgerpn.manifest`."""
    # A batch of 2 keeps the exporter from taking 1 for a constant when the batch is dynamic.
    batch = config.fixed_batch or 2
    height, width = config.source_hw or detector.network_hw
    frames = torch.zeros((batch, height, width, 3), dtype=torch.uint8)
    proto = export_program(
        detector,
        frames,
        opset=config.opset,
        is_dynamic=config.fixed_batch is None,
        input_names=["frames"],
        output_names=["boxes", "scores", "count"],
    )
    if proto.ByteSize() > MAX_BYTES:
        raise ExportError(f"the graph has {proto.ByteSize() / 1e9:.1f} GB, more than one ONNX file holds (2 GB)")
    return proto


def export_program(
    module: nn.Module,
    example: Tensor,
    *,
    opset: int,
    is_dynamic: bool = False,
    input_names: list[str] | None = None,
    output_names: list[str] | None = None,
) -> onnx.ModelProto:
    """Runs PyTorch's exporter and the ONNX checker on a module with one input.

    Args:
        module: In eval mode.
        example: An input; all its axes are fixed, but the first when `is_dynamic` is set.
        opset: ONNX operator set.
        is_dynamic: Whether the first axis is the open batch "N".
        input_names: Names of the graph's inputs.
        output_names: Names of the graph's outputs.

    Raises:
        ExportError: The exporter or the checker refuses.
    """
    with _quiet():
        try:
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=input_names,
                output_names=output_names,
                dynamic_shapes=({0: torch.export.Dim("N", min=1)},) if is_dynamic else None,
                custom_translation_table={torch.ops.edgerpn.nms_keep.default: _nms_keep},
                external_data=False,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            first_line = str(error).strip().splitlines()[0]
            raise ExportError(f"PyTorch's ONNX exporter refused the network: {first_line}") from error
    if program is None:
        raise ExportError(
            "PyTorch's ONNX exporter returned nothing; use the tested version of torch in constraints.txt"
        )
    proto: onnx.ModelProto = program.model_proto
    found = {entry.domain: entry.version for entry in proto.opset_import}.get("")
    if found != opset:
        raise ExportError(
            f"opset {opset}: PyTorch's exporter wrote opset {found} instead; choose an opset that it knows"
        )
    proto.ir_version = IR_VERSION
    _drop_private_metadata(proto)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported graph is not valid ONNX: {error}") from error
    return proto


def _nms_keep(boxes: Any, scores: Any, iou_threshold: float, max_keep: int) -> Any:
    """ONNX form of `edgerpn.train.nms.nms_keep`: NonMaxSuppression, scattered back into a mask of fixed shape.

    NonMaxSuppression gives a varying number of (image, class, box) rows; that shape ends in ScatterND. Its boxes are
    y1, x1, y2, x2, but overlap is the same with the axes swapped.
    """
    selected = op.NonMaxSuppression(
        boxes,
        op.Unsqueeze(scores, op.Constant(value_ints=[1])),
        op.Constant(value_ints=[max_keep]),
        op.Constant(value_floats=[iou_threshold]),
        # Marked boxes have the score -1, real ones 0 or more.
        op.Constant(value_floats=[-0.5]),
    )
    index = op.Gather(selected, op.Constant(value_ints=[0, 2]), axis=1)
    ones = op.Expand(op.Constant(value_float=1.0), op.Shape(index, start=0, end=1))
    return op.ScatterND(op.Mul(scores, op.Constant(value_float=0.0)), index, ones)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps the exporter's notes about its own internals off the screen; errors are raised as before."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "torch.onnx._internal.exporter", "onnxscript")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _drop_private_metadata(proto: onnx.ModelProto) -> None:
    """Removes the exporter's notes from every node: they hold stack traces with the paths of this machine."""
    del proto.metadata_props[:]
    graph = proto.graph
    for item in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer, graph):
        del item.metadata_props[:]
        item.doc_string = ""


def _check_interface(proto: onnx.ModelProto, config: ExportConfig, num_proposals: int) -> None:
    """Requires exactly the manifest's inputs and outputs, with no shape open but the batch.

    Raises:
        ExportError: A name, type or shape differs.
    """
    batch = config.fixed_batch or "N"
    wanted = {
        "boxes": (onnx.TensorProto.FLOAT, [batch, num_proposals, 4]),
        "scores": (onnx.TensorProto.FLOAT, [batch, num_proposals]),
        "count": (onnx.TensorProto.INT32, [batch]),
    }
    found = {value.name: (value.type.tensor_type.elem_type, _shape(value)) for value in proto.graph.output}
    if found != wanted:
        raise ExportError(f"the exported graph has outputs {found}, expected {wanted}")
    inputs = [(value.name, value.type.tensor_type.elem_type) for value in proto.graph.input]
    if inputs != [("frames", onnx.TensorProto.UINT8)]:
        raise ExportError(f"the exported graph has inputs {inputs}, expected one uint8 tensor named frames")


def _shape(value: onnx.ValueInfoProto) -> list[int | str]:
    return [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]


def _manifest(file: Path, checkpoint: Checkpoint, config: ExportConfig, hw: tuple[int, int], name: str) -> Manifest:
    model, proposals = checkpoint.settings.model, proposal_config(checkpoint, config)
    nms = config.resolved_nms
    packages = {**versions(), "onnx": onnx.__version__, "onnxscript": onnxscript.__version__}
    return Manifest(
        name=name,
        target=config.target,
        opset=config.opset,
        backbone=model.backbone,
        input=InputSpec(
            batch=config.fixed_batch,
            network_hw=hw,
            source_hw=config.source_hw,
            mean_bgr=model.mean_bgr,
            std_bgr=model.std_bgr,
        ),
        outputs=edgerpn.manifest.standard_outputs(proposals.num_proposals),
        anchors=AnchorSpec(
            strides_px=model.anchors.strides_px,
            sizes_px=model.anchors.sizes_px,
            ratios_hw=model.anchors.ratios_hw,
        ),
        proposals=ProposalSpec(
            num_proposals=proposals.num_proposals,
            pre_nms=proposals.pre_nms,
            nms=nms,
            nms_iou=proposals.nms_iou,
            nms_scope=proposals.nms_scope,
            nms_iterations=proposals.nms_iterations if nms == "portable" else None,
            score_threshold=proposals.score_threshold,
            min_size_px=proposals.min_size_px,
        ),
        provenance=Provenance(
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            checkpoint_sha256=files.sha256(file),
            data_sha256=checkpoint.data_sha256 or None,
            versions=tuple(sorted({**packages, "onnxruntime": onnxruntime.__version__}.items())),
        ),
    )


def _embed(proto: onnx.ModelProto, manifest: Manifest) -> None:
    """Puts the manifest into the file's metadata, in place of an earlier one."""
    onnx.helper.set_model_props(proto, {METADATA_KEY: manifest.to_json()})
