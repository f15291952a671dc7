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

A training forgets what neither the labels nor the teacher name: they make background of it. `--keep` lets weights of
ours look at the views too, whole ones at the teacher's scale, at which they know large objects better
(`benchmarks/results/general-larger_epyc-2core_2026-12-01.md`); the boxes of which they are sure join the teacher's
(learning without forgetting, arXiv:1606.09282, with boxes).

At one scale the teacher misses much: in Aquarium's and OI vehicles' train.json NanoDet-g reaches AR@100 .319 and .467
at 416x416, and .336 and .498 with its boxes at 416 and 608 pixels together. With `--closer` it looks twice.

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
from edgerpn.arguments import share_argument
from edgerpn.errors import ConfigError, EdgeRpnError
from edgerpn.train.checkpoint import load_model
from edgerpn.train.data.batch import TrainBatch
from edgerpn.train.learning.assign import OBJECT, Assignment, assign, sample
from edgerpn.train.learning.loss import LossSums, rpn_loss_sums
from edgerpn.train.network.anchors import grid_anchors
from edgerpn.train.network.boxes import decode_boxes, pairwise_iou
from edgerpn.train.network.model import Rpn
from edgerpn.train.run.loop import run_training
from edgerpn.train.run.state import TrainingRun
from edgerpn.train.run.step import assign_batch
from edgerpn.train.training import read_saved_settings, resolve_settings

TEACHER_SCALE = 0.7
"""Size at which the teachers see a view: NanoDet was trained at 416 px, and our network works at 640."""
CLOSER_SCALE = 1.0
"""Size at which NanoDet may look once more, for boxes alone: it finds smaller objects there, and fewer large ones."""
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
KEPT_SCORE, KEPT_ANCHORS = 0.3, 100
"""Score from which on a box of the kept weights is an object, and the most anchors of a view that propose one."""
_NANODET_STRIDE_PX = 32
"""The sides of NanoDet's images are multiples of it."""
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

    def __init__(
        self, teacher: NanoDet, kept: Rpn | None = None, *, looks_closer: bool = False, fix_norms_at: float = 1.0
    ) -> None:
        """Prepares the losses for one training.

        Args:
            teacher: Looks at every view.
            kept: A network of ours in eval mode, whose sure boxes are objects too; it does not learn.
            looks_closer: Whether the teacher looks at every view a second time, at CLOSER_SCALE.
            fix_norms_at: Fraction of the training, 0..1, from which batch norm keeps its statistics and uses them.
        """
        self._teacher = teacher
        self._kept = kept
        self._looks_closer = looks_closer
        self._fix_norms_at = fix_norms_at
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
        if run.fraction >= self._fix_norms_at:
            for module in run.model.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        images = run.model.normalize(batch.images)
        with run.compute.autocast():
            sight = self.look(images, is_part=batch.view_hw != run.settings.data.input_hw)
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

    def look(self, images: Tensor, *, is_part: bool) -> Sight:
        """Shows the teachers the views; returns their boxes in pixels of the views, inside them.

        NanoDet sees all views at its scale, and returns its maps from there. The kept network sees parts of a picture
        (`is_part`) as they are.
        """
        small = _scale(images, TEACHER_SCALE, _NANODET_STRIDE_PX)
        sight = self._teacher.look(small)
        boxes, scores = [_fit(sight.boxes, small, images)], [sight.scores]
        if self._looks_closer:
            near = _scale(images, CLOSER_SCALE, _NANODET_STRIDE_PX)
            closer = self._teacher.look(near)
            boxes.append(_fit(closer.boxes, near, images))
            scores.append(closer.scores)
        if self._kept is not None:
            stride_px = max(self._kept.config.anchors.strides_px)
            shown = images if is_part else _scale(images, TEACHER_SCALE, stride_px)
            own_boxes, own_scores = look_of(self._kept, shown)
            boxes.append(_fit(own_boxes, shown, images))
            scores.append(own_scores)
        return Sight(sight.maps, torch.cat(boxes, dim=1), torch.cat(scores, dim=1))

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


def _scale(images: Tensor, scale: float, stride_px: int) -> Tensor:
    """Scales views (N, 3, H, W), to multiples of a stride; channels-last in memory."""
    size = [max(stride_px, round(side * scale / stride_px) * stride_px) for side in images.shape[2:]]
    if size != list(images.shape[2:]):
        images = functional.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=True)
    return images.contiguous(memory_format=torch.channels_last)


def _fit(boxes: Tensor, shown: Tensor, images: Tensor) -> Tensor:
    """Converts boxes (..., 4) in pixels of `shown` to pixels of `images` (both N, 3, H, W), and clips them there."""
    (from_h, from_w), (height, width) = shown.shape[2:], images.shape[2:]
    limit = torch.tensor([width, height] * 2, dtype=torch.float32)
    return torch.minimum((boxes * (limit / torch.tensor([from_w, from_h] * 2))).clamp(min=0), limit)


@torch.no_grad()
def look_of(network: Rpn, images: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the best boxes (N, T, 4) of a network of ours, and their scores (N, T), 0 where it is not sure.

    Args:
        network: In eval mode.
        images: (N, 3, H, W) as `Rpn.standardize` makes them. The boxes are in their pixels and may reach beyond.
    """
    levels = network(images)
    anchors = torch.cat(grid_anchors(network.config.anchors, (images.shape[2], images.shape[3])))
    logits, deltas = (torch.cat(parts, dim=1).float() for parts in zip(*levels, strict=True))
    scores, best = logits.sigmoid().topk(min(KEPT_ANCHORS, len(anchors)))
    boxes = decode_boxes(deltas.gather(1, best[..., None].expand(-1, -1, 4)), anchors[best])
    return boxes, scores.where(scores >= KEPT_SCORE, 0.0)


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
    parser.add_argument("--keep", metavar="WEIGHTS", type=Path, help="weights of ours whose sure boxes are objects too")
    parser.add_argument("--closer", action="store_true", help="the teacher looks a second time, at the full size")
    parser.add_argument(
        "--fix-norms-at",
        metavar="FRACTION",
        type=share_argument(),
        default=1.0,
        help="fraction of the training from which batch norm keeps its statistics (default 1: never)",
    )
    parser.add_argument("--config", help="TOML file of settings")
    parser.add_argument("--from", dest="start", metavar="WEIGHTS", help="general (default), random, or a checkpoint")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value", help="setting of the training")
    parser.add_argument("--resume", action="store_true", help="continue the training in --out")
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the run")
    arguments = parser.parse_args(words)
    try:
        base = read_saved_settings(arguments.out) if arguments.resume else None
        settings = resolve_settings(base=base, file=arguments.config, start=arguments.start, overrides=arguments.set)
        kept = load_model(arguments.keep)[0] if arguments.keep else None
        run_training(
            settings,
            data=arguments.data,
            output=arguments.out,
            resume=arguments.resume,
            log=lambda line: print(line, flush=True),
            loss_function=Distillation(
                NanoDet(arguments.teacher),
                kept,
                looks_closer=arguments.closer,
                fix_norms_at=arguments.fix_norms_at,
            ),
        )
    except EdgeRpnError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
