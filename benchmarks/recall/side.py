"""Proposals for the val images by a method that is not ours, in a process and an environment of its own.

    python -m benchmarks.recall.side METHOD --data DIR --out results.json [--minutes 10] [--seed 0] [--threads N]

Methods: `torchvision` (its RPN on a resnet18 of stride 16, trained from random weights; needs torch, torchvision and
OpenCV), `selective-search` and `edge-boxes` (OpenCV with its contrib modules), `prior` (boxes that are frequent in
train.json, whatever the image shows; NumPy only).

Writes COCO results, best first, and prints figures of the method as a JSON line: images_per_s of training,
ms_per_image of finding, parameters.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

NUM_PROPOSALS = 1000
SIZES_PX, RATIOS = (32, 64, 128, 256, 512), (0.5, 1.0, 2.0)
SIDE_PX, BATCH, LEARNING_RATE = 480, 8, 1e-3

Boxes = npt.NDArray[np.float64]
"""(M, 4) x1, y1, x2, y2 in pixels of the image."""
Find = Callable[[dict[str, Any]], Boxes]
"""From an image's entry in the annotations to its boxes, best first."""


def read_split(folder: Path, split: str) -> tuple[list[dict[str, Any]], dict[int, Boxes]]:
    """Images of a split, and the boxes of each by its id."""
    content = json.loads((folder / f"{split}.json").read_text())
    boxes: dict[int, list[list[float]]] = {image["id"]: [] for image in content["images"]}
    for row in content["annotations"]:
        x, y, w, h = row["bbox"]
        boxes[row["image_id"]].append([x, y, x + w, y + h])
    return content["images"], {key: np.array(rows, float).reshape(-1, 4) for key, rows in boxes.items()}


def read_image(folder: Path, image: dict[str, Any]) -> Any:
    """(H, W, 3) uint8 BGR."""
    cv2: Any = importlib.import_module("cv2")
    name = Path(image["file_name"])
    return cv2.imread(str(next(p for p in (folder / "images" / name.name, folder / name) if p.exists())))


