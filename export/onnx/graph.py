"""The graph of a detector, by PyTorch's exporter and the ONNX checker, and its manifest."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import logging
import warnings
from collections.abc import Iterator
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
from edgerpn.export.export_config import ExportConfig
from edgerpn.manifest import (
    DIGEST_KEY,
    METADATA_KEY,
    SCHEMA,
    SCHEMA_MORE_OUTPUTS,
    AnchorSpec,
    InputSpec,
    Manifest,
    ProposalSpec,
    Provenance,
)
from edgerpn.proposals import CLASSES
from edgerpn.targets import TARGETS, TOPK_LIMIT
from edgerpn.train.checkpoint import Checkpoint, versions
from edgerpn.train.network.detector import Detector
from edgerpn.train.network.layers import fuse_batch_norm
from edgerpn.train.network.model import Rpn
from edgerpn.train.network.proposal_stage import ProposalConfig

IR_VERSION = min(target.sure_ir for target in TARGETS.values() if target.sure_ir is not None)
"""ONNX file version that every target reads."""


def proposal_config(checkpoint: Checkpoint, config: ExportConfig) -> ProposalConfig:
    """Returns the proposal stage of the graph: the checkpoint's settings with those that the export sets.

    Raises:
        ExportError: A count is above the target's limit.
    """
    trained = checkpoint.settings.proposals
    if config.target != "onnxruntime":
        flags = {name: f"--set {name}=" for name in ("pre_nms", "nms_candidates")} | {"num_proposals": "--proposals "}
        for name, flag in flags.items():
            count = getattr(config, name)
            if isinstance(count, int) and count > TOPK_LIMIT:
                raise ExportError(
                    f"{name}: {config.target} takes at most the best {TOPK_LIMIT} of a list, got {count}; use "
                    f"{flag}{TOPK_LIMIT} or less"
                )
    given = {name: getattr(config, name) for name in ("nms_iou", "soft_nms_iou", "class_nms_iou", "score_threshold")}
    changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    return dataclasses.replace(
        trained, num_proposals=config.num_proposals, pre_nms=config.pre_nms, nms_candidates=None, **changes
    )


def network_hw(checkpoint: Checkpoint, config: ExportConfig) -> tuple[int, int]:
    """Returns height and width that the exported network works at.

    Raises:
        ExportError: A side is not a multiple of the coarsest stride, so that pyramid levels would not line up.
    """
    hw = config.network_hw or checkpoint.settings.data.input_hw
    misfit = checkpoint.settings.model.anchors.misfit(hw)
    if misfit is not None:
        raise ExportError(f"network size {hw[0]}x{hw[1]}: {misfit}")
    return hw


def export_module(model: Rpn, proposals: ProposalConfig, config: ExportConfig, hw: tuple[int, int]) -> Detector:
    """Makes the detector to export from a copy of `model`.

    1. The second stage goes, unless `config` keeps the classes; no weight has a gradient, which would slow the export.
    2. Batch norms are folded into the convolutions before them.
    3. The division by the channels' standard deviation is folded into the first convolution.
    """
    exported = copy.deepcopy(model).eval().requires_grad_(False)
    if not config.classes:
        exported.region_head = None
    fuse_batch_norm(exported)
    exported.fold_std()
    detector = Detector(
        exported,
        proposals,
        network_hw=hw,
        source_hw=config.source_hw,
        num_channels=config.num_channels,
        nms=config.resolved_nms,
        embeddings=config.embeddings,
        roi_hw=config.roi_features,
        roi_form=config.roi_form,
    )
    return detector.eval()


def export_detector(detector: Detector, config: ExportConfig) -> onnx.ModelProto:
    """Exports the graph of a detector, with the interface of `edgerpn.manifest`.

    Raises:
        ExportError: The exporter or the checker refuses.
    """
    # With a batch of 2 the exporter does not take a dynamic batch for the constant 1.
    batch = config.fixed_batch or 2
    frames = torch.zeros((batch, *detector.frame_shape), dtype=torch.uint8)
    proto = export_program(
        detector,
        frames,
        opset=config.opset,
        is_dynamic=config.fixed_batch is None,
        input_names=["frames"],
        output_names=[
            *("boxes", "scores", "count"),
            *(CLASSES if detector.model.region_head is not None else ()),
            *(["embeddings"] if detector.embeddings else []),
            *(["features"] if detector.roi_hw is not None else []),
        ],
    )
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
        example: An input; all its axes are fixed, except the first when `is_dynamic` is set.
        opset: ONNX operator set.
        is_dynamic: Whether the first axis is the dynamic batch "N".
        input_names: Names of the graph's inputs.
        output_names: Names of the graph's outputs.

    Raises:
        ExportError: The exporter or the checker refuses.
    """
    with _quiet(), torch.no_grad():
        try:
            program = torch.onnx.export(
                module,
                (example,),
                dynamo=True,
                opset_version=opset,
                input_names=input_names,
                output_names=output_names,
                dynamic_shapes=({0: torch.export.Dim("N", min=1)},) if is_dynamic else None,
                custom_translation_table={
                    torch.ops.edgerpn.nms_keep.default: _nms_keep,
                    torch.ops.edgerpn.roi_operator.default: _roi_operator,
                },
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
            f"opset {opset}: PyTorch's exporter wrote opset {found} instead; choose an opset that it supports"
        )
    proto.ir_version = IR_VERSION
    _drop_private_metadata(proto)
    try:
        onnx.checker.check_model(proto, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"the exported graph is not valid ONNX: {error}") from error
    return proto


