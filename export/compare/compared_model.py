"""Opens the two models of a comparison (checkpoint, ONNX file or engine) so that they are comparable.

A checkpoint has neither sizes nor counts of its own: it takes them from the model that it is compared with. Only a
checkpoint needs torch, so that a device can compare an engine with its ONNX file.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from edgerpn import files
from edgerpn.errors import ConfigError
from edgerpn.manifest import Manifest
from edgerpn.manifest.parts import Precision, ProposalSpec
from edgerpn.models import is_checkpoint
from edgerpn.proposals import Outputs
from edgerpn.runtime.backends.contract import Backend, output_shapes
from edgerpn.runtime.backends.open_backend import open_backend

if TYPE_CHECKING:
    from edgerpn.train.network.proposal_stage import ProposalConfig

PROPOSAL_SETTINGS = (
    "num_proposals",
    "pre_nms",
    "nms_iou",
    "soft_nms_iou",
    "class_nms_iou",
    "nms_scope",
    "score_threshold",
    "min_size_px",
)
"""Settings of the proposal stage that change the proposals."""

Run = Callable[[np.ndarray], tuple[Outputs, list[tuple[float, ...]]]]
"""Frames (N, H, W, C) uint8 to the graph's outputs, and for each frame the scores at the cuts before NMS where they
are known (see `edgerpn.export.onnx.agreement.level_cut_scores`)."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ComparedModel:
    """One side of a comparison."""

    name: str
    """Name of the file, or of the model."""
    kind: Literal["checkpoint", "onnx", "engine"]
    """Form of the model."""
    ran_by: str
    """Library, version and device."""
    precision: Precision
    """Precision of its numbers; TF32 counts as fp16."""
    checkpoint_sha256: str
    """Hash of the checkpoint that it is or was exported from."""
    network_hw: tuple[int, int]
    """Height and width that the network works at, pixels."""
    source_hw: tuple[int, int] | None
    """Height and width of the frames when resizing is in the graph."""
    num_channels: int
    """Bytes of a pixel of the frames."""
    proposals: ProposalConfig | ProposalSpec
    """Counts and thresholds."""
    batch_sizes: tuple[int, ...]
    """Batch sizes at which it must be run; empty for a checkpoint."""
    run: Run
    """Runs it."""
    embeddings: bool = False
    """Whether its outputs include embeddings."""
    roi_hw: tuple[int, int] | None = None
    """Rows and columns of each box's features in its outputs; None: it has none."""
    class_names: tuple[str, ...] = ()
    """Names of its classes; empty: it does not have any."""

    @property
    def frame_hw(self) -> tuple[int, int]:
        """Height and width of its input, pixels."""
        return self.source_hw or self.network_hw

    @property
    def title(self) -> str:
        """Name, kind, precision and library, for people."""
        return f"{self.name} ({self.kind}, {self.precision}, {self.ran_by})"


def open_models(
    a: Path | Backend, b: Path | Backend, stack: contextlib.ExitStack, *, allow_host_code: bool = False
) -> tuple[ComparedModel, ComparedModel]:
    """Opens both sides; `stack` closes the models that are opened here, not a backend of the caller.

    Raises:
        CheckpointError: A checkpoint cannot be read.
        ConfigError: A checkpoint cannot work at the other's size.
        EngineLoadError: An artifact cannot be loaded.
        ManifestError: Its manifest is missing or does not fit.
    """
    if _is_checkpoint(a) and _is_checkpoint(b):
        first = _open_checkpoint(a, None)
        return first, _open_checkpoint(b, first)
    if _is_checkpoint(a):
        other = _open_artifact(b, stack, allow_host_code)
        return _open_checkpoint(a, other), other
    first = _open_artifact(a, stack, allow_host_code)
    return first, _open_checkpoint(b, first) if _is_checkpoint(b) else _open_artifact(b, stack, allow_host_code)


def _is_checkpoint(model: Path | Backend) -> bool:
    return isinstance(model, Path) and is_checkpoint(model)