def train_in_bf16(module: Any, torch: Any) -> None:
    """Lets a module compute in bf16 while it trains, if the CPU does so natively, as our training does.

    It returns float32, so that boxes and losses stay exact: torchvision derives the precision of its boxes from that of
    the features, and bf16 has steps of 2 pixels beyond 256.
    """
    capabilities = torch.cpu.get_capabilities()
    if not (capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")):
        return
    forward = module.forward

    def run(*inputs: Any) -> Any:
        with torch.autocast("cpu", torch.bfloat16, enabled=module.training):
            return to_float32(forward(*inputs))

    module.forward = run


def to_float32(out: Any) -> Any:
    """The same tensor, list or dict of tensors in float32."""
    if isinstance(out, dict):
        return {key: to_float32(value) for key, value in out.items()}
    if isinstance(out, (list, tuple)):
        return type(out)(map(to_float32, out))
    return out.float()


def prior(options: argparse.Namespace) -> tuple[Find, dict[str, Any]]:
    """Boxes of train.json scaled to the image, the most typical first: those with the most others near them."""
    images, boxes = read_split(options.data, "train")
    size = {image["id"]: np.array([image["width"], image["height"]] * 2, float) for image in images}
    pool = np.concatenate([rows / size[key] for key, rows in boxes.items()])
    generator = np.random.default_rng(options.seed)
    pool = generator.permutation(pool)[:3000]
    overlap = np.array([iou(row, pool).mean() for row in pool])
    pool = pool[np.argsort(-overlap)]
    chosen: list[Boxes] = []
    for row in pool:  # a box like one before adds nothing
        if not chosen or iou(row, np.array(chosen)).max() < 0.8:
            chosen.append(row)
        if len(chosen) == NUM_PROPOSALS:
            break
    ranked = np.array(chosen)
    return lambda image: ranked * np.array([image["width"], image["height"]] * 2, float), {}


def iou(box: Boxes, others: Boxes) -> Boxes:
    """Overlap of a box with each of the others."""
    lower, upper = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    common = np.prod(np.clip(upper - lower, 0, None), axis=1)
    union = np.prod(box[2:] - box[:2]) + np.prod(others[:, 2:] - others[:, :2], axis=1) - common
    result: Boxes = common / np.maximum(union, 1e-12)
    return result


def selective_search(options: argparse.Namespace) -> tuple[Find, dict[str, Any]]:
    """OpenCV's Selective Search in its fast form, in its own order."""
    cv2: Any = importlib.import_module("cv2")

    def find(image: dict[str, Any]) -> Boxes:
        search = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
        search.setBaseImage(read_image(options.data, image))
        search.switchToSelectiveSearchFast()
        rows = np.array(search.process()[:NUM_PROPOSALS], float).reshape(-1, 4)
        rows[:, 2:] += rows[:, :2]
        return rows

    return find, {}


def edge_boxes(options: argparse.Namespace) -> tuple[Find, dict[str, Any]]:
    """OpenCV's EdgeBoxes on Sobel edges, because OpenCV does not bring the learned detector's weights."""
    cv2: Any = importlib.import_module("cv2")

    def find(image: dict[str, Any]) -> Boxes:
        grey = cv2.GaussianBlur(read_image(options.data, image), (3, 3), 0).max(axis=2).astype(np.float32) / 255
        dx, dy = cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)
        strength, angle = np.hypot(dx, dy), np.mod(np.arctan2(dy, dx) + math.pi / 2, math.pi).astype(np.float32)
        strength = thin(strength / max(float(strength.max()), 1e-6), dx, dy).astype(np.float32)
        finder = cv2.ximgproc.createEdgeBoxes()
        finder.setMaxBoxes(NUM_PROPOSALS)
        rows = np.array(finder.getBoundingBoxes(strength, angle)[0], float).reshape(-1, 4)
        rows[:, 2:] += rows[:, :2]
        return rows

    return find, {}


def thin(strength: Any, dx: Any, dy: Any) -> Any:
    """Edges one pixel wide: strength where no neighbour along the gradient is stronger, else 0."""
    padded = np.pad(strength, 1)
    height, width = strength.shape
    flat, steep = np.abs(dy) <= 0.41 * np.abs(dx), np.abs(dx) <= 0.41 * np.abs(dy)
    step_x = np.where(steep, 0, 1)
    step_y = np.where(flat, 0, np.where(steep, 1, np.sign(dx * dy).astype(int)))
    rows, columns = np.mgrid[1 : height + 1, 1 : width + 1]
    ahead, behind = padded[rows + step_y, columns + step_x], padded[rows - step_y, columns - step_x]
    return np.where((strength >= ahead) & (strength > behind) & (strength > 0.02), strength, 0)


