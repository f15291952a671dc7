"""Imported networks beside torchvision's own; docs/conventions.md says how to run this where torchvision imports."""

from __future__ import annotations

import copy
import importlib
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from edgerpn.train.import_torchvision import ARCHITECTURES, ImportedModel, import_torchvision
from edgerpn.train.network.backbones import MOBILENET_NORM_EPS
from edgerpn.train.network.detector import Detector
from edgerpn.train.network.model import Rpn

try:
    torchvision: Any = importlib.import_module("torchvision")
    detection: Any = importlib.import_module("torchvision.models.detection")
except (ImportError, OSError, RuntimeError) as reason:
    # A torchvision for another torch fails in many ways, not with ImportError alone.
    pytest.skip(f"torchvision does not import here: {reason}", allow_module_level=True)

HW = (256, 320)
NETWORKS = ["resnet50_fpn", "mobilenet_v3_large_fpn", "resnet50_fpn frozen", "resnet18_fpn"]


def photographs(root: Path) -> Tensor:
    """(2, H, W, 3) uint8 BGR: parts of the repository's picture, or images of the folder EDGERPN_PHOTOS."""
    folder = os.environ.get("EDGERPN_PHOTOS")
    files = sorted(Path(folder).iterdir())[:2] if folder else [root / "docs" / "proposals.jpg"] * 2
    pictures = [cv2.imread(str(file)) for file in files]
    if not folder:
        pictures = [pictures[0][:400, :500], pictures[1][-400:, -500:]]
    return torch.from_numpy(np.stack([cv2.resize(picture, HW[::-1]) for picture in pictures]))


def randomise(model: Any, images: Tensor) -> None:
    """Norm statistics and weights as after a training, and a head that spreads its logits."""
    generator = torch.Generator().manual_seed(1)
    norms: list[Any] = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = None  # statistics of this very batch
            norm.weight.uniform_(0.5, 1.5, generator=generator)
            norm.bias.normal_(0, 0.3, generator=generator)
        model.backbone.train()
        model.backbone(images)
        for norm in norms:
            spread = norm.running_var.sqrt()
            norm.running_mean += 0.1 * spread * torch.randn(spread.shape, generator=generator)
            norm.running_var *= 0.8 + 0.4 * torch.rand(spread.shape, generator=generator)
        model.eval()
        # The pyramid has no norms, so scale the head's outputs to those of a trained network.
        head = model.rpn.head
        features = list(model.backbone(images).values())
        for layer, spread in ((head.conv[0][0], 1.0), (head.cls_logits, 1.5), (head.bbox_pred, 0.3)):
            layer.weight.normal_(0, 0.01, generator=generator)
            hidden = features if layer is head.conv[0][0] else [head.conv(x) for x in features]
            layer.weight *= spread / torch.cat([layer(x).flatten() for x in hidden]).std()
            layer.bias.normal_(0, 0.1, generator=generator)
        head.cls_logits.bias -= 3.0  # about half of the scores below 0.05, where the mobile network cuts


def freeze_norms(module: nn.Module, eps: float) -> None:
    """Puts torchvision's frozen batch norms, with `eps`, in place of the others."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            frozen = torchvision.ops.FrozenBatchNorm2d(child.num_features, eps=eps)
            frozen.load_state_dict({k: v for k, v in child.state_dict().items() if "num" not in k})
            setattr(module, name, frozen)
        else:
            freeze_norms(child, eps)


def torchvision_proposals(model: Any, images: Tensor) -> SimpleNamespace:
    """Raw outputs, boxes and scores of torchvision's backbone, pyramid and RPN on normalised RGB images."""
    caught: dict[str, Any] = {}
    filter_proposals = model.rpn.filter_proposals

    def catch(*arguments: Any) -> Any:
        caught["result"] = filter_proposals(*arguments)
        return caught["result"]

    model.rpn.filter_proposals = catch
    with torch.inference_mode():
        features = model.backbone(images)
        raw = model.rpn.head(list(features.values()))
        model.rpn(detection.image_list.ImageList(images, [HW] * len(images)), features)
    model.rpn.filter_proposals = filter_proposals
    boxes, scores = caught["result"]
    return SimpleNamespace(logits=raw[0], deltas=raw[1], boxes=boxes, scores=scores)


class Pair(NamedTuple):
    """A network of torchvision's and the same one as ours."""

    model: Any
    file: Path
    imported: ImportedModel
    frames: Tensor
    images: Tensor


