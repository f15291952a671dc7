"""Our parts inside torchvision's own detectors; docs/conventions.md says how to run this where torchvision imports."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
from torch import Tensor

from edgerpn.train.checkpoint import load_model
from edgerpn.train.network.detector import Detector
from edgerpn.train.torchvision import as_rois, as_rpn

try:
    torchvision: Any = importlib.import_module("torchvision")
    detection: Any = importlib.import_module("torchvision.models.detection")
except (ImportError, OSError, RuntimeError) as reason:
    # A torchvision for another torch fails in many ways, not with ImportError alone.
    pytest.skip(f"torchvision does not import here: {reason}", allow_module_level=True)


def rgb(frame: Any) -> Tensor:
    return torch.from_numpy(frame[..., ::-1].copy()).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize("source_hw", [(480, 640), (640, 480), (300, 640), (200, 256)])
def test_proposals_inside_torchvision_are_those_of_the_detector(source_hw: tuple[int, int], root: Path) -> None:
    frame = cv2.resize(cv2.imread(str(root / "docs" / "proposals.jpg")), source_hw[::-1])
    backbone, rpn, options = as_rpn("general", size_hw=(256, 320))
    transform = detection.transform.GeneralizedRCNNTransform(**options).eval()
    model, checkpoint = load_model("general")
    with torch.inference_mode():
        images, _ = transform([rgb(frame)])
        (found,), _ = rpn.eval()(images, backbone.eval()(images.tensors))
        network_hw = (images.tensors.shape[2], images.tensors.shape[3])
        detector = Detector(model, checkpoint.settings.proposals, network_hw=network_hw, source_hw=source_hw)
        batch = detector(torch.from_numpy(frame)[None])
    assert detector.geometry is not None
    assert images.image_sizes == [detector.geometry.content_hw]
    expected = batch.boxes[0] * torch.tensor(detector.geometry.scale_xy).repeat(2)
    assert len(found) == int(batch.count) == 100
    # Scores that are equal to rounding may swap places, and the last of a list is then another box.
    difference_px = (expected[:, None] - found).abs().amax(dim=-1).amin(dim=1)
    assert (difference_px <= 1e-3).float().mean() >= 0.98


def test_a_faster_rcnn_learns_the_boxes_of_a_batch(root: Path) -> None:
    torch.manual_seed(0)
    backbone, rpn, options = as_rpn("general", size_hw=(128, 160))
    model = detection.FasterRCNN(backbone, num_classes=2, **options)
    model.rpn = rpn
    picture = rgb(cv2.imread(str(root / "docs" / "proposals.jpg"))[:400, :500])
    targets = [{"boxes": torch.tensor([[50.0, 60.0, 200.0, 220.0]]), "labels": torch.tensor([1])}] * 2
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-4)
    totals = []
    for _ in range(10):
        losses = model([picture] * 2, targets)
        total = sum(losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.6 * totals[0]
    assert set(losses) == {"loss_classifier", "loss_box_reg", "loss_objectness", "loss_rpn_box_reg"}


def test_rois_pool_what_lists_of_boxes_do() -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 3, 16, 16)
    boxes = [torch.tensor([[8.0, 8.0, 60.0, 90.0], [0.0, 0.0, 128.0, 128.0]]), torch.tensor([[16.0, 20.0, 70.0, 50.0]])]
    for pool in (torchvision.ops.roi_pool, torchvision.ops.roi_align):
        expected = pool(features, boxes, 7, 1 / 8)
        assert torch.equal(pool(features, as_rois(boxes), 7, 1 / 8), expected)


def test_the_programs_of_the_documents_run(
    root: Path, data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "DIR").symlink_to(data_folder)
    text = (root / "docs" / "torchvision.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        exec(block.replace("range(200)", "range(2)").replace("(320, 320)", "(128, 128)"), names)
    assert names["found"]["masks"].shape[1:] == (1, 96, 96)
    assert names["aligned"].shape == names["pooled"].shape == (len(names["rois"]), 48, 7, 7)
    model, _ = load_model("tuned.pt")
    assert torch.equal(model.neck.state_dict()["lateral.0.weight"], names["model"].backbone.neck.lateral[0].weight)
