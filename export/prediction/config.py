"""Settings of a prediction."""

from __future__ import annotations

from dataclasses import dataclass

from edgerpn.errors import check_setting
from edgerpn.runtime.draw import DEFAULT_NMS_IOU, DEFAULT_TOP


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictConfig:
    """Choice of the proposals, and form of the outputs."""

    min_score: float = 0.0
    """Proposals scored below this are left out everywhere, 0 to 1."""
    max_per_image: int = 0
    """Maximum number of proposals of an image, the best ones, in all outputs; 0: all."""
    nms_iou: float = 1.0
    """IoU with a better proposal, of its class where the model has classes, above which a proposal is left out
    everywhere, above 0, to 1; 1: none is."""
    top: int = DEFAULT_TOP
    """Maximum number of boxes in a picture, and of crops of an image."""
    shown_nms_iou: float = DEFAULT_NMS_IOU
    """IoU with a better one, of its class where the model has classes, above which a box is neither drawn nor cropped,
    above 0, to 1; 1: all are."""
    crop_margin: float = 0.1
    """Margin of a crop on each side, as a share of the box's width and height, 0 to 2."""
    jpeg_quality: int = 92
    """Quality of pictures, crops and frames of videos, 1 to 100."""
    sheet_images: int = 200
    """Maximum number of images on the contact sheet, spread evenly over all; 0: no contact sheet."""
    num_proposals: int = 1000
    """Maximum number of proposals that a checkpoint gives for an image; exported models have their own."""
    size_hw: tuple[int, int] | None = None
    """Height and width that a checkpoint's network works at, pixels; not set: as trained."""
    batch: int = 0
    """Images in one inference; 0: the batch that the model is made for, 1 on a CPU."""
    threads: int = 0
    """CPU threads of one inference of an ONNX file; 0: as many as fill the cores."""
    providers: tuple[str, ...] = ()
    """ONNX Runtime execution providers (tensorrt, cuda, cpu) in order of preference; empty: CUDA if there, else CPU."""

    def __post_init__(self) -> None:
        check_setting(0 <= self.min_score <= 1, "min_score", "0 to 1", self.min_score)
        check_setting(self.max_per_image >= 0, "max_per_image", "0 or more", self.max_per_image)
        check_setting(0 < self.nms_iou <= 1, "nms_iou", "above 0, to 1", self.nms_iou)
        check_setting(self.top >= 1, "top", "1 or more", self.top)
        check_setting(0 < self.shown_nms_iou <= 1, "shown_nms_iou", "above 0, to 1", self.shown_nms_iou)
        check_setting(0 <= self.crop_margin <= 2, "crop_margin", "0 to 2", self.crop_margin)
        check_setting(1 <= self.jpeg_quality <= 100, "jpeg_quality", "1 to 100", self.jpeg_quality)
        check_setting(0 <= self.sheet_images <= 5000, "sheet_images", "0 to 5000", self.sheet_images)
        check_setting(1 <= self.num_proposals <= 10_000, "num_proposals", "1 to 10000", self.num_proposals)
        check_setting(0 <= self.batch <= 256, "batch", "0 to 256", self.batch)
        check_setting(0 <= self.threads <= 1024, "threads", "0 to 1024", self.threads)
