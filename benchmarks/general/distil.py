"""Trains the general weights on: from the labels, and from everything that a teacher sees in the same views.

    python -m benchmarks.general.distil --data LABELLED --teacher NANODET --config benchmarks/general/distil.toml
        --from RUN/best.pt -o DISTILLED

`benchmarks.general.prepare` has the whole recipe, and says what LABELLED, RUN and NANODET are.

The labelled sets are narrow, and what is a thing in them is not what is a thing elsewhere. NanoDet-g learned from
118,000 photographs of everyday scenes. Here it looks at each training view, cut, turned in colour and put into mosaics
as the network sees it, and the network learns

1. its boxes: an object that the labels do not name counts as much as the teacher is sure of it;
2. its features: a linear map of each level of our pyramid shall give the teacher's, each channel with mean 0 and
   deviation 1 over a batch (arXiv:2207.02039). They say much about places without any object.

`--resume` continues a training; the linear maps, which a checkpoint does not hold, start anew then. It needs a CPU
and a single process. Nothing of the teacher ships. Legend of shapes: N views, T boxes of the teacher, G labelled boxes.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.general.nanodet import NanoDet, Sight, suppress
from edgerpn.errors import ConfigError, EdgeRpnError
from edgerpn.train.data.batch import TrainBatch
from edgerpn.train.learning.assign import OBJECT, Assignment, assign, sample
from edgerpn.train.learning.loss import LossSums, rpn_loss_sums
from edgerpn.train.network.boxes import pairwise_iou
from edgerpn.train.run.loop import run_training
from edgerpn.train.run.state import TrainingRun
from edgerpn.train.run.step import assign_batch
from edgerpn.train.training import read_saved_settings, resolve_settings

TEACHER_SCALE = 0.7
"""Size at which the teacher sees a view: it was trained at 416 px, and our network works at 640."""
SMALLEST_PX = 3.0
"""Side below which boxes of the teacher are not used, pixels of the view."""
NUM_BOXES, SMALLEST_SCORE, NMS_IOU = 30, 0.08, 0.6
"""The most boxes of the teacher in a view, the score they need, and the IoU above which the weaker of two goes."""
LABELLED_IOU = 0.45
"""A box of the teacher with this IoU with a labelled one is that object."""
SURENESS = 1.4
"""Weight of a box of the teacher, in its score: the scores of clear objects are about .6. At most 1."""
KEPT_IOU = 0.5
"""Anchors with this IoU with a labelled box are never objects of the teacher."""
FEATURE_WEIGHT = 2.0
"""Weight of the features' loss beside that of objectness."""
MAP_RATE = 2e-3
"""Learning rate of the linear maps, by AdamW; it falls to a fiftieth at the end of the training."""
MAPS_ALONE_STEPS = 200
"""First steps of a sitting in which only the maps learn from the features' loss: it begins thirty times too large."""


class Taught(NamedTuple):
    """The boxes of the teacher that the labels lack."""

    boxes: Tensor
    """(N, T, 4) pixels of the views, padded with zeros."""
    scores: Tensor
    """(N, T) 0..1; 0 for padding."""


class Distillation:
    """The losses of a step, for `run_training`."""

    def __init__(self, teacher: NanoDet) -> None:
        """Prepares the losses for one training."""
        self._teacher = teacher
        self._maps: list[nn.Conv2d] = []
        self._optimizer: torch.optim.Optimizer | None = None
        self._steps = 0

    def __call__(self, run: TrainingRun, batch: TrainBatch, part: int) -> LossSums:
        """Computes losses as `edgerpn.train.run.step.loss_sums` does; those of the features are in the objectness."""
        del part
        if run.compute.device.type != "cpu" or run.ranks.size > 1:
            raise ConfigError(["loop.device: the teacher works on a CPU, in one process; set loop.device=cpu"])
        if run.settings.model.classes:
            raise ConfigError(["model.classes: a second stage does not learn from the teacher; leave it empty"])
        self._learn_maps(run.fraction)
        images = run.model.normalize(batch.images)
        with run.compute.autocast():
            sight = self._look(images)
            features = run.model.neck(run.model.backbone(images))
            levels = [run.model.head(x, level) for level, x in enumerate(features)]
            distance = self._feature_loss(features[: len(sight.maps)], sight.maps)
        sums = _box_losses(run, batch, levels, teach(sight, batch.gt_boxes, batch.gt_mask))
        # The step divides all sums by the normalizer.
        weight = FEATURE_WEIGHT * sums.normalizer.clamp(min=1)
        return LossSums(
            objectness=sums.objectness + weight * distance,
            box=sums.box,
            normalizer=sums.normalizer,
            num_objects=sums.num_objects,
        )

    def _look(self, images: Tensor) -> Sight:
        """Shows the teacher the views at its scale; returns its boxes in pixels of the views, inside them."""
        height, width = images.shape[2:]
        size = [max(32, round(side * TEACHER_SCALE / 32) * 32) for side in (height, width)]
        small = functional.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
        sight = self._teacher.look(small.contiguous(memory_format=torch.channels_last))
        limit = torch.tensor([width, height, width, height], dtype=torch.float32)
        boxes = sight.boxes * (limit / torch.tensor([size[1], size[0], size[1], size[0]]))
        return sight._replace(boxes=torch.minimum(boxes.clamp(min=0), limit))

    def _feature_loss(self, ours: list[Tensor], theirs: list[Tensor]) -> Tensor:
        """Returns the mean square distance of mapped features from the teacher's standardised ones."""
        if not self._maps:
            self._maps = [nn.Conv2d(a.shape[1], b.shape[1], 1) for a, b in zip(ours, theirs, strict=True)]
            for conv in self._maps:
                nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
            self._optimizer = torch.optim.AdamW([p for conv in self._maps for p in conv.parameters()])
        self._steps += 1
        if self._steps <= MAPS_ALONE_STEPS:
            ours = [a.detach() for a in ours]
        losses = []
        for conv, a, b in zip(self._maps, ours, theirs, strict=True):
            target = b.float()
            deviation, mean = torch.std_mean(target, dim=(0, 2, 3), keepdim=True)
            mapped = conv(functional.interpolate(a, size=b.shape[2:], mode="bilinear", align_corners=False))
            losses.append(functional.mse_loss(mapped.float(), (target - mean) / (deviation + 1e-5)))
        return torch.stack(losses).mean()

    def _learn_maps(self, fraction: float) -> None:
        """Takes a step with the gradients of the last batch; AdamW does not mind that they have another scale."""
        if self._optimizer is None:
            return
        for group in self._optimizer.param_groups:
            group["lr"] = MAP_RATE * max(0.02, 1 - fraction)
        self._optimizer.step()
        self._optimizer.zero_grad()