def _open_checkpoint(file: Path | Backend, other: ComparedModel | None) -> ComparedModel:
    """Returns a checkpoint on the CPU in float32 with exact NMS: on a GPU, PyTorch's convolutions may round to TF32."""
    from edgerpn.export.onnx.parity import run_reference
    from edgerpn.train.checkpoint import load_model, versions
    from edgerpn.train.network.detector import Detector

    if not isinstance(file, Path):
        raise TypeError(f"expected the path of a checkpoint, got {type(file).__name__}")
    model, checkpoint = load_model(file)
    hw = other.network_hw if other else checkpoint.settings.data.input_hw
    misfit = checkpoint.settings.model.anchors.misfit(hw)
    if misfit is not None:
        raise ConfigError(
            [f"{file.name} cannot work at the {hw[0]}x{hw[1]} of {other.name if other else file}: {misfit}"]
        )
    trained = checkpoint.settings.proposals
    proposals = trained
    if other:
        proposals = dataclasses.replace(_stage(other.proposals), nms_iterations=trained.nms_iterations)
    source_hw = other.source_hw if other else None
    # Features and classes where there is something to compare them with.
    embeddings, roi_hw = (other.embeddings, other.roi_hw) if other else (False, None)
    if other and not other.class_names:
        model.region_head = None
    detector = Detector(
        model, proposals, network_hw=hw, source_hw=source_hw, embeddings=embeddings, roi_hw=roi_hw
    ).eval()
    return ComparedModel(
        name=file.name,
        kind="checkpoint",
        ran_by=f"PyTorch {versions()['torch']}",
        precision="fp32",
        checkpoint_sha256=files.sha256(file),
        network_hw=hw,
        source_hw=source_hw,
        num_channels=3,
        proposals=proposals,
        batch_sizes=(),
        run=lambda frames: run_reference(detector, frames),
        embeddings=embeddings,
        roi_hw=roi_hw,
        class_names=() if model.region_head is None else checkpoint.settings.model.classes,
    )


def _open_artifact(model: Path | Backend, stack: contextlib.ExitStack, allow_host_code: bool) -> ComparedModel:
    if isinstance(model, Path):
        name = model.name
        backend = open_backend(model, allow_host_code=allow_host_code)
        stack.callback(backend.close)
    else:
        name, backend = model.manifest.name, model
    manifest = backend.manifest
    shapes = output_shapes(manifest)
    return ComparedModel(
        name=name,
        kind=manifest.kind,
        ran_by=backend.name,
        precision=manifest.rounding,
        checkpoint_sha256=manifest.provenance.checkpoint_sha256,
        network_hw=manifest.input.network_hw,
        source_hw=manifest.input.source_hw,
        num_channels=manifest.input.num_channels,
        proposals=manifest.proposals,
        batch_sizes=_batch_sizes(manifest),
        run=lambda frames: (backend.infer(frames), [()] * len(frames)),
        embeddings="embeddings" in shapes,
        roi_hw=shapes["features"][-2:] if "features" in shapes else None,  # type: ignore[arg-type]
        class_names=manifest.class_names,
    )


def _stage(proposals: ProposalConfig | ProposalSpec) -> ProposalConfig:
    from edgerpn.train.network.proposal_stage import ProposalConfig

    if isinstance(proposals, ProposalConfig):
        return proposals
    values = {name: getattr(proposals, name) for name in PROPOSAL_SETTINGS}
    # Not set in the manifest of a graph without classes.
    return ProposalConfig(**{name: value for name, value in values.items() if value is not None})


def _batch_sizes(manifest: Manifest) -> tuple[int, ...]:
    """Every batch size of an engine's profile, or of an ONNX file: its own, or 1 and 2 when it takes any."""
    if manifest.engine is not None:
        profile = manifest.engine.profile
        return tuple(sorted({profile.min_batch, profile.opt_batch, profile.max_batch}))
    return (manifest.input.batch,) if manifest.input.batch else (1, 2)


def differences(a: ComparedModel, b: ComparedModel) -> tuple[str, ...]:
    """Returns the differences between two models, a line for each; empty when they are forms of one model.

    Raises:
        ConfigError: They take frames of different sizes, so that no image is the same input for both.
    """
    if a.source_hw != b.source_hw:
        shown = [f"{m.name}: {_hw(m.source_hw) if m.source_hw else 'any size'}" for m in (a, b)]
        raise ConfigError(
            [f"the models are made for frames of different sizes ({', '.join(shown)}), so their proposals cannot be "
             "compared; export both with the same --source-size, or both without"]
        )  # fmt: skip
    lines = []
    if a.checkpoint_sha256 != b.checkpoint_sha256:
        lines.append(f"checkpoint: {a.checkpoint_sha256[:12]}... and {b.checkpoint_sha256[:12]}...")
    if a.network_hw != b.network_hw:
        lines.append(f"network size: {_hw(a.network_hw)} and {_hw(b.network_hw)}")
    if a.class_names != b.class_names:
        lines.append(f"classes: {', '.join(a.class_names) or 'none'} and {', '.join(b.class_names) or 'none'}")
    for name in PROPOSAL_SETTINGS:
        first, second = getattr(a.proposals, name), getattr(b.proposals, name)
        # Without classes, a manifest has no threshold for them.
        if first != second and None not in (first, second):
            lines.append(f"{name}: {first} and {second}")
    return tuple(lines)


def _hw(hw: tuple[int, int]) -> str:
    return f"{hw[0]}x{hw[1]}"
