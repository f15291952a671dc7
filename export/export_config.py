"""Settings of an export."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edgerpn.errors import check_setting
from edgerpn.manifest.parts import Precision
from edgerpn.targets import TARGETS, ExportTarget, oldest_target

Nms = Literal["standard", "portable"]
RoiForm = Literal["grid", "operator"]
"""Form of RoIAlign in a graph: GridSample, or ONNX RoiAlign."""
Calibration = Literal["entropy", "percentile"]
Channels = Literal["bgr", "bgrx"]

ExportLayout = Literal["proposals", "frigate"]
"""Those of `edgerpn.manifest.Layout` that an export writes."""

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
MAX_SIDE_PX = 8192
"""Largest side of frames and networks, pixels; the largest cameras have 7680."""
MAX_ROI_CELLS = 64
"""Largest number of rows and columns of a box's features."""
MIN_SCORE = 0.2
"""Score that becomes 0.5 for Frigate, when the user does not choose one."""
MAX_AR_DROP: dict[Precision, float] = {"fp16": 0.5, "int8": 1.0}
"""Points of AR@100 that a precision may lose when `max_ar_drop` is not set."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportConfig:
    """Target, sizes and precision of an exported graph."""

    target: ExportTarget = "onnxruntime"
    """Library that runs the graph; it chooses the form of the NMS when `nms` is not set."""
    network_hw: tuple[int, int] | None = None
    """Height and width that the network works at, pixels; not set: the size that it was trained at."""
    source_hw: tuple[int, int] | None = None
    """Height and width of the frames, pixels, to have resizing in the graph; not set: the host letterboxes."""
    channels: Channels = "bgr"
    """Channels of the frames; `bgrx` has a fourth one, which is ignored, as the hardware of a Jetson delivers them."""
    batch: int | Literal["dynamic"] | None = None
    """Frames in a batch, or `dynamic`; not set: dynamic for ONNX Runtime, 1 for TensorRT (for CUDA graphs)."""
    num_proposals: int = 100
    """K, rows of the outputs."""
    pre_nms: int = 1000
    """Best boxes of each pyramid level that enter NMS."""
    nms_iou: float | None = None
    """A box that overlaps a better one by more than this is dropped; not set: the checkpoint's `proposals.nms_iou`."""
    soft_nms_iou: float | None = None
    """A box that overlaps a better one by more than this loses score; not set: the checkpoint's
    `proposals.soft_nms_iou`; 1: no box does."""
    score_threshold: float | None = None
    """Boxes scored below this are dropped, 0..1; not set: the checkpoint's `proposals.score_threshold`."""
    nms: Nms | None = None
    """`standard` is ONNX NonMaxSuppression, `portable` plain operations; not set: the target's choice."""
    nms_iterations: int | None = None
    """portable NMS: rounds of the fixed-point iteration; not set: measured on the images, with a margin."""
    nms_candidates: int | Literal["all"] | None = None
    """Best boxes of all levels together that NMS looks at, or `all`; not set: measured on images, with a margin, and at
    least `pre_nms` for the standard NMS."""
    classes: bool = True
    """Whether the graph of a checkpoint with classes has its second stage, with the outputs `labels` and
    `class_scores`; without it, it has the proposals alone."""
    class_nms_iou: float | None = None
    """A box that overlaps a better one of its class by more than this is dropped; not set: the checkpoint's
    `proposals.class_nms_iou`."""
    embeddings: bool = False
    """Whether the graph has the output `embeddings`: for each box the features of the cell that proposed it."""
    roi_features: tuple[int, int] | None = None
    """Rows and columns of the output `features`: for each box the map that it covers, pooled by RoIAlign; not set: the
    graph does not have it."""
    layout: ExportLayout = "proposals"
    """Form of the outputs: `proposals`, or `frigate`, rows that only Frigate reads, for a batch of 1."""
    frigate_min_score: float = MIN_SCORE
    """The score that becomes 0.5 in the layout `frigate`, above 0, below 1; Frigate drops what is below 0.4."""
    precision: Precision = "fp32"
    """Precision of backbone, neck and head; the proposal stage is always float32."""
    calibration: Calibration = "percentile"
    """int8: method that chooses the range of each tensor from the calibration images."""
    max_ar_drop: float | Literal["off"] | None = None
    """fp16, int8: points of AR@100 that may be lost; not set: 0.5 and 1.0; `off`: not measured."""
    fallback: bool = True
    """Whether the blocks that cost most recall stay in the next higher precision until `max_ar_drop` holds."""
    golden: bool = True
    """Whether two photographs and their expected proposals are written beside the model for self-tests."""
    opset: int = 18
    """ONNX operator set, at least 18; int8 is written as 19 or more."""

    def __post_init__(self) -> None:
        check_setting(self.opset >= 18, "opset", "at least 18", self.opset)
        oldest = TARGETS[oldest_target(self.target)]
        check_setting(
            oldest.max_opset is None or self.opset <= oldest.max_opset,
            "opset",
            f"at most {oldest.max_opset}, which is what {oldest.name}, the oldest {self.target}, reads",
            self.opset,
        )
        check_setting(not isinstance(self.batch, int) or self.batch >= 1, "batch", "at least 1, or dynamic", self.batch)
        check_setting(
            not isinstance(self.max_ar_drop, float) or self.max_ar_drop >= 0,
            "max_ar_drop",
            "0 or more points, or off",
            self.max_ar_drop,
        )
        for name in ("nms_iterations", "nms_candidates"):
            value = getattr(self, name)
            check_setting(not isinstance(value, int) or value >= 1, name, "at least 1", value)
        for name in ("num_proposals", "pre_nms"):
            check_setting(getattr(self, name) >= 1, name, "at least 1", getattr(self, name))
        for name in ("nms_iou", "soft_nms_iou", "class_nms_iou"):
            value = getattr(self, name)
            check_setting(value is None or 0 < value <= 1, name, "more than 0 and at most 1", value)
        check_setting(
            self.score_threshold is None or 0 <= self.score_threshold < 1,
            "score_threshold",
            "0 to below 1",
            self.score_threshold,
        )
        for name in ("network_hw", "source_hw"):
            size = getattr(self, name)
            check_setting(
                size is None or (min(size) >= 32 and max(size) <= MAX_SIDE_PX),
                name,
                f"32 to {MAX_SIDE_PX} pixels a side",
                size,
            )
        check_setting(
            self.roi_features is None or (min(self.roi_features) >= 1 and max(self.roi_features) <= MAX_ROI_CELLS),
            "roi_features",
            f"1 to {MAX_ROI_CELLS} rows and columns",
            self.roi_features,
        )
        check_setting(
            0 < self.frigate_min_score < 1, "frigate_min_score", "more than 0 and less than 1", self.frigate_min_score
        )
        if self.layout == "frigate":
            self._check_frigate()
        if self.target == "tensorrt-rtx" and self.nms == "standard":
            raise ValueError("nms: tensorrt-rtx has no NonMaxSuppression; expected portable, got standard")

    def _check_frigate(self) -> None:
        expected = {"batch": (None, 1), "channels": ("bgr",), "embeddings": (False,), "roi_features": (None,)}
        for name, values in expected.items():
            found = getattr(self, name)
            check_setting(found in values, name, f"{values[-1]} for the layout frigate", found)
        is_run = self.target != "tensorrt-rtx"  # Frigate runs graphs by ONNX Runtime, which may use TensorRT
        check_setting(is_run, "target", "onnxruntime or tensorrt for the layout frigate", self.target)
        if self.precision == "int8" and self.target != "onnxruntime":
            raise ValueError(
                "target: expected onnxruntime for int8 in the layout frigate, because Frigate's ONNX Runtime makes "
                f"int8 for others coarser, got {self.target}"
            )

    @property
    def num_channels(self) -> Literal[3, 4]:
        """Bytes of a pixel of the frames."""
        return 4 if self.channels == "bgrx" else 3

    @property
    def fixed_batch(self) -> int | None:
        """Frames in a batch, or None when the batch is dynamic."""
        if self.batch is None:
            return None if self.target == "onnxruntime" and self.layout == "proposals" else 1
        return None if self.batch == "dynamic" else self.batch

    @property
    def resolved_nms(self) -> Nms:
        """The form of the NMS, chosen by the target when not set."""
        return self.nms or ("standard" if self.target == "onnxruntime" else "portable")

    @property
    def roi_form(self) -> RoiForm:
        """The form of RoIAlign: the operator where the NMS is one too, for TensorRT never, which has it as a plugin."""
        return "operator" if self.target == "onnxruntime" and self.resolved_nms == "standard" else "grid"

    @property
    def ar_budget(self) -> float | None:
        """Points of AR@100 that the precision may lose, or None when it is not gated."""
        if self.precision == "fp32" or self.max_ar_drop == "off":
            return None
        return MAX_AR_DROP[self.precision] if self.max_ar_drop is None else float(self.max_ar_drop)
