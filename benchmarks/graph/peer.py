"""torchvision's RPN on its mobilenet_v3_large with a feature pyramid as an ONNX graph, for `benchmarks.graph --peer`.

    VENV/bin/python -m benchmarks.graph.peer --size 640x640 --out peer.onnx

Runs in an environment with torch and torchvision. Random weights. The images come normalised, to the peer's
advantage. As in its Faster R-CNN at test time: 1000 boxes of each level before NMS at IoU 0.7 and 1000 after it; no
threshold. The exporter is TorchScript's, because the newer one refuses its NMS.
"""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

import torch


class Rpn(torch.nn.Module):
    """Backbone, pyramid and RPN of a Faster R-CNN."""

    def __init__(self, detector: Any, side: tuple[int, int]) -> None:
        """Takes them from `detector`, for images of `side` (height, width) pixels."""
        super().__init__()
        self.backbone, self.rpn, self.side = detector.backbone, detector.rpn, side

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(1, 3, H, W) to proposals (M, 4)."""
        images = importlib.import_module("torchvision.models.detection.image_list").ImageList(pixels, [self.side])
        boxes, _ = self.rpn(images, self.backbone(pixels))
        result: torch.Tensor = boxes[0]
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="640x640", help="height x width, default 640x640")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    detection: Any = importlib.import_module("torchvision.models.detection")
    torch.manual_seed(0)
    detector = detection.fasterrcnn_mobilenet_v3_large_fpn(
        weights=None,
        weights_backbone=None,
        rpn_pre_nms_top_n_test=1000,
        rpn_post_nms_top_n_test=1000,
        rpn_score_thresh=0.0,
    )
    height, width = map(int, options.size.split("x"))
    side = (height, width)
    example = torch.randn(1, 3, *side)
    torch.onnx.export(Rpn(detector, side).eval(), (example,), str(options.out), dynamo=False, input_names=["images"])


if __name__ == "__main__":
    main()
