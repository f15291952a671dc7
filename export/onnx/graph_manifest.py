"""The manifest of an exported graph, and its place inside the ONNX file."""

from __future__ import annotations

import dataclasses
from datetime import datetime, timezone
from pathlib import Path

import onnx
import onnxruntime
import onnxscript

import edgerpn.manifest
from edgerpn import files
from edgerpn.export.export_config import ExportConfig
from edgerpn.manifest import DIGEST_KEY, METADATA_KEY, AnchorSpec, InputSpec, Manifest, ProposalSpec, Provenance
from edgerpn.train.checkpoint import Checkpoint, versions
from edgerpn.train.network.proposal_stage import ProposalConfig


def describe(
    file: Path,
    checkpoint: Checkpoint,
    config: ExportConfig,
    proposals: ProposalConfig,
    hw: tuple[int, int],
    *,
    name: str,
    nms_chain: int | None,
) -> Manifest:
    """The manifest of a float32 graph that is about to be exported.

    Args:
        file: The checkpoint's file.
        checkpoint: What is in it.
        config: Target and sizes.
        proposals: The proposal stage, with the rounds of the portable NMS.
        hw: Height and width that the network works at, pixels.
        name: Name of the model, for people.
        nms_chain: Rounds that the images seen at export needed at most, for the portable NMS.
    """
    model, nms = checkpoint.settings.model, config.resolved_nms
    packages = {"onnx": onnx.__version__, "onnxscript": onnxscript.__version__, "onnxruntime": onnxruntime.__version__}
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
            soft_nms_iou=proposals.soft_nms_iou,
            nms_scope=proposals.nms_scope,
            nms_iterations=proposals.nms_iterations if nms == "portable" else None,
            nms_chain=nms_chain,
            nms_candidates=proposals.nms_candidates,
            score_threshold=proposals.score_threshold,
            min_size_px=proposals.min_size_px,
        ),
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
    """Puts the manifest into the file's metadata, in place of an earlier one, without what needs other files."""
    # Golden frames are a file beside this one; a copy of the ONNX file alone must not point at it.
    alone = dataclasses.replace(manifest, golden=None)
    onnx.helper.set_model_props(proto, {METADATA_KEY: alone.to_json()})
