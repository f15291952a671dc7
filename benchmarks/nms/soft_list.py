"""Recall of K proposals by the length of the list that soft NMS rescores, and by the candidates before NMS.

    python -m benchmarks.nms.soft_list --checkpoint best.pt --data DIR [--proposals 10,30,100,300]
        [--lists 1.5,2,3,4] [--candidates 384,448,512] [--out result.json]

The network runs once on each image of val.json. The first K proposals of an evaluation with a large K come from a list
of (nearly) all boxes that NMS leaves; a shorter list or fewer candidates may miss some of them. The table shows AR@K of
the whole list, and the difference that each list (as a multiple of K, and as chosen by `ProposalConfig`) and each
number of candidates makes. Then how far back the last of the K proposals stands, in the median and at most: among the
boxes that NMS leaves (whole list), and among the candidates (chosen list, as an export counts them). `--out` writes
the same, and the table beside it, with .md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from benchmarks.nms.recall import Levels, found_of, network_outputs
from edgerpn import files
from edgerpn.export.onnx.nms_chain import candidates_for
from edgerpn.train.checkpoint import load_model
from edgerpn.train.data.annotations import ImageId
from edgerpn.train.data.coco import read_coco
from edgerpn.train.network.detector import Detector
from edgerpn.train.network.layers import fuse_batch_norm
from edgerpn.train.network.proposal_stage import ProposalConfig, ranked_candidates, rescored, select_proposals
from edgerpn.train.recall.average_recall import average_recall
from edgerpn.train.recall.results import FoundBoxes

Selected = tuple[Tensor, Tensor]
"""Boxes (M, 4) and scores (M,) of one image, best first."""

WHOLE = "whole list"


def selections(
    levels: Levels, detector: Detector, stage: ProposalConfig, factors: list[float], candidates: list[int]
) -> tuple[dict[str, Selected], int]:
    """Selects proposals of one image in every way.

    Returns:
        The K proposals of every list and of every number of candidates, by name, and the place of the last of those of
        the whole list among the boxes that NMS leaves, from 1.
    """
    anchors = [detector.get_buffer(f"anchors_{level}") for level in range(detector.num_levels)]

    def select(config: ProposalConfig) -> Selected:
        batch = select_proposals(levels, anchors, content_hw=detector.content_hw, config=config)
        count = int(batch.count[0])
        return batch.boxes[0, :count], batch.scores[0, :count]

    every = sum(logits.shape[1] for logits, _ in levels)
    boxes, scores = select(dataclasses.replace(stage, num_proposals=every, soft_nms_iou=1.0))
    lowered = rescored(boxes[None], scores[None], stage)[0]
    budget = stage.num_proposals
    lengths = {f"{factor:g} K": int(factor * budget) for factor in factors}
    orders = {
        name: lowered[:length].topk(min(budget, len(lowered[:length]))).indices
        for name, length in {WHOLE: every, **lengths}.items()
    }
    selected = {name: (boxes[order], lowered[order]) for name, order in orders.items()}
    selected["chosen"] = select(stage)
    for count in candidates:
        selected[f"{count} candidates"] = select(dataclasses.replace(stage, nms_candidates=count))
    return selected, int(orders[WHOLE].max()) + 1


def last_candidate(levels: Levels, detector: Detector, stage: ProposalConfig) -> int:
    """Place of the last of the K proposals among the candidates, from 1."""
    anchors = [detector.get_buffer(f"anchors_{level}") for level in range(detector.num_levels)]
    total = sum(min(stage.pre_nms, logits.shape[1]) for logits, _ in levels)
    ranked = ranked_candidates(levels, anchors, total, content_hw=detector.content_hw, config=stage)
    return candidates_for(ranked, stage)


def numbers(text: str) -> list[float]:
    """Numbers of the command line, more than 0."""
    try:
        values = [float(part) for part in text.split(",") if part]
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected numbers with commas between them, got {text!r}") from None
    if not all(value > 0 for value in values):
        raise argparse.ArgumentTypeError(f"expected numbers above 0, got {text!r}")
    return values


def table(rows: dict[int, dict[str, Any]]) -> str:
    """Returns the figures as a Markdown table, a line for each K."""
    names = [name for name in next(iter(rows.values()))["recall"] if name != WHOLE]
    lines = [
        f"| K | AR@K, {WHOLE} | {' | '.join(names)} | last kept box | last candidate |",
        f"|---:|---:|{'---:|' * len(names)}---:|---:|",
    ]
    for budget, row in rows.items():
        recall = row["recall"]
        changes = " | ".join(f"{recall[name] - recall[WHOLE]:+.4f}" for name in names)
        places = " | ".join("{:.0f}, {:.0f}".format(*row[name]) for name in ("last_kept", "last_candidate"))
        lines.append(f"| {budget} | {recall[WHOLE]:.4f} | {changes} | {places} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Measures, prints the table, writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint of a training run")
    parser.add_argument("--data", type=Path, required=True, help="folder with val.json and images/")
    parser.add_argument("--proposals", type=numbers, default=[10, 30, 100, 300], help="K, default 10,30,100,300")
    parser.add_argument("--lists", type=numbers, default=[1.5, 2, 3, 4], help="multiples of K, default 1.5,2,3,4")
    parser.add_argument("--candidates", type=numbers, default=[], help="boxes of all levels before NMS, default none")
    parser.add_argument("--out", type=Path, help="JSON file to write, and the table beside it")
    arguments = parser.parse_args()
    model, checkpoint = load_model(arguments.checkpoint)
    fuse_batch_norm(model.eval())
    trained = dataclasses.replace(checkpoint.settings.proposals, nms_candidates=None)
    detector = Detector(model, trained, network_hw=checkpoint.settings.data.input_hw).eval()
    dataset = read_coco(arguments.data / "val.json", arguments.data / "images", verify="header")
    stages = [dataclasses.replace(trained, num_proposals=int(count)) for count in arguments.proposals]
    candidates = [int(count) for count in arguments.candidates]
    results: dict[tuple[int, str], dict[ImageId, FoundBoxes]] = defaultdict(dict)
    places: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for image_id, geometry, levels in network_outputs(detector, dataset):
        for stage in stages:
            selected, last = selections(levels, detector, stage, arguments.lists, candidates)
            for name, (boxes, scores) in selected.items():
                results[stage.num_proposals, name][image_id] = found_of(geometry, boxes, scores)
            places[stage.num_proposals].append((last, last_candidate(levels, detector, stage)))
    rows: dict[int, dict[str, Any]] = {}
    truth = dataset.coco_ground_truth()
    for (budget, name), found in results.items():
        row = rows.setdefault(budget, {"recall": {}})
        # There are only K, so that a larger budget counts them all.
        row["recall"][name] = average_recall(truth, found)["AR@1000"]
    for budget, pairs in places.items():
        for name, own in zip(("last_kept", "last_candidate"), zip(*pairs, strict=True), strict=True):
            rows[budget][name] = [float(np.median(own)), max(own)]
    text = table(rows)
    print(text, end="")
    if arguments.out:
        content = {"data": arguments.data.resolve().name, "rows": rows}
        files.write_text(arguments.out, json.dumps(content, indent=1) + "\n")
        files.write_text(arguments.out.with_suffix(".md"), text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