def teach(sight: Sight, gt_boxes: Tensor, gt_mask: Tensor) -> Taught:
    """Chooses the best boxes of the teacher in each view, without those of labelled objects.

    Args:
        sight: What the teacher sees, in pixels of the views.
        gt_boxes: (N, G, 4) labelled boxes, padded.
        gt_mask: (N, G) true for rows with a box.
    """
    found = [_teach_view(*view) for view in zip(sight.boxes, sight.scores, gt_boxes, gt_mask, strict=True)]
    boxes, scores = zip(*found, strict=True)
    return Taught(*(nn.utils.rnn.pad_sequence(list(parts), batch_first=True) for parts in (boxes, scores)))


def _teach_view(all_boxes: Tensor, all_scores: Tensor, gt_boxes: Tensor, gt_mask: Tensor) -> tuple[Tensor, Tensor]:
    order = all_scores.argsort(descending=True)[:300]
    order = order[all_scores[order] > SMALLEST_SCORE]
    boxes, scores = all_boxes[order], all_scores[order]
    keep = suppress(boxes.numpy(), NMS_IOU)
    boxes, scores = boxes[keep], scores[keep]
    is_new = (boxes[:, 2:] - boxes[:, :2] > SMALLEST_PX).all(dim=1)
    if gt_mask.any():
        is_new &= pairwise_iou(boxes[None], gt_boxes[gt_mask][None])[0].amax(dim=1) < LABELLED_IOU
    boxes, scores = boxes[is_new][:NUM_BOXES], scores[is_new][:NUM_BOXES]
    # One row of padding: the assignment needs at least one row.
    return functional.pad(boxes, (0, 0, 0, 1)), functional.pad(scores, (0, 1))


def _box_losses(run: TrainingRun, batch: TrainBatch, levels: list[tuple[Tensor, Tensor]], taught: Taught) -> LossSums:
    """Computes the usual losses, with the teacher's boxes beside the labelled ones."""
    named = assign_batch(run, batch)
    is_real = taught.scores > 0
    nothing = taught.boxes[:, :0], is_real[:, :0]
    anchors, config = run.anchors_of(batch.view_hw), run.settings.assign
    seen = assign(anchors, taught.boxes, is_real, *nothing, image_hw=batch.view_hw, config=config)
    both = join(named, seen, batch.gt_boxes.shape[1])
    logits, deltas = (torch.cat(parts, dim=1) for parts in zip(*levels, strict=True))
    return rpn_loss_sums(
        logits,
        deltas,
        torch.cat(anchors),
        both,
        sample(both.labels_NA, config=config, generator=torch.Generator()),
        torch.cat((batch.gt_boxes, taught.boxes), dim=1),
        config=run.settings.loss,
        gt_weights_NG=torch.cat((batch.gt_mask.float(), (taught.scores * SURENESS).clamp(max=1)), dim=1),
    )


def join(named: Assignment, seen: Assignment, num_named: int) -> Assignment:
    """Joins the assignments to labelled boxes and to the teacher's, which follow the `num_named` labelled ones.

    Labelled objects come first; the teacher's count where an anchor is not near any of them, in ignore regions too.
    """
    is_theirs = (seen.labels_NA == OBJECT) & (named.labels_NA != OBJECT) & (named.overlap_NA < KEPT_IOU)
    return Assignment(
        labels_NA=named.labels_NA.masked_fill(is_theirs, OBJECT),
        matched_NA=torch.where(is_theirs, seen.matched_NA + num_named, named.matched_NA),
        overlap_NA=torch.maximum(named.overlap_NA, seen.overlap_NA),
    )


def main(words: Sequence[str] | None = None) -> int:
    """Trains; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the merged sets")
    parser.add_argument("--teacher", type=Path, required=True, metavar="FOLDER", help="with nanodet.json, nanodet.bin")
    parser.add_argument("--config", help="TOML file of settings")
    parser.add_argument("--from", dest="start", metavar="WEIGHTS", help="general (default), random, or a checkpoint")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value", help="setting of the training")
    parser.add_argument("--resume", action="store_true", help="continue the training in --out")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the run")
    arguments = parser.parse_args(words)
    try:
        base = read_saved_settings(arguments.out) if arguments.resume else None
        settings = resolve_settings(base=base, file=arguments.config, start=arguments.start, overrides=arguments.set)
        run_training(
            settings,
            data=arguments.data,
            output=arguments.out,
            resume=arguments.resume,
            log=lambda line: print(line, flush=True),
            loss_function=Distillation(NanoDet(arguments.teacher)),
        )
    except EdgeRpnError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
