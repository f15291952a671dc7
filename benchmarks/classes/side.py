"""torchvision's Faster R-CNN on a small backbone with a feature pyramid, trained from random weights.

    python -m benchmarks.classes.side resnet18 --data DIR --out results.json [--minutes 10] [--seed 0] [--threads N]

It needs torch, torchvision and OpenCV, and runs in a process and an environment of its own. Its anchors, losses and
thresholds are torchvision's, with batch norms that learn, as torchvision has them without pretrained weights; so are
its transform (480 px) and its detections, but for the score from which they count, which is lower, as AP needs it.
AdamW, warm-up, cosine, mirrored images and bf16, where the CPU has it, are those of the other peers
(`benchmarks.recall.side`).
Writes COCO results for the images of val.json, whose categories are numbered from 1 in the order of `classes`, and
prints figures as a JSON line: classes, images_seen, parameters.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.recall.side import LEARNING_RATE, read_image, train_in_bf16

SIDE_PX, BATCH = 480, 4
LEAST_SCORE = 0.001
WARMUP_STEPS = 100


def read_split(
    folder: Path, split: str
) -> tuple[list[dict[str, Any]], dict[int, list[dict[str, Any]]], dict[int, str]]:
    """Images of a split, the annotations of each by its id, and the names of the categories that have some."""
    content = json.loads((folder / f"{split}.json").read_text())
    rows: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for row in content["annotations"]:
        rows[row["image_id"]].append(row)
    present = {row["category_id"] for row in content["annotations"]}
    return content["images"], rows, {row["id"]: row["name"] for row in content["categories"] if row["id"] in present}


def make_model(backbone: str, num_classes: int) -> Any:
    """Faster R-CNN for a number of classes and the background, from random weights."""
    detection: Any = importlib.import_module("torchvision.models.detection")
    options = {"min_size": SIDE_PX, "max_size": SIDE_PX, "box_score_thresh": LEAST_SCORE}
    if backbone == "mobilenet":
        return detection.fasterrcnn_mobilenet_v3_large_fpn(
            weights=None, weights_backbone=None, num_classes=1 + num_classes, **options
        )
    torch: Any = importlib.import_module("torch")
    backbones: Any = importlib.import_module("torchvision.models.detection.backbone_utils")
    pyramid = backbones.resnet_fpn_backbone(
        backbone_name=backbone, weights=None, norm_layer=torch.nn.BatchNorm2d, trainable_layers=5
    )
    return detection.FasterRCNN(pyramid, num_classes=1 + num_classes, **options)


def to_tensor(folder: Path, image: dict[str, Any], flip: bool) -> Any:
    """The image as torchvision's detectors take it: (3, H, W) float32 RGB, 0..1."""
    torch: Any = importlib.import_module("torch")
    frame = read_image(folder, image)[:, :: -1 if flip else 1, ::-1]
    return torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1).float().div(255)


def to_target(image: dict[str, Any], rows: list[dict[str, Any]], labels: dict[int, int], flip: bool) -> dict[str, Any]:
    """The objects of an image as torchvision's detectors take them."""
    torch: Any = importlib.import_module("torch")
    xywh = np.array([row["bbox"] for row in rows], np.float32).reshape(-1, 4)
    boxes = np.concatenate((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), axis=1)
    if flip:
        boxes[:, [0, 2]] = image["width"] - boxes[:, [2, 0]]
    numbers = torch.tensor([labels[row["category_id"]] for row in rows], dtype=torch.int64)
    return {"boxes": torch.from_numpy(boxes), "labels": numbers}


def train(model: Any, options: argparse.Namespace) -> int:
    """Trains for the given minutes; returns the number of images seen."""
    torch: Any = importlib.import_module("torch")
    images, rows, names = read_split(options.data, "train")
    labels = {category: number for number, category in enumerate(names, start=1)}
    # Its losses are not defined for boxes without an area.
    rows = {key: [row for row in own if min(row["bbox"][2:]) > 0] for key, own in rows.items()}
    generator = np.random.default_rng(options.seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.02)
    batch = min(BATCH, len(images))
    began, seen = time.monotonic(), 0
    model.train()
    while True:
        order = generator.permutation(len(images))
        for start in range(0, len(order) - batch + 1, batch):
            share = (time.monotonic() - began) / (60 * options.minutes)
            if share >= 1:
                return seen
            warm_up = min(1, (seen / batch + 1) / WARMUP_STEPS)
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * warm_up * 0.5 * (1 + math.cos(math.pi * share))
            shown = [(images[i], bool(generator.random() < 0.5)) for i in order[start : start + batch]]
            pixels = [to_tensor(options.data, image, flip) for image, flip in shown]
            targets = [to_target(image, rows[image["id"]], labels, flip) for image, flip in shown]
            losses = model(pixels, targets)
            optimizer.zero_grad(set_to_none=True)
            sum(losses.values()).backward()
            optimizer.step()
            seen += batch


def find(model: Any, folder: Path) -> list[dict[str, Any]]:
    """COCO results for the images of val.json."""
    torch: Any = importlib.import_module("torch")
    model.eval()
    found: list[dict[str, Any]] = []
    for image in read_split(folder, "val")[0]:
        with torch.inference_mode():
            (out,) = model([to_tensor(folder, image, flip=False)])
        columns = zip(out["boxes"].tolist(), out["labels"].tolist(), out["scores"].tolist(), strict=True)
        found += [
            {"image_id": image["id"], "category_id": label, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
            for (x1, y1, x2, y2), label, score in columns
        ]
    return found


def main() -> None:
    """Trains, and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone", choices=["resnet18", "mobilenet"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    torch: Any = importlib.import_module("torch")
    torch.manual_seed(options.seed)
    if options.threads:
        torch.set_num_threads(options.threads)
    names = read_split(options.data, "train")[2]
    model = make_model(options.backbone, len(names))
    for module in (model.backbone, model.rpn.head, model.roi_heads.box_head):
        train_in_bf16(module, torch)
    seen = train(model, options)
    options.out.write_text(json.dumps(find(model, options.data)))
    parameters = sum(p.numel() for p in model.parameters())
    print(json.dumps({"classes": list(names.values()), "images_seen": seen, "parameters": parameters}))


if __name__ == "__main__":
    main()