def torchvision_rpn(options: argparse.Namespace) -> tuple[Find, dict[str, Any]]:
    """Torchvision's RPN trained for the given minutes: its rules and defaults, AdamW, mirrored images, 480 px."""
    cv2: Any = importlib.import_module("cv2")
    torch: Any = importlib.import_module("torch")
    torchvision: Any = importlib.import_module("torchvision")
    detection: Any = importlib.import_module("torchvision.models.detection")
    layers: Any = importlib.import_module("torchvision.models._utils")
    torch.manual_seed(options.seed)
    if options.threads:
        torch.set_num_threads(options.threads)
    backbone = layers.IntermediateLayerGetter(torchvision.models.resnet18(weights=None), {"layer3": "0"})
    anchors = detection.rpn.AnchorGenerator((SIZES_PX,), (RATIOS,))
    head = detection.rpn.RPNHead(256, anchors.num_anchors_per_location()[0])
    counts = {"training": 2000, "testing": NUM_PROPOSALS}
    rpn = detection.rpn.RegionProposalNetwork(anchors, head, 0.7, 0.3, 256, 0.5, counts, counts, 0.7)
    for module in (backbone, head):
        train_in_bf16(module, torch)
    model = torch.nn.ModuleList([backbone, rpn])
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.02)

    def to_network(image: dict[str, Any], flip: bool) -> tuple[Any, float]:
        frame = read_image(options.data, image)
        scale = SIDE_PX / max(frame.shape[:2])
        small = cv2.resize(frame, None, fx=scale, fy=scale)
        if flip:
            small = cv2.flip(small, 1)
        canvas = np.full((SIDE_PX, SIDE_PX, 3), 114, np.uint8)
        canvas[: small.shape[0], : small.shape[1]] = small[:SIDE_PX, :SIDE_PX]
        return torch.from_numpy(canvas).permute(2, 0, 1).float().sub(116).div(58), scale

    def batch_of(rows: list[dict[str, Any]], generator: np.random.Generator) -> tuple[Any, list[Any]]:
        pixels, targets = [], []
        for image in rows:
            flip = bool(generator.random() < 0.5)
            tensor, scale = to_network(image, flip)
            marked = boxes[image["id"]] * scale
            if flip:
                width = image["width"] * scale
                marked = np.stack((width - marked[:, 2], marked[:, 1], width - marked[:, 0], marked[:, 3]), axis=1)
            pixels.append(tensor)
            targets.append({"boxes": torch.tensor(marked, dtype=torch.float32).reshape(-1, 4)})
        return torch.stack(pixels), targets

    def run(pixels: Any, targets: list[Any] | None) -> Any:
        images = detection.image_list.ImageList(pixels, [(SIDE_PX, SIDE_PX)] * len(pixels))
        return rpn(images, backbone(pixels), targets)

    images, boxes = read_split(options.data, "train")
    generator = np.random.default_rng(options.seed)
    began, seen, share = time.monotonic(), 0, 0.0
    while share < 1:
        order = generator.permutation(len(images))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            share = (time.monotonic() - began) / (60 * options.minutes)
            if share >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * min(1, (seen / BATCH + 1) / 100) * 0.5 * (1 + math.cos(math.pi * share))
            _, losses = run(*batch_of([images[i] for i in order[start : start + BATCH]], generator))
            optimizer.zero_grad(set_to_none=True)
            sum(losses.values()).backward()
            optimizer.step()
            seen += BATCH
    seconds = time.monotonic() - began
    model.eval()

    def find(image: dict[str, Any]) -> Boxes:
        pixels, scale = to_network(image, flip=False)
        with torch.inference_mode():
            (rows,), _ = run(pixels[None], None)
        limit = np.array([image["width"], image["height"]] * 2, float)
        found: Boxes = np.minimum(rows.double().numpy() / scale, limit)
        return found

    parameters = sum(p.numel() for p in model.parameters())
    return find, {"images_per_s": seen / seconds, "parameters": parameters, "images_seen": seen}


METHODS = {
    "prior": prior,
    "selective-search": selective_search,
    "edge-boxes": edge_boxes,
    "torchvision": torchvision_rpn,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method", choices=METHODS)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=0)
    options = parser.parse_args()
    find, facts = METHODS[options.method](options)
    images, _ = read_split(options.data, "val")
    results: list[dict[str, Any]] = []
    elapsed_ms = []
    for image in images:
        began = time.perf_counter()
        rows = find(image)
        elapsed_ms.append(1000 * (time.perf_counter() - began))
        for rank, (x1, y1, x2, y2) in enumerate(rows[:NUM_PROPOSALS].tolist()):
            results.append({"image_id": image["id"], "bbox": [x1, y1, x2 - x1, y2 - y1], "score": 1 / (1 + rank)})
    options.out.write_text(json.dumps(results))
    print(json.dumps({**facts, "ms_per_image": float(np.median(elapsed_ms))}))


if __name__ == "__main__":
    main()