def _nms_keep(boxes: Any, scores: Any, iou_threshold: float, max_keep: int) -> Any:
    """ONNX form of `edgerpn.train.network.nms.nms_keep`: NonMaxSuppression, scattered back into a mask of fixed shape.

    NonMaxSuppression returns a varying number of (image, class, box) rows; that shape ends in ScatterND. Its boxes are
    y1, x1, y2, x2, but overlap is the same with the axes swapped. A box has one class, so that the class of a row does
    not matter.
    """
    selected = op.NonMaxSuppression(
        boxes,
        scores,
        op.Constant(value_ints=[max_keep]),
        op.Constant(value_floats=[iou_threshold]),
        # Marked boxes have the score -1, real ones a score above 0. OpenCV's dnn refuses a threshold below 0.
        op.Constant(value_floats=[0.0]),
    )
    index = op.Gather(selected, op.Constant(value_ints=[0, 2]), axis=1)
    ones = op.Expand(op.Constant(value_float=1.0), op.Shape(index, start=0, end=1))
    best = op.ReduceMax(scores, op.Constant(value_ints=[1]), keepdims=0)
    return op.ScatterND(op.Mul(best, op.Constant(value_float=0.0)), index, ones)


def _roi_operator(canvas: Any, places: Any, height: int, width: int) -> Any:
    """ONNX form of `edgerpn.train.network.region_features.roi_operator`: RoiAlign, whose boxes lie in one list."""
    batch, rows = op.Shape(places, start=0, end=1), op.Shape(places, start=1, end=2)
    flat = op.Constant(value_ints=[-1])
    numbers = op.Range(op.Constant(value_int=0), op.Squeeze(batch), op.Constant(value_int=1))
    column = op.Unsqueeze(numbers, op.Constant(value_ints=[1]))
    image = op.Reshape(op.Expand(column, op.Concat(batch, rows, axis=0)), flat)
    pooled = op.RoiAlign(
        canvas,
        op.Reshape(places, op.Constant(value_ints=[-1, 4])),
        image,
        coordinate_transformation_mode="half_pixel",
        output_height=height,
        output_width=width,
        sampling_ratio=2,
    )
    return op.Reshape(pooled, op.Concat(batch, rows, op.Shape(pooled, start=1), axis=0))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hides the exporter's notes about its own internals; errors are raised as before."""
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
    """Removes the exporter's notes from every node: they contain stack traces with paths of this machine."""
    del proto.metadata_props[:]
    graph = proto.graph
    for item in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer, graph):
        del item.metadata_props[:]
        item.doc_string = ""


def describe_graph(
    file: Path,
    checkpoint: Checkpoint,
    config: ExportConfig,
    proposals: ProposalConfig,
    hw: tuple[int, int],
    *,
    name: str,
    nms_chain: int | None,
    map_channels: int,
) -> Manifest:
    """Describes a float32 graph that is about to be exported.

    Args:
        file: The checkpoint's file.
        checkpoint: Its content.
        config: Target and sizes.
        proposals: The proposal stage, with the rounds of the portable NMS.
        hw: Height and width that the network works at, pixels.
        name: Name of the model, for people.
        nms_chain: Rounds that the images seen at export needed at most, for the portable NMS.
        map_channels: Channels of the maps that the head reads.
    """
    model, nms = checkpoint.settings.model, config.resolved_nms
    class_names = model.classes if config.classes else ()
    stage = dataclasses.asdict(proposals)
    if not class_names:
        stage["class_nms_iou"] = None
    if nms == "standard":
        stage["nms_iterations"] = None
    packages = {"onnx": onnx.__version__, "onnxscript": onnxscript.__version__, "onnxruntime": onnxruntime.__version__}
    further = edgerpn.manifest.more_outputs(
        proposals.num_proposals,
        has_classes=bool(class_names),
        embedding_shape=(map_channels,) if config.embeddings else None,
        feature_shape=(map_channels, *config.roi_features) if config.roi_features else None,
    )
    return Manifest(
        schema=SCHEMA_MORE_OUTPUTS if further else SCHEMA,
        name=name,
        target=config.target,
        opset=config.opset,
        backbone=model.backbone,
        input=InputSpec(
            color_order="BGRx" if config.channels == "bgrx" else "BGR",
            batch=config.fixed_batch,
            network_hw=hw,
            source_hw=config.source_hw,
            mean_bgr=model.mean_bgr,
            std_bgr=model.std_bgr,
            exif=checkpoint.settings.data.exif,
        ),
        outputs=(*edgerpn.manifest.standard_outputs(proposals.num_proposals), *further),
        class_names=class_names,
        anchors=AnchorSpec(
            strides_px=model.anchors.strides_px,
            sizes_px=model.anchors.sizes_px,
            ratios_hw=model.anchors.ratios_hw,
        ),
        proposals=ProposalSpec(**stage, nms=nms, nms_chain=nms_chain),
        provenance=Provenance(
            created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            checkpoint_sha256=files.sha256(file),
            data_sha256=checkpoint.data_sha256 or None,
            versions=tuple(sorted({**versions(), **packages}.items())),
        ),
    )


def save_sealed(proto: onnx.ModelProto, manifest: Manifest, file: Path) -> None:
    """Writes the graph with its manifest and the digest by which a copy without its manifest file is checked."""
    embed(proto, manifest)
    onnx.helper.set_model_props(
        proto, {**{entry.key: entry.value for entry in proto.metadata_props}, DIGEST_KEY: "0" * 64}
    )
    file.write_bytes(edgerpn.manifest.seal(proto.SerializeToString()))


def embed(proto: onnx.ModelProto, manifest: Manifest) -> None:
    """Puts the manifest into the file's metadata in place of an earlier one, without references to other files."""
    # Golden frames are a file beside this one; a copy of the ONNX file alone must not point at it.
    alone = dataclasses.replace(manifest, golden=None)
    onnx.helper.set_model_props(proto, {METADATA_KEY: alone.to_json()})
