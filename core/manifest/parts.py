"""The parts of a manifest, see `edgerpn.manifest`: input, outputs, contents and acceptance of an artifact."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Literal

from edgerpn.errors import check_setting
from edgerpn.targets import EngineLibrary

Precision = Literal["fp32", "fp16", "int8"]
"""Precision of backbone, neck and head; the proposal stage is always float32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class InputSpec:
    """The input of the graph."""

    name: str = "frames"
    """Tensor name."""
    dtype: Literal["uint8"] = "uint8"
    """Element type."""
    layout: Literal["NHWC"] = "NHWC"
    """Order of the axes."""
    color_order: Literal["BGR", "BGRx"] = "BGR"
    """Order of the channels; the graph ignores a fourth one."""
    batch: int | None = 1
    """Fixed batch size; None: dynamic."""
    network_hw: tuple[int, int]
    """Height and width that the network works at, pixels."""
    source_hw: tuple[int, int] | None = None
    """Height and width of the frames when resizing is in the graph; None when the host letterboxes."""
    letterbox: Literal["top_left"] = "top_left"
    """Rule by which a frame lies in the network's input; see `edgerpn.letterbox`."""
    pad_value: int = 114
    """Grey level of the padding, 0..255."""
    mean_bgr: tuple[float, float, float]
    """Subtracted from each channel inside the graph, 0..255 scale."""
    std_bgr: tuple[float, float, float]
    """Each channel is divided by it inside the graph, 0..255 scale."""
    exif: Literal["auto", "apply", "ignore"] = "auto"
    """Whether training turned image files by their EXIF orientation, as a runtime should; auto: it met none, and a
    runtime reads them as stored."""
    normalization_in_graph: Literal[True] = True
    """Frames are never normalised on the host."""

    def __post_init__(self) -> None:
        """Checks the numbers by which a runtime makes arrays."""
        check_setting(self.batch is None or self.batch >= 1, "batch", "1 or more, or null", self.batch)
        for name in ("network_hw", "source_hw"):
            hw = getattr(self, name)
            check_setting(hw is None or min(hw) >= 1, name, "two positive sizes", hw)

    @property
    def exif_reading(self) -> Literal["apply", "ignore"]:
        """Whether to turn image files by their EXIF orientation."""
        return "apply" if self.exif == "apply" else "ignore"

    @property
    def frame_hw(self) -> tuple[int, int]:
        """Height and width of the graph's input tensor, pixels."""
        return self.source_hw or self.network_hw

    @property
    def num_channels(self) -> int:
        """Bytes of a pixel in the graph's input tensor: 3 or 4."""
        return len(self.color_order)

    @property
    def frame_shape(self) -> tuple[int, int, int]:
        """Height, width and channels of the graph's input tensor."""
        return (*self.frame_hw, self.num_channels)


@dataclass(frozen=True, kw_only=True, slots=True)
class OutputSpec:
    """One output tensor."""

    name: str
    """Tensor name."""
    dtype: str
    """Element type."""
    shape: tuple[str | int, ...]
    """Shape; "N" is the batch."""
    meaning: str
    """Meaning of the numbers."""

    def __post_init__(self) -> None:
        check_setting(self.dtype in ("float32", "int32"), "dtype", "float32 or int32", self.dtype)
        sizes = self.shape[1:] if self.shape[:1] == ("N",) else self.shape
        is_good = bool(self.shape) and all(isinstance(size, int) and size >= 1 for size in sizes)
        check_setting(is_good, "shape", 'positive sizes, the first may be "N"', self.shape)