@pytest.fixture(scope="module", params=NETWORKS)
def pair(request: pytest.FixtureRequest, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    torch.set_num_threads(1)
    name, _, frozen = request.param.partition(" ")
    torch.manual_seed(0)
    if name == "resnet18_fpn":
        body = detection.backbone_utils.resnet_fpn_backbone(
            backbone_name="resnet18", weights=None, norm_layer=nn.BatchNorm2d, trainable_layers=5
        )
        model = detection.FasterRCNN(body, num_classes=2)
    else:
        model = getattr(detection, f"fasterrcnn_{name}")(weights=None, weights_backbone=None)
    frames = photographs(root)
    rgb = frames.flip(-1).permute(0, 3, 1, 2).float() / 255
    images = torch.stack([model.transform.normalize(image) for image in rgb])
    randomise(model, images)
    if frozen:
        freeze_norms(model, 0.0)
    file = tmp_path_factory.mktemp("weights") / "model.pth"
    torch.save(model.state_dict(), file)
    imported = import_torchvision(file, input_hw=HW, norm_eps=0.0 if frozen else None)
    assert imported.architecture == name
    assert imported.norm_eps == (0.0 if frozen else 1e-5)
    return Pair(model, file, imported, frames, images)


def rpn_of(imported: ImportedModel) -> Rpn:
    model = Rpn(imported.checkpoint.settings.model)
    model.load_state_dict(imported.checkpoint.weights)
    return model.eval()


def test_logits_and_deltas_are_torchvisions_in_double_precision(pair: Pair) -> None:
    # With our own epsilon no weight changes, and double precision excludes rounding.
    eps = MOBILENET_NORM_EPS if pair.imported.architecture.startswith("mobilenet") else 1e-5
    model = copy.deepcopy(pair.model).double()
    for norm in model.modules():
        if hasattr(norm, "running_var"):
            norm.eps = eps
    imported = import_torchvision(pair.file, input_hw=HW, norm_eps=eps)
    images = pair.images.double()
    theirs = torchvision_proposals(model, images)
    with torch.inference_mode():
        levels = rpn_of(imported).double()(images.flip(1))
    sizes = len(imported.checkpoint.settings.model.anchors.sizes_px[0])
    assert len(levels) == len(theirs.logits) == len(ARCHITECTURES[imported.architecture].strides_px)
    for (logits, deltas), their_logits, their_deltas in zip(levels, theirs.logits, theirs.deltas, strict=True):
        count, _, rows, columns = their_logits.shape
        # (N, ratios * sizes, H, W) there, (N, H * W * sizes * ratios) here.
        by_size = their_logits.view(count, 3, sizes, rows, columns).permute(0, 3, 4, 2, 1).reshape(count, -1)
        moves = their_deltas.view(count, 3, sizes, 4, rows, columns).permute(0, 4, 5, 2, 1, 3).reshape(count, -1, 4)
        assert their_logits.std() > 0.1
        torch.testing.assert_close(logits, by_size, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(deltas, moves, rtol=1e-9, atol=1e-9)


def test_proposals_are_torchvisions(pair: Pair) -> None:
    model, _, imported, frames, images = pair
    theirs = torchvision_proposals(model, images)
    detector = Detector(rpn_of(imported), imported.checkpoint.settings.proposals, network_hw=HW).eval()
    with torch.inference_mode():
        batch = detector(frames)
    for image in range(len(frames)):
        count, boxes = int(batch.count[image]), theirs.boxes[image]
        assert abs(count - len(boxes)) <= 2
        assert count >= 300
        assert imported.architecture != "mobilenet_v3_large_fpn" or (
            count < 1000 and theirs.scores[image].min() >= 0.05
        )
        # Rounding moves corners by 0.01 px and scores by 0.0001, and may swap neighbours or tip a decision of the NMS.
        ours = torch.cat((batch.boxes[image, :count], 100 * batch.scores[image, :count, None]), dim=1)
        them = torch.cat((boxes, 100 * theirs.scores[image][:, None]), dim=1)
        is_same = torch.cdist(ours, them, p=math.inf) < 0.03
        assert is_same.any(dim=1).float().mean().item() >= 0.995
        assert is_same.any(dim=0).float().mean().item() >= 0.995
        assert (batch.scores[image, : count - 1] >= batch.scores[image, 1:count]).all()


def test_a_wrong_epsilon_or_order_would_be_noticed(pair: Pair) -> None:
    other = import_torchvision(pair.file, input_hw=HW, norm_eps=pair.imported.norm_eps + 0.1)
    ours = rpn_of(pair.imported)
    with torch.inference_mode():
        images = ours.normalize(pair.frames)
        wanted = ours(images)[0][0]
        assert (rpn_of(other)(images)[0][0] - wanted).abs().max() > 1e-3
        assert (ours(images.flip(1))[0][0] - wanted).abs().max() > 1e-3
