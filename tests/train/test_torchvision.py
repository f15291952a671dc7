"""Our parts for torchvision's detectors, without torchvision; tests/train/conformance has the tests with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from edgerpn.errors import CheckpointError, InputError
from edgerpn.train.checkpoint import Checkpoint, load_model, save_checkpoint
from edgerpn.train.config import TrainSettings
from edgerpn.train.network.detector import Detector
from edgerpn.train.network.model import Rpn
from edgerpn.train.run import step
from edgerpn.train.run.state import TrainingRun
from edgerpn.train.torchvision import TorchvisionParts, as_checkpoint, as_rois, as_rpn

MakeSettings = Callable[..., TrainSettings]
BOXES = torch.tensor([[10.0, 12.0, 60.0, 70.0], [30.0, 8.0, 90.0, 40.0]])


@pytest.fixture
def make_file(tmp_path: Path, tiny_settings: MakeSettings) -> Callable[..., Path]:
    """Writes a checkpoint with random weights, large enough that boxes and scores differ, and tiny settings."""

    def make(*texts: str) -> Path:
        torch.manual_seed(3)
        resolved = tiny_settings("proposals.num_proposals=30", *texts)
        model = Rpn(resolved.model)
        torch.nn.init.normal_(model.head.objectness.weight, std=0.5)
        torch.nn.init.normal_(model.head.deltas.weight, std=0.05)
        save_checkpoint(
            Checkpoint(settings=resolved, weights=model.state_dict(), step=0), file := tmp_path / "random.pt"
        )
        return file

    return make


def picture(height: int, width: int) -> Tensor:
    """(H, W, 3) uint8 BGR noise of 8 pixels."""
    small = torch.randint(0, 256, (1, 3, height // 8, width // 8), generator=torch.Generator().manual_seed(width))
    return functional.interpolate(small.float(), scale_factor=8)[0].permute(1, 2, 0).to(torch.uint8)


def transformed(frames: list[Tensor], transform: dict[str, Any]) -> Any:
    """Pictures as torchvision's transform gives them if it need not scale them."""
    mean, std = (torch.tensor(transform[name]).view(3, 1, 1) for name in ("image_mean", "image_std"))
    rgb = [(frame.flip(-1).permute(2, 0, 1).float() / 255 - mean) / std for frame in frames]
    sizes = [(len(frame), frame.shape[1]) for frame in frames]
    step_px = transform["size_divisible"]
    height, width = (-(-max(side) // step_px) * step_px for side in zip(*sizes, strict=True))
    padded = [functional.pad(x, (0, width - x.shape[2], 0, height - x.shape[1])) for x in rgb]
    return SimpleNamespace(tensors=torch.stack(padded), image_sizes=sizes)


def run_parts(parts: TorchvisionParts, images: Any, boxes: list[Tensor] | None = None) -> Any:
    targets = None if boxes is None else [{"boxes": rows} for rows in boxes]
    return parts.rpn(images, parts.backbone(images.tensors), targets)


def test_each_picture_of_a_batch_has_the_proposals_of_the_detector(make_file: Callable[..., Path]) -> None:
    # Its own mean and deviation, so that nothing fits by chance.
    file = make_file("model.mean_bgr=[90.0, 100.0, 120.0]", "model.std_bgr=[50.0, 60.0, 70.0]")
    parts = as_rpn(file)
    frames = [picture(128, 96), picture(88, 128)]
    images = transformed(frames, parts.transform)
    assert images.tensors.shape == (2, 3, 128, 128)
    parts.backbone.eval()
    parts.rpn.eval()
    boxes, losses = run_parts(parts, images)
    assert losses == {}
    model, checkpoint = load_model(file)
    for frame, source_hw, found in zip(frames, images.image_sizes, boxes, strict=True):
        detector = Detector(model, checkpoint.settings.proposals, network_hw=(128, 128), source_hw=source_hw)
        expected = detector(frame[None])
        assert len(found) == int(expected.count) > 10
        torch.testing.assert_close(found, expected.boxes[0, : len(found)], rtol=0, atol=1e-3)
        assert not found.requires_grad


def test_levels_are_named_from_the_finest_and_have_the_channels_that_the_backbone_says(
    make_file: Callable[..., Path],
) -> None:
    backbone, _, _ = as_rpn(make_file())
    features = backbone(torch.zeros(1, 3, 64, 96))
    assert {name: tuple(x.shape) for name, x in features.items()} == {
        "0": (1, backbone.out_channels, 8, 12),
        "1": (1, backbone.out_channels, 4, 6),
        "2": (1, backbone.out_channels, 2, 3),
    }


def test_the_losses_are_those_of_our_training(make_run: Callable[..., TrainingRun], tmp_path: Path) -> None:
    run = make_run("run", "data.augment={min_visible=0.0}")  # no ignore regions
    before = {name: value.clone() for name, value in run.model.state_dict().items()}
    save_checkpoint(Checkpoint(settings=run.settings, weights=before, step=0), tmp_path / "before.pt")
    parts = as_rpn(tmp_path / "before.pt", frozen_norms=False)
    (batch,) = next(run.loader.steps(0))
    images = transformed(list(batch.images), parts.transform)
    _, losses = run_parts(parts, images, [rows[mask] for rows, mask in zip(batch.gt_boxes, batch.gt_mask, strict=True)])
    assert list(losses) == ["loss_objectness", "loss_rpn_box_reg"]
    figures = step.check_finite(run, step.take_step(run, [batch]))
    assert losses["loss_objectness"].item() == pytest.approx(figures.objectness, rel=1e-4)
    assert losses["loss_rpn_box_reg"].item() == pytest.approx(run.settings.loss.box_weight * figures.box, rel=1e-4)


def test_the_global_seed_decides_about_the_sample(make_file: Callable[..., Path]) -> None:
    parts = as_rpn(make_file("assign.samples_per_image=8", "loss.objectness=bce"))
    images = transformed([picture(96, 96)], parts.transform)

    def loss(seed: int) -> float:
        torch.manual_seed(seed)
        return run_parts(parts, images, [BOXES])[1]["loss_objectness"].item()

    assert loss(1) == loss(1) != loss(2)


def test_pictures_without_objects_have_no_box_loss(make_file: Callable[..., Path]) -> None:
    parts = as_rpn(make_file())
    images = transformed([picture(96, 96)] * 2, parts.transform)
    _, losses = run_parts(parts, images, [torch.zeros(0, 4)] * 2)
    assert losses["loss_rpn_box_reg"] == 0
    assert 0 < losses["loss_objectness"] < torch.inf


def test_training_changes_every_weight_but_those_of_frozen_norms(make_file: Callable[..., Path]) -> None:
    file = make_file()
    for is_frozen in (True, False):
        parts = as_rpn(file, frozen_norms=is_frozen)
        modules = torch.nn.ModuleList([parts.backbone, parts.rpn]).eval().train()
        before = {name: value.clone() for name, value in modules.state_dict().items()}
        images = transformed([picture(96, 96)] * 2, parts.transform)
        _, losses = run_parts(parts, images, [BOXES] * 2)
        optimizer = torch.optim.SGD([p for p in modules.parameters() if p.requires_grad], lr=0.1)
        sum(losses.values(), torch.zeros(())).backward()
        optimizer.step()
        same = {name for name, value in modules.state_dict().items() if torch.equal(value, before[name])}
        assert same == ({name for name in before if "norm" in name} if is_frozen else set())


def test_trained_parts_become_a_checkpoint_with_their_proposals(make_file: Callable[..., Path], tmp_path: Path) -> None:
    parts = as_rpn(make_file(), num_proposals=7)
    with torch.no_grad():
        parts.backbone.neck.get_parameter("lateral.0.weight").mul_(1.5)
        parts.rpn.head.objectness.weight.mul_(-1)
    save_checkpoint(as_checkpoint(parts.backbone, parts.rpn), tmp_path / "tuned.pt")
    again = as_rpn(tmp_path / "tuned.pt")
    for part in (*parts[:2], *again[:2]):
        part.eval()
    images = transformed([picture(96, 96)], parts.transform)
    (expected,), (found,) = run_parts(parts, images)[0], run_parts(again, images)[0]
    assert len(found) == 7
    assert torch.equal(found, expected)


def test_sizes_of_the_transform_are_those_of_the_checkpoint_or_of_the_caller(make_file: Callable[..., Path]) -> None:
    file = make_file()
    own, wide = as_rpn(file).transform, as_rpn(file, size_hw=(60, 100)).transform
    assert (own["min_size"], own["max_size"], own["size_divisible"]) == (96, 96, 32)
    assert (wide["min_size"], wide["max_size"]) == (60, 100)
    with pytest.raises(ValueError, match=r"size_hw: expected a positive height and width in pixels, got \(0, 100\)"):
        as_rpn(file, size_hw=(0, 100))
    with pytest.raises(ValueError, match="num_proposals: expected at least 1, got 0"):
        as_rpn(file, num_proposals=0)


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint file"):
        as_rpn(tmp_path / "nothing.pt")


def test_mistakes_in_the_use_of_the_parts_are_named(make_file: Callable[..., Path]) -> None:
    parts = as_rpn(make_file())
    images = transformed([picture(96, 96)], parts.transform)
    with pytest.raises(ValueError, match=r"targets: expected boxes of each image in training mode; call eval\(\)"):
        run_parts(parts, images)
    features = parts.backbone(images.tensors)
    features.popitem()
    with pytest.raises(InputError, match=r"features: expected maps of .* for images of 96x96, got .*; use"):
        parts.rpn(images, features)
    images.tensors = images.tensors[..., :80]
    with pytest.raises(InputError, match=r"images: both sides must be multiples of 32.*, got 96x80; give .*"):
        run_parts(parts, images)


def test_rois_name_the_image_before_the_box() -> None:
    boxes: list[Any] = [BOXES, torch.zeros(0, 4), np.array([[1.0, 2.0, 3.0, 4.0]], np.float32)]
    expected = torch.tensor([[0, 10, 12, 60, 70], [0, 30, 8, 90, 40], [2, 1, 2, 3, 4]], dtype=torch.float32)
    assert torch.equal(as_rois(boxes), expected)