@dataclass(frozen=True, kw_only=True, slots=True)
class AnchorSpec:
    """The anchors of every pyramid level, finest first."""

    strides_px: tuple[int, ...]
    """Pixels between neighbouring cells of each level."""
    sizes_px: tuple[tuple[float, ...], ...]
    """Square root of the anchor areas of each level, pixels."""
    ratios_hw: tuple[float, ...]
    """Height over width of the anchors."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProposalSpec:
    """Settings of the proposal stage in the graph."""

    num_proposals: int
    """K, rows of the outputs."""
    pre_nms: int
    """Boxes of each level that enter NMS at most."""
    nms: Literal["standard", "portable"]
    """ONNX NonMaxSuppression, or plain operations."""
    nms_iou: float
    """Boxes that overlap a better one by more than this are dropped."""
    soft_nms_iou: float = 1.0
    """Boxes that overlap a better one by more than this lose score; 1: no box does."""
    nms_scope: Literal["level", "all"]
    """Whether boxes compete within their pyramid level or over all levels."""
    nms_iterations: int | None = None
    """Iterations of the portable NMS; None for the standard one."""
    nms_chain: int | None = None
    """Iterations that the images at export needed at most; None when they were not measured."""
    nms_candidates: int | None = None
    """Best boxes of all levels together that NMS looks at; None: all that `pre_nms` leaves."""
    class_nms_iou: float | None = None
    """Boxes that overlap a better one of their class by more than this are dropped; None: the graph does not have
    classes."""
    score_threshold: float
    """Boxes scored below this are dropped."""
    min_size_px: float
    """Boxes with a side below this, in network pixels, are dropped."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """Origin of the artifact."""

    created: str
    """UTC, ISO 8601."""
    checkpoint_sha256: str
    """Hash of the checkpoint file that was exported."""
    artifact_sha256: str | None = None
    """Hash of the artifact file; None in the copy inside an ONNX file."""
    artifact_bytes: int | None = None
    """Size of the artifact file; None in the copy inside an ONNX file."""
    onnx_sha256: str | None = None
    """Hash of the ONNX file; None in the copy inside it."""
    parent_sha256: str | None = None
    """Hash of the exported ONNX file that this one was made from: by another program, see `edgerpn check --reseal`, or
    by `edgerpn package`."""
    data_sha256: str | None = None
    """Hash of the annotation file that the model was trained on, if known."""
    versions: tuple[tuple[str, str], ...] = ()
    """Name and version of the packages that made it."""

    def derived(self) -> Provenance:
        """Returns the origin of a file that is made from this ONNX file."""
        return dataclasses.replace(
            self, artifact_sha256=None, artifact_bytes=None, onnx_sha256=None, parent_sha256=self.onnx_sha256
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class RecallSpec:
    """Recall measured on the exported graph."""

    data_sha256: str
    """Hash of the annotation file."""
    num_images: int
    """Images measured."""
    metrics: tuple[tuple[str, float], ...]
    """Name (AR@100, ...) and value, 0..1."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrecisionSpec:
    """Recall on annotated images by which a precision below fp32 was accepted."""

    ar100: tuple[tuple[str, float], ...]
    """Precision (fp32, fp16, int8) and the graph's AR@100 in it, 0..1, all on the same images."""
    num_images: int
    """Annotated images measured."""
    max_ar_drop: float | None = None
    """Points (hundredths) of AR@100 that the precision was allowed to lose; None when it was not checked."""
    kept_blocks: tuple[str, ...] = ()
    """Blocks of the network that stayed in the next higher precision, worst first."""
    calibration: str | None = None
    """int8: method by which ranges were chosen from the calibration images."""
    num_calibration_images: int | None = None
    """int8: images that the ranges come from."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ParitySpec:
    """Agreement of an artifact with what it was made from, proposal by proposal."""

    reference: str
    """The form that it was compared with, such as `checkpoint`, `onnx` or `onnx fp32`."""
    num_images: int
    """Images compared."""
    batch_sizes: tuple[int, ...]
    """Batch sizes at which they were run."""
    num_matched: int
    """Proposals found in both."""
    num_boundary: int
    """Proposals of one form only, by a decision within rounding."""
    num_unexplained: int = 0
    """Proposals of one form only that no threshold explains; below fp32 a share of them is allowed."""
    min_iou: float
    """Smallest overlap of a matched pair, 0..1."""
    max_score_difference: float
    """Largest difference of scores of a matched pair."""
    min_cosine: float | None = None
    """Smallest cosine of embeddings and features of a matched pair; None without these. Where cells of two anchors
    predict one box with one score, rounding decides between them, and the cosine is small."""
    num_other_class: int | None = None
    """Matched pairs with another class, or another score of it; None without classes. Where two classes have nearly the
    same score, rounding decides between them."""

    def summary(self) -> str:
        """Returns the agreement on one line, for people."""
        batches = " and ".join(map(str, self.batch_sizes))
        return (
            f"parity with the {self.reference} on {self.num_images} images, batch {batches}: "
            f"{self.num_matched} proposals matched, IoU >= {self.min_iou:.5f}, "
            f"score difference <= {self.max_score_difference:.1e}"
            + ("" if self.min_cosine is None else f", cosine of features >= {self.min_cosine:.5f}")
            + ("" if self.num_other_class is None else f", {self.num_other_class} with another class")
            + (f", {self.num_boundary} at a threshold" if self.num_boundary else "")
            + (f", {self.num_unexplained} in one form only" if self.num_unexplained else "")
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class GoldenSpec:
    """The golden frames that lie beside an artifact, see `edgerpn.golden`."""

    file: str
    """Name of the file in the artifact's folder."""
    sha256: str
    """Hash of that file."""
    num_frames: int
    """Frames in it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ProfileSpec:
    """Batch sizes of an engine's optimization profile."""

    min_batch: int
    """Smallest batch that the engine takes."""
    opt_batch: int
    """Batch size that it was tuned for."""
    max_batch: int
    """Largest batch that it takes."""

    def __post_init__(self) -> None:
        if not 1 <= self.min_batch <= self.opt_batch <= self.max_batch:
            got = f"{self.min_batch}, {self.opt_batch}, {self.max_batch}"
            raise ValueError(f"min_batch, opt_batch, max_batch: expected rising numbers from 1 on, got {got}")


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerSpec:
    """One layer of an engine, as the library's inspector reports it."""

    name: str
    """The library's name."""
    precision: str
    """Data type of its outputs, as the library writes it."""
    time_ms: float | None = None
    """Mean time, milliseconds, when the build profiled the engine."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineSpec:
    """Settings of an engine's build, and the machines that can run it."""

    library: EngineLibrary
    """The library that built it and that runs it."""
    library_version: str
    """Its full version, such as 10.3.0.26."""
    compute_capabilities: tuple[str, ...]
    """GPUs that it was built for, such as 8.7."""
    platform: str
    """Operating system and processor, such as linux-x86_64."""
    profile: ProfileSpec
    """Batch sizes."""
    gpu: str | None = None
    """Name of the GPU that it was built on; None without a GPU."""
    multiprocessors: int | None = None
    """Multiprocessors of that GPU: modules of one name and compute capability differ in it."""
    board: str | None = None
    """Board that it was built on, such as NVIDIA Jetson Orin Nano Developer Kit; None elsewhere."""
    power_mode: str | None = None
    """Power mode of a Jetson during the build, such as 2 MAXN_SUPER."""
    driver: str | None = None
    """CUDA version that the driver of that machine supports, such as 13.0."""
    cuda: str | None = None
    """CUDA version of the library's runtime, where known."""
    l4t: str | None = None
    """Jetson Linux release of that machine, such as 36.4.3."""
    version_compatible: bool = False
    """Whether newer versions of the library run it too."""
    hardware_compatible: bool = False
    """Whether GPUs of other compute capabilities run it too."""
    tf32: bool = False
    """Whether float32 convolutions may round to TF32."""
    dla_core: int | None = None
    """DLA core that it was built for."""
    optimization_level: int | None = None
    """Builder optimization level; None: the library's default."""
    workspace_mib: int | None = None
    """Limit of the builder's workspace, MiB; None: the library's default."""
    build_s: float
    """Seconds that the build took."""
    num_layers: int | None = None
    """Layers of the engine; None where it cannot be inspected (no GPU)."""
    layers: tuple[LayerSpec, ...] = ()
    """Its layers, in order; empty where it cannot be inspected."""

    def __post_init__(self) -> None:
        """Checks the numbers that a runtime compares with its machine."""
        if not re.fullmatch(r"\d+(\.\d+)+", self.library_version):
            raise ValueError(f"library_version: expected numbers such as 10.3.0.26, got {self.library_version!r}")
        if not self.compute_capabilities:
            raise ValueError("compute_capabilities: expected at least one, got none")
        for capability in self.compute_capabilities:
            if not re.fullmatch(r"\d+\.\d+", capability):
                raise ValueError(f"compute_capabilities: expected numbers such as 8.7, got {capability!r}")
        for name in ("driver", "cuda"):
            value = getattr(self, name)
            if value is not None and not re.fullmatch(r"\d+(\.\d+)*", value):
                raise ValueError(f"{name}: expected a CUDA version such as 12.6, got {value!r}")
