"""Recall by the thresholds of the NMS, to choose them for a network and a number of proposals.

    python -m benchmarks.nms.recall --checkpoint last.pt --data DIR [--iou 0.7,0.83,0.9] [--soft-iou 1,0.5]
        [--proposals 1000] [--out result.json]

The network runs once on each image of val.json; then every pair of thresholds selects proposals from its outputs. A
soft threshold of 1 is NMS alone. Thresholds chosen by these figures are chosen by the validation images. The same is
written as a table beside `--out`, with .md.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import torch
from torch import Tensor

from edgerpn import files
from edgerpn.letterbox import Letterbox, letterbox
from edgerpn.progress import track
from edgerpn.train.checkpoint import load_model
from edgerpn.train.data.annotations import ImageId
from edgerpn.train.data.coco import Dataset, read_coco, read_image
from edgerpn.train.network.detector import Detector
from edgerpn.train.network.layers import fuse_batch_norm
from edgerpn.train.network.proposal_stage import ProposalConfig, select_proposals
from edgerpn.train.recall.average_recall import average_recall
from edgerpn.train.recall.results import FoundBoxes

BUDGETS = ("AR@10", "AR@100", "AR@300", "AR@1000")

Thresholds = tuple[float, float]
"""IoU above which a box is dropped, and above which it loses score."""

Levels = list[tuple[Tensor, Tensor]]
"""Logits (1, A) and deltas (1, A, 4) of each pyramid level."""


@torch.inference_mode()
def network_outputs(detector: Detector, dataset: Dataset) -> Iterator[tuple[ImageId, Letterbox, Levels]]:
    """Runs the network on each image; yields its id, how it lies in the input, and the levels."""
    for record in track(dataset.records, "images", unit="image"):
        frame = read_image(record.file)
        geometry = letterbox((frame.shape[0], frame.shape[1]), detector.network_hw)
        yield (
            record.image_id,
            geometry,
            detector.network_levels(torch.from_numpy(geometry.apply(frame, cv2.resize))[None]),
        )


def found_of(geometry: Letterbox, boxes: Tensor, scores: Tensor) -> FoundBoxes:
    """Returns the boxes (M, 4), pixels of the network's input, that are in the picture, in its pixels."""
    in_frame = geometry.to_frame(boxes.numpy())
    visible = (in_frame[:, 2] > in_frame[:, 0]) & (in_frame[:, 3] > in_frame[:, 1])
    return FoundBoxes.of(in_frame[visible], scores.numpy()[visible])


def measure(
    detector: Detector, dataset: Dataset, stages: dict[Thresholds, ProposalConfig]
) -> dict[Thresholds, dict[str, float]]:
    """Average recall with each setting of the proposal stage."""
    anchors = [detector.get_buffer(f"anchors_{level}") for level in range(detector.num_levels)]
    results: dict[Thresholds, dict[ImageId, FoundBoxes]] = {pair: {} for pair in stages}
    for image_id, geometry, levels in network_outputs(detector, dataset):
        for pair, config in stages.items():
            batch = select_proposals(levels, anchors, content_hw=detector.content_hw, config=config)
            count = int(batch.count[0])
            results[pair][image_id] = found_of(geometry, batch.boxes[0, :count], batch.scores[0, :count])
    truth = dataset.coco_ground_truth()
    return {pair: average_recall(truth, found) for pair, found in results.items()}


def table(rows: dict[Thresholds, dict[str, float]]) -> str:
    lines = [f"| NMS IoU | soft from IoU | {' | '.join(BUDGETS)} |", f"|---:|---:|{'---:|' * len(BUDGETS)}"]
    for (hard, soft), recall in rows.items():
        figures = " | ".join(f"{recall[name]:.3f}" for name in BUDGETS)
        lines.append(f"| {hard:g} | {'none' if soft == 1 else f'{soft:g}'} | {figures} |")
    return "\n".join(lines) + "\n"


def fractions(text: str) -> tuple[float, ...]:
    """Thresholds of the command line, 0..1."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers with commas between them, got {text!r}") from None
    if not all(0 < value <= 1 for value in values):
        raise argparse.ArgumentTypeError(f"expected more than 0 and at most 1, got {text!r}")
    return values


def main() -> int:
    """Measures, prints a table, writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint of a training run")
    parser.add_argument("--data", type=Path, required=True, help="folder with val.json and images/")
    parser.add_argument("--iou", type=fractions, default=(0.7, 0.83, 0.9), help="default 0.7,0.83,0.9")
    parser.add_argument("--soft-iou", type=fractions, default=(1.0, 0.5), help="default 1,0.5; 1 is none")
    parser.add_argument("--proposals", type=int, default=1000, help="K, default 1000")
    parser.add_argument("--out", type=Path, help="JSON file to write, and a table beside it")
    arguments = parser.parse_args()
    model, checkpoint = load_model(arguments.checkpoint)
    fuse_batch_norm(model.eval())
    trained = dataclasses.replace(checkpoint.settings.proposals, num_proposals=arguments.proposals, nms_candidates=None)
    stages = {
        (hard, soft): dataclasses.replace(trained, nms_iou=hard, soft_nms_iou=soft)
        for hard, soft in itertools.product(arguments.iou, arguments.soft_iou)
    }
    detector = Detector(model, trained, network_hw=checkpoint.settings.data.input_hw).eval()
    dataset = read_coco(arguments.data / "val.json", arguments.data / "images", verify="header")
    rows = measure(detector, dataset, stages)
    text = table(rows)
    print(text, end="")
    if arguments.out:
        content = {
            "data": arguments.data.resolve().name,
            "proposals": arguments.proposals,
            "rows": [
                {"nms_iou": hard, "soft_nms_iou": soft, **{name: recall[name] for name in BUDGETS}}
                for (hard, soft), recall in rows.items()
            ],
        }
        files.write_text(arguments.out, json.dumps(content, indent=1) + "\n")
        files.write_text(arguments.out.with_suffix(".md"), text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
