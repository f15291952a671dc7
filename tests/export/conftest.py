"""Real checkpoints and real exports of tiny networks, each made once in a session."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import torch

import edgerpn.manifest
from edgerpn import settings
from edgerpn.__main__ import main
from edgerpn.export.export_config import ExportConfig
from edgerpn.export.onnx.export import export_onnx
from edgerpn.manifest import Manifest
from edgerpn.train.checkpoint import Checkpoint, save_checkpoint
from edgerpn.train.config import TrainSettings
from edgerpn.train.data.coco import read_coco
from edgerpn.train.network.model import Rpn

SOURCE_HW = (200, 300)
NUM_PROPOSALS, PRE_NMS = 50, 100

PYRAMID = (
    # Not smaller: TensorRT-RTX takes minutes for the NMS of a level with a handful of cells.
    "data.input_hw=[128, 192]",
    "model.anchors={strides_px=[8, 16, 32], sizes_px=[[32.0], [64.0], [128.0]]}",
    "model.stage_channels=[8, 8, 16, 16, 16]",
    "model.stage_blocks=[0, 0, 1, 0, 0]",
    "model.neck_channels=16",
    # Its sums make scores of random weights so alike that their order is chance; `test_default_network.py` has it.
    "model.neck_bottom_up=false",
    "model.head_channels=16",
    "proposals.nms_iou=0.7",
)
CLASSED = (*PYRAMID, "model.classes=['fish', 'crab', 'größte Muschel']")
# As in the paper: one level, nine anchors, two logits with softmax, no pyramid, no batch norm in the head.
SINGLE_LEVEL = (
    "model.stage_channels=[4, 8, 8, 16]",
    "model.stage_blocks=[0, 0, 0, 0]",
    "model.neck_channels=0",
    "model.head_channels=16",
    "model.head_norm=false",
    "model.objectness=softmax",
    "model.anchors={strides_px=[16], sizes_px=[[16.0, 32.0, 64.0]], ratios_hw=[0.5, 1.0, 2.0]}",
    "proposals.min_size_px=8.0",
    "proposals.nms_iou=0.7",
    "proposals.soft_nms_iou=1.0",
)
# One square of 16 px in every cell of 8 px: a cell scores by the blue of its first pixel; see `write_peaks`.
PEAKS = (
    "model.stage_channels=[4, 4, 4]",
    "model.stage_blocks=[0, 0, 0]",
    "model.neck_channels=0",
    "model.head_channels=4",
    "model.head_norm=false",
    "model.mean_bgr=[0.0, 0.0, 0.0]",
    "model.std_bgr=[1.0, 1.0, 1.0]",
    "model.anchors={strides_px=[8], sizes_px=[[16.0]]}",
)
COMMON = ("data.input_hw=[64, 96]", f"proposals.pre_nms={PRE_NMS}", "proposals.nms_iterations=16")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder: train.json, val.json and pictures of several sizes with rectangles in smooth colours."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "images").mkdir()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (height, width) in enumerate([(200, 300), (160, 160), (128, 192), (300, 200), (90, 200)], start=1):
        rng = np.random.default_rng(number)
        picture = cv2.resize(rng.integers(0, 256, (6, 9, 3), dtype=np.uint8), (width, height))
        for _ in range(3):
            w, h = (int(v) for v in rng.integers(24, min(height, width) - 10, 2))
            x, y = int(rng.integers(0, width - w)), int(rng.integers(0, height - h))
            cv2.rectangle(picture, (x, y), (x + w - 1, y + h - 1), [int(v) for v in rng.integers(0, 256, 3)], -1)
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": 2, "bbox": [x, y, w, h]})
        assert cv2.imwrite(str(folder / "images" / f"{number}.png"), picture)
        images.append({"id": number, "file_name": f"{number}.png", "width": width, "height": height})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 2, "name": "rectangle"}]}
    for split in ("train", "val"):
        (folder / f"{split}.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session")
def photo_files(photos: Path) -> list[Path]:
    return sorted((photos / "images").iterdir())


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, photos: Path) -> dict[str, Path]:
    """Checkpoint files by name: pyramid, the same with classes, single-level and peaks."""
    folder = tmp_path_factory.mktemp("checkpoints")
    sha256 = read_coco(photos / "train.json", photos / "images").sha256
    files = {}
    for name, texts in {
        "pyramid": PYRAMID,
        "classed": CLASSED,
        "single-level": SINGLE_LEVEL,
        "peaks": PEAKS,
    }.items():
        resolved = settings.load(TrainSettings, overrides=(*COMMON, *texts))
        torch.manual_seed(1)
        model = Rpn(resolved.model)
        write_peaks(model) if name.startswith("peaks") else write_random(model)
        files[name] = folder / f"{name}.pt"
        checkpoint = Checkpoint(
            settings=resolved, weights=model.state_dict(), step=5, data_sha256=sha256, data_folder=str(photos)
        )
        save_checkpoint(checkpoint, files[name])
    return files


def write_random(model: Rpn) -> None:
    """Random weights and statistics with which scores and boxes differ from cell to cell."""
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2.0)
    torch.nn.init.normal_(model.head.objectness.weight, std=0.4)
    torch.nn.init.normal_(model.head.deltas.weight, std=0.05)
    if model.region_head is not None:
        # Last, so that the rest is as without classes.
        torch.nn.init.normal_(model.region_head.logits.weight, std=0.4)
        torch.nn.init.normal_(model.region_head.deltas.weight, std=0.05)


@torch.no_grad()
def write_peaks(model: Rpn) -> None:
    """Weights by which the logit of a cell is blue / 25 - 4, blue being that of its top left pixel."""
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.zero_()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight[0, 0, module.kernel_size[0] // 2, module.kernel_size[1] // 2] = 1.0
    model.head.deltas.weight.zero_()
    model.head.objectness.weight.mul_(1 / 25)
    assert model.head.objectness.bias is not None
    model.head.objectness.bias.fill_(-4.0)


def peaks_frame(blues: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint8]:
    """A frame for the peaks network with these blues, one for each of 8 x 12 cells."""
    frame = np.zeros((64, 96, 3), np.uint8)
    frame[::8, ::8, 0] = blues
    return frame


@pytest.fixture(scope="session")
def peaks_frames() -> dict[str, npt.NDArray[np.uint8]]:
    """Frames on which the peaks network finds nothing, one thing, and more than K."""
    one = np.zeros((8, 12), np.uint8)
    one[2, 3] = 250
    # Different everywhere, so that there is one order.
    many = np.random.default_rng(0).permutation(96).reshape(8, 12) + 130
    return {"zero": peaks_frame(np.zeros((8, 12), np.uint8)), "one": peaks_frame(one), "many": peaks_frame(many)}


@pytest.fixture(scope="session")
def peaks_files(tmp_path_factory: pytest.TempPathFactory, peaks_frames: dict[str, Any]) -> list[Path]:
    """The peaks frames as image files."""
    folder = tmp_path_factory.mktemp("peaks")
    for name, frame in peaks_frames.items():
        assert cv2.imwrite(str(folder / f"{name}.png"), frame)
    return sorted(folder.iterdir())


PEAKS_CONFIG: dict[str, Any] = {"num_proposals": 10, "pre_nms": 96, "nms_iou": 0.3, "score_threshold": 0.5}


@dataclass(frozen=True)
class Variant:
    """One of the exports that tests look at."""

    checkpoint: str
    config: ExportConfig


COUNTS: dict[str, Any] = {"num_proposals": NUM_PROPOSALS, "pre_nms": PRE_NMS}
VARIANTS = {
    "standard": Variant("pyramid", ExportConfig(**COUNTS)),
    "portable": Variant("pyramid", ExportConfig(target="tensorrt-rtx", batch=1, **COUNTS)),
    "portable-source": Variant("pyramid", ExportConfig(target="tensorrt", batch=1, source_hw=SOURCE_HW, **COUNTS)),
    "portable-bgrx": Variant("pyramid", ExportConfig(target="tensorrt-rtx", batch=1, channels="bgrx", **COUNTS)),
    "single-level": Variant("single-level", ExportConfig(target="tensorrt-rtx", batch="dynamic", **COUNTS)),
    "described-standard": Variant("pyramid", ExportConfig(embeddings=True, roi_features=(3, 2), **COUNTS)),
    "described-portable": Variant(
        "pyramid", ExportConfig(target="tensorrt-rtx", embeddings=True, roi_features=(3, 2), **COUNTS)
    ),
    "classed-standard": Variant("classed", ExportConfig(embeddings=True, **COUNTS)),
    "classed-portable": Variant(
        "classed", ExportConfig(target="tensorrt-rtx", batch=1, source_hw=SOURCE_HW, roi_features=(3, 2), **COUNTS)
    ),
    "unclassed": Variant("classed", ExportConfig(classes=False, **COUNTS)),
    "peaks-standard": Variant("peaks", ExportConfig(**PEAKS_CONFIG)),
    "peaks-portable": Variant("peaks", ExportConfig(target="tensorrt-rtx", batch="dynamic", **PEAKS_CONFIG)),
}


@dataclass(frozen=True)
class Exported:
    """An exported file, and the result of the export."""

    file: Path
    checkpoint: Path
    config: ExportConfig
    network_hw: tuple[int, int]
    manifest: Manifest | None
    """None for exports of the command line."""


@pytest.fixture(scope="session")
def exported(
    tmp_path_factory: pytest.TempPathFactory,
    checkpoints: dict[str, Path],
    photo_files: list[Path],
    peaks_files: list[Path],
) -> Callable[[str], Exported]:
    """Returns an export of `VARIANTS` by name; the first call makes it."""
    folder = tmp_path_factory.mktemp("exported")
    made: dict[str, Exported] = {}

    def export(name: str) -> Exported:
        if name not in made:
            variant = VARIANTS[name]
            file, checkpoint, manifest = folder / name / "model.onnx", checkpoints[variant.checkpoint], None
            if name == "standard":
                counts = ["--proposals", str(NUM_PROPOSALS), "--set", f"pre_nms={PRE_NMS}"]
                assert main(["export", str(checkpoint), "-o", str(file), *counts]) == 0
            else:
                images = peaks_files if name.startswith("peaks") else photo_files
                manifest = export_onnx(checkpoint, file, variant.config, images=images)
            made[name] = Exported(
                file=file,
                checkpoint=checkpoint,
                config=variant.config,
                network_hw=edgerpn.manifest.read(file).input.network_hw,
                manifest=manifest,
            )
        return made[name]

    return export
