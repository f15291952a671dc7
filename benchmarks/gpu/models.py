"""The models of the GPU check: checkpoint, pictures and frames, the exports, and figures of what the commands write."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.session import Figures, Notes
from edgerpn import files, manifest
from edgerpn.errors import ManifestError

NUM_PICTURES = 16
CAMERA_HW = (720, 1280)
MAX_RECALL_IMAGES = 500
NUM_FRAMES = 8
"""Frames that are run in a cycle."""


@dataclass(frozen=True, kw_only=True)
class Export:
    """One of the exports."""

    name: str
    precision: str
    words: tuple[str, ...] = ()
    is_main: bool = False
    """Recall is measured on it."""
    is_quick: bool = False
    """`--quick` makes it too."""


EXPORTS = (
    Export(name="fp16", precision="fp16", is_main=True, is_quick=True),
    Export(name="fp32", precision="fp32", is_main=True, is_quick=True),
    Export(name="int8", precision="int8", is_main=True),
    Export(name="fp16-all", precision="fp16", words=("--set", "nms_candidates=all")),
    Export(name="fp16-dynamic", precision="fp16", words=("--batch", "dynamic"), is_quick=True),
    Export(
        name="fp16-source", precision="fp16", words=("--source-size", f"{CAMERA_HW[0]}x{CAMERA_HW[1]}"), is_quick=True
    ),
)
"""All have K = 100 and 1000 boxes of each level before NMS; all but one have batch 1."""


def export_words(
    export: Export, *, checkpoint: str, output: Path, target: str, size: str | None, data: str | None, pictures: Path
) -> list[str]:
    """Arguments of `edgerpn export`: main exports are gated by recall where there are annotations."""
    words = ["export", checkpoint, "-o", str(output), "--target", target, "--precision", export.precision]
    words += ["--proposals", "100", "--set", "pre_nms=1000", *export.words]
    words += ["--size", size] if size else []
    if export.is_main and data is not None:
        words += ["--data", data]
    else:
        words += ["--images", str(pictures), "--max-ar-drop", "off"]
    if export.precision == "int8":
        words += ["--calibration", data or str(pictures)]
    return words


def prepare(request: dict[str, Any], notes: Notes) -> None:
    """Pictures, frames in network size and camera size, and a checkpoint of random weights when there is none."""
    import cv2
    import numpy as np

    from edgerpn.letterbox import letterbox

    work = Path(request["work"])
    pictures = work / "pictures"
    pictures.mkdir(exist_ok=True)
    notes(pictures=_collect_pictures(request["data"], work, pictures))
    if request["model"] is not None:
        spec = manifest.read(request["model"]).input
        network_hw, frame_hw, camera_hw = spec.network_hw, spec.frame_hw, spec.source_hw or CAMERA_HW
    else:
        checkpoint, network_hw = _checkpoint(request, work, notes)
        frame_hw, camera_hw = network_hw, CAMERA_HW
        notes(checkpoint=checkpoint)
    images = [cv2.imread(str(file)) for file in sorted(pictures.iterdir())]
    fit = [letterbox(image.shape[:2], frame_hw).apply(image, cv2.resize) for image in images[:NUM_FRAMES]]
    np.save(work / "frames.npy", np.stack([fit[i % len(fit)] for i in range(NUM_FRAMES)]))
    camera = letterbox(images[0].shape[:2], camera_hw).apply(images[0], cv2.resize)
    np.save(work / "camera.npy", camera)
    notes(network_hw=list(network_hw), frame_hw=list(frame_hw), camera_hw=list(camera_hw))


def load_frames(path: str | Path) -> Any:
    """Returns the frames of a bundle, or of the step `prepare`, (N, H, W, 3) uint8."""
    import numpy as np

    content = np.load(path)
    return content["frames"] if isinstance(content, np.lib.npyio.NpzFile) else content


def _collect_pictures(data: str | None, work: Path, pictures: Path) -> str:
    """Copies some photographs, or draws pictures; returns their description."""
    if data is not None:
        from edgerpn.train.data.coco import read_coco

        records = read_coco(Path(data) / "val.json", Path(data) / "images", verify="header").records
        _write_annotations(Path(data) / "val.json", work / "val.json")
        for record in records[:: max(1, len(records) // NUM_PICTURES)][:NUM_PICTURES]:
            shutil.copyfile(record.file, pictures / record.file.name)
        return f"{len(list(pictures.iterdir()))} validation photographs"
    from edgerpn.demo.synthetic.dataset import write_dataset

    write_dataset(work / "synthetic", num_train=1, num_val=NUM_PICTURES)
    for file in sorted((work / "synthetic" / "images").glob("val_*")):
        shutil.copyfile(file, pictures / file.name)
    return f"{len(list(pictures.iterdir()))} made-up pictures"


def _write_annotations(source: Path, target: Path) -> None:
    """The annotations of as many images as can be measured in a minute."""
    content = json.loads(source.read_text(encoding="utf-8"))
    images = content["images"][:: max(1, len(content["images"]) // MAX_RECALL_IMAGES)][:MAX_RECALL_IMAGES]
    ids = {image["id"] for image in images}
    kept = [row for row in content["annotations"] if row["image_id"] in ids]
    files.write_text(target, json.dumps({**content, "images": images, "annotations": kept}))


def _checkpoint(request: dict[str, Any], work: Path, notes: Notes) -> tuple[str, tuple[int, int]]:
    """Path of the checkpoint, and the size that it is exported at."""
    from edgerpn.train.checkpoint import load_checkpoint

    given = request["checkpoint"]
    file = given or str(work / "random.pt")
    if given is None:
        _write_random(Path(file))
    resolved = load_checkpoint(file).settings
    notes(
        checkpoint_sha256=files.sha256(file), backbone=resolved.model.backbone, weights="given" if given else "random"
    )
    size = request["size"]
    return file, tuple(size) if size else resolved.data.input_hw


def _write_random(file: Path) -> None:
    """The default preset with weights by which scores and boxes differ from cell to cell, as trained ones do."""
    import torch

    from edgerpn.train.checkpoint import Checkpoint, save_checkpoint
    from edgerpn.train.config import TrainSettings
    from edgerpn.train.network.model import Rpn

    torch.manual_seed(0)
    resolved = TrainSettings()
    model = Rpn(resolved.model)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.normal_(std=0.2)
            module.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]
    torch.nn.init.normal_(model.head.objectness.weight, std=0.4)
    torch.nn.init.normal_(model.head.deltas.weight, std=0.05)
    save_checkpoint(Checkpoint(settings=resolved, weights=model.state_dict(), step=0), file)


def is_open(graph: Path) -> bool:
    """Returns whether the batch of an ONNX file is open."""
    return manifest.read(graph).input.batch is None


def export_of(file: Path) -> Figures:
    """Returns the figures of an ONNX file; empty without the file."""
    try:
        spec = manifest.read(file)
    except ManifestError:
        return {}
    recall = dict(spec.recall.metrics) if spec.recall else {}
    stage = spec.proposals
    return {
        "mb": round(file.stat().st_size / 1e6, 3), "recall": recall, "nms_iterations": stage.nms_iterations,
        "nms_candidates": stage.nms_candidates, "opset": spec.opset,
    }  # fmt: skip


def engine_of(file: Path) -> Figures:
    """Returns the figures of an engine; empty without the engine."""
    try:
        spec = manifest.read(file).engine
    except ManifestError:
        return {}
    if spec is None:
        return {}
    return {
        "mb": round(file.stat().st_size / 1e6, 3), "build_s": spec.build_s, "layers": spec.num_layers,
        "compute_capabilities": list(spec.compute_capabilities), "library_version": spec.library_version,
        "batches": [spec.profile.min_batch, spec.profile.opt_batch, spec.profile.max_batch],
    }  # fmt: skip


def _json(file: Path) -> Figures:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def lint_of(file: Path) -> Figures:
    """Returns the figures of a target's check."""
    found = _json(file).get("target", {})
    return {key: found[key] for key in ("num_errors", "num_warnings") if key in found}


def parity_of(file: Path) -> Figures:
    """Returns the figures of a comparison."""
    found = _json(file).get("comparison", {})
    return {
        key: found[key]
        for key in ("agrees", "num_images", "batch_sizes", "num_matched", "num_boundary", "num_unexplained", "iou",
                    "score_difference", "unmatched_share")
        if key in found
    }  # fmt: skip


def recall_of(file: Path) -> Figures:
    """Returns the figures of a measurement of recall."""
    found = _json(file)
    return {key: found[key] for key in ("metrics", "num_images", "latency_ms") if key in found}
